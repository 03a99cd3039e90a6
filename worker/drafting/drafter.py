"""A smaller model drafts: all requests of an iteration together, one token of each after the other.

It has a paged cache of its own, of as many blocks as the model's, whose tables are kept here: nobody outside knows of
them. What it has computed for a request stays good whatever happens to the request's own KV, as long as its tokens only
grow. A request that has much to catch up with (its prompt) does so in portions, and has no drafts until then.

`coupled`: the drafter draws with the numbers the request itself will draw with, so that both agree whenever their
distributions let them; what is verified is then the request's own choice, the same as without drafts. Otherwise, at a
temperature, it draws with numbers of its own, and the distribution goes along for rejection sampling (verify.py).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import pad

from accelgen.worker.drafting.proposal import NOTHING, Proposal
from accelgen.worker.packing import Span
from accelgen.worker.request import Request
from accelgen.worker.runner import Runner
from accelgen.worker.sampler import invert, probabilities, sample
from accelgen.worker.uniforms import DRAFT, uniforms

CATCH_UP = 1024  # tokens that an iteration may process to come where its requests are


@dataclass
class Shadow:
    """A request in the drafter's cache: `sure` of its tokens are computed there, and behind them the drafted `tail`,
    which may or may not have become true."""

    table: list[int] = field(default_factory=list)
    sure: int = 0
    tail: tuple[int, ...] = ()
    hopeless: bool = False  # the drafter has no numbers for it, or not all of its tokens

    def follow(self, tokens: Sequence[int]) -> None:
        """What of the tail has become true is sure; the rest is given up, and written over."""
        for token in self.tail:
            if self.sure >= len(tokens) or tokens[self.sure] != token:
                break
            self.sure += 1
        self.tail = ()


@dataclass
class Draft:
    """Drafting for one request: what it has drafted, and from which distributions."""

    request: Request
    shadow: Shadow
    most: int
    tokens: list[int] = field(default_factory=list)
    chances: list[Tensor] = field(default_factory=list)
    ended: bool = False  # there is nothing to go on with

    @property
    def goes_on(self) -> bool:
        return not self.ended and len(self.tokens) < self.most

    def next_span(self) -> Span:
        """The newest drafted token, to be processed for the next one."""
        position = len(self.request.tokens) + len(self.tokens) - 1
        return Span(self.tokens[-1:], position, self.shadow.table)

    def proposal(self) -> Proposal:
        if not self.tokens:
            return NOTHING
        return Proposal(tuple(self.tokens), torch.stack(self.chances) if self.chances else None)


class ModelDrafter:
    """See Drafter. `runner` has the smaller model and a cache that is used by nobody else. `vocab_size` is the model's,
    if that is another one: what only one of them has are rows that stand for no token (vocabulary.py)."""

    def __init__(self, runner: Runner, coupled: bool = True, vocab_size: int = 0) -> None:
        self.runner, self.coupled = runner, coupled
        own = runner.loaded.vocab_size
        self._vocab_size = vocab_size or own
        self._common = min(own, self._vocab_size)
        self._size = runner.cache.block_size
        self._free = list(range(runner.cache.num_blocks - 1, -1, -1))
        self._shadows: OrderedDict[int, Shadow] = OrderedDict()  # least recently used first

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
        """See Drafter. One forward pass for each token of the longest draft."""
        drafts = self._begin(requests, most)
        going = [draft for draft in drafts.values() if draft.goes_on]
        while going:
            logits = self.runner.forward([draft.next_span() for draft in going])
            self._draw([going[i] for i in logits.order], logits.rows[:, : self._common])
            going = [draft for draft in going if draft.goes_on]
        for draft in drafts.values():
            if not draft.shadow.hopeless:
                draft.shadow.tail = tuple(draft.tokens[:-1])
        return [drafts[r.id].proposal() if r.id in drafts else NOTHING for r in requests]

    def forget(self, id: int) -> None:
        shadow = self._shadows.pop(id, None)
        if shadow is not None:
            self._free += shadow.table

    def check(self) -> list[str]:
        """The invariants that do not hold, in words."""
        held = [block for shadow in self._shadows.values() for block in shadow.table]
        if sorted(held + self._free) != list(range(self.runner.cache.num_blocks)):
            return [f"{len(held)} blocks held and {len(self._free)} free are not each block once"]
        return []

    # --- catching up -------------------------------------------------------------------------------------------------

    def _begin(self, requests: Sequence[Request], most: Sequence[int]) -> dict[int, Draft]:
        """Processes what is new of each request; those that are complete get their first token. By request id."""
        asked = {request.id for request in requests}
        spans: list[Span] = []
        drafts: list[Draft] = []
        left = CATCH_UP
        behind = [(self._behind(request), i) for i, request in enumerate(requests)]
        for count, i in sorted(behind):
            if self._shadows[requests[i].id].hopeless:
                continue
            request, length = requests[i], len(requests[i].tokens)
            shadow = self._shadows[request.id]
            count = min(count, left)
            if count < 1 or not self._has_room(shadow, length + most[i] - 1, asked):
                continue
            start, end = shadow.sure, shadow.sure + count
            if max(request.tokens[start:end]) >= self._common:
                self._give_up(shadow)
                continue
            spans.append(Span(request.tokens[start:end], start, shadow.table, int(end == length)))
            drafts.append(Draft(request, shadow, most[i], ended=end < length))
            left -= count
        if spans:
            logits = self.runner.forward(spans)
            for draft, span in zip(drafts, spans, strict=True):
                draft.shadow.sure = span.end
            self._draw([drafts[i] for i in logits.order], logits.rows[:, : self._common])
        return {draft.request.id: draft for draft in drafts}

    def _behind(self, request: Request) -> int:
        """How many tokens of the request are to be processed; its shadow is the most recently used now."""
        shadow = self._shadows.setdefault(request.id, Shadow())
        self._shadows.move_to_end(request.id)
        shadow.follow(request.tokens)
        shadow.sure = min(shadow.sure, len(request.tokens) - 1)  # the newest gives the logits
        return len(request.tokens) - shadow.sure

    def _give_up(self, shadow: Shadow) -> None:
        """No drafts any more for a request. Who gets its blocks does not inherit what is not a number."""
        self.runner.cache.scrub(shadow.table)
        self._free += shadow.table
        shadow.table, shadow.sure, shadow.tail, shadow.hopeless = [], 0, (), True

    def _has_room(self, shadow: Shadow, tokens: int, asked: set[int]) -> bool:
        """Blocks for `tokens`, taken from requests that are not asked for now if need be."""
        if tokens > self.runner.loaded.checkpoint.max_positions:
            return False
        needed = -(-tokens // self._size) - len(shadow.table)
        for id in (
            [id for id in self._shadows if id not in asked] if needed > len(self._free) else ()
        ):
            self.forget(id)
            if needed <= len(self._free):
                break
        if needed > len(self._free):
            return False
        for _ in range(needed):
            shadow.table.append(self._free.pop())
        return True

    # --- drawing -----------------------------------------------------------------------------------------------------

    def _draw(self, drafts: Sequence[Draft], rows: Tensor) -> None:
        """The next token of each, from its row of logits [len(drafts), vocab]."""
        if not drafts:
            return
        draws = [draft.request.draw(draft.tokens) for draft in drafts]
        own = [] if self.coupled else [i for i, d in enumerate(draws) if d.sampling.temperature > 0]
        if own:
            self._draw_own([drafts[i] for i in own], rows[own])
        shared = sorted(set(range(len(drafts))) - set(own))
        if shared:
            part = rows if not own else rows[shared]
            tokens = sample(part, [draws[i] for i in shared])
            for i, token in zip(shared, tokens, strict=True):
                if token is None:
                    drafts[i].ended = True
                    self._give_up(drafts[i].shadow)
                else:
                    drafts[i].tokens.append(token)

    def _draw_own(self, drafts: Sequence[Draft], rows: Tensor) -> None:
        """With numbers of the drafter's own, independent of those that verify."""
        draws = [draft.request.draw(draft.tokens) for draft in drafts]
        chances, sound = probabilities(rows, draws)
        seeds, positions = [d.sampling.seed for d in draws], [d.position for d in draws]
        tokens = invert(chances, uniforms(seeds, positions, DRAFT))
        for row, (draft, token) in enumerate(zip(drafts, tokens, strict=True)):
            if not sound[row]:
                draft.ended = True
                self._give_up(draft.shadow)
                continue
            draft.tokens.append(token)
            draft.chances.append(pad(chances[row], (0, self._vocab_size - self._common)))
