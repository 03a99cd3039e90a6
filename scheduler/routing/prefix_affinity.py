"""`prefix-affinity`: the replica that has seen most of the prompt, unless loads are apart (SGLang's router).

1. Loads, counted in requests, are *apart* when the largest is more than `apart` above the smallest and more than
   `ratio` times as large. Then a request goes to the replica with least load.
2. Otherwise to the one with the longest prefix of the prompt, if that is more than `share` of it; of several with least
   load.
3. Otherwise to the one with least load. So new prefixes are spread, and each stays where it is.

So nobody is given a request for its prefix while it has more than max(smallest load + `apart`, smallest load *
`ratio`) requests. The thresholds are those of SGLang's cache-aware router (cache-threshold 0.3, balance-abs-threshold
64, balance-rel-threshold 1.5), and so is the order of the rules.

Which prefixes a replica has is what the scheduler has sent there (`prefixes.py`): prompts when they are placed, prompts
and answers when they end, so that the next call of a conversation finds its history. At most `blocks` blocks are
remembered of each replica, and never more than it has. A scheduler that died leaves nothing; what lives is placed again
after it. A replica with a new worker or a new KV manager, whose cache is empty, begins with nothing but those.

Different from SGLang: blocks of tokens instead of text, what is too much is forgotten at once, and least load is that
of `least-load` (tokens) where SGLang counts requests again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from accelgen.scheduler.policies.shared import at_least
from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.prefixes import Keys, chain, matched, note
from accelgen.scheduler.routing.shared import by_load


class Seen(Struct):
    """By replica, the keys of what was sent there; and which one was given a request last (-1: none)."""

    keys: dict[int, Keys]
    last: int = -1


class PrefixAffinity:
    name = "prefix-affinity"

    def __init__(
        self, share: float = 0.3, apart: int = 64, ratio: float = 1.5, blocks: int = 16384
    ) -> None:
        at_least("share", share, 0)
        if share > 1:
            raise ValueError(f"share: {share}, must be at most 1, the whole prompt")
        at_least("apart", apart, 0, "requests")
        at_least("ratio", ratio, 1)
        at_least("blocks", blocks, 1)
        self.share, self.apart, self.ratio, self.blocks = share, apart, ratio, blocks

    def initial(self) -> Seen:
        return Seen({})

    def order(self, request: Request, views: Mapping[int, View], state: Seen) -> list[list[int]]:
        ranked = by_load(views, state.last)
        if not self._are_apart(views):
            best, prefix = self._longest(request, views, ranked, state)
            if prefix > self.share * len(request.prompt):
                ranked.remove(best)
                ranked.insert(0, best)
        return [[index] for index in ranked]

    def placed(self, request: Request, index: int, view: View, state: Seen) -> Seen:
        self._note(request, index, view, state)
        state.last = index
        return state

    def ended(self, request: Request, index: int, view: View, state: Seen) -> Seen:
        self._note(request, index, view, state)
        return state

    def lost(self, index: int, state: Seen) -> Seen:
        state.keys.pop(index, None)
        return state

    def _are_apart(self, views: Mapping[int, View]) -> bool:
        loads = [len(view.table) for view in views.values()]
        least, most = min(loads), max(loads)
        return most - least > self.apart and most > self.ratio * least

    def _longest(
        self, request: Request, views: Mapping[int, View], ranked: Sequence[int], state: Seen
    ) -> tuple[int, int]:
        """The first of `ranked` with the longest prefix of the prompt, and how many tokens of it that is."""
        found: dict[int, list[int]] = {}  # keys by block size: replicas may have their own
        best, longest = ranked[0], 0
        for index in ranked:
            size = views[index].table.block_size
            if size not in found:
                found[size] = [*chain(request.prompt, request.salt, size)]
            prefix = size * matched(found[size], state.keys.get(index, {}))
            if prefix > longest:
                best, longest = index, prefix
        return best, longest

    def _note(self, request: Request, index: int, view: View, state: Seen) -> None:
        """Its full blocks are, or soon will be, at that replica. The KV of the newest token is not."""
        tokens = request.prompt + request.generated[:-1]
        keys = [*chain(tokens, request.salt, view.table.block_size)]
        note(state.keys.setdefault(index, {}), keys, min(self.blocks, view.total_blocks))
