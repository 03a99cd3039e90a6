"""Prompt lookup: what followed when the request's last tokens came before (prompt-lookup decoding, Saxena 2023).

Of the earlier places that end with the same tokens the one with the longest match is taken, among equals the latest,
and what followed there is proposed. Where a place lies less far back than tokens are asked for, what followed goes on
with what is proposed itself: a repetition is continued.

Places are chained like in LZ77: `last` has the latest place of each pair of tokens, `before[i]` the one before place i.
So a token costs one step to enter and a few bytes to keep, and only the newest CANDIDATES places are compared.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from accelgen.worker.drafting.proposal import NOTHING, Proposal
from accelgen.worker.request import Request

SHORTEST, LONGEST = 2, 16  # tokens that must, and may at most, be the same
CANDIDATES = 32
NOWHERE = -1


class PairIndex:
    """The places of all pairs of tokens in one growing sequence. A place is the index of a pair's second token."""

    def __init__(self) -> None:
        self._last: dict[int, int] = {}
        self._before = array("i")  # one for each token entered

    def extend(self, tokens: Sequence[int]) -> None:
        """Enters what is new in `tokens`, which begin with all that were entered before."""
        last, before = self._last, self._before
        for at in range(len(before), len(tokens)):
            if at == 0:
                before.append(NOWHERE)
                continue
            pair = tokens[at - 1] << 32 | tokens[at]
            before.append(last.get(pair, NOWHERE))
            last[pair] = at

    def find(self, tokens: Sequence[int], most: int) -> tuple[int, ...]:
        """`most` tokens that may follow `tokens`, all of which have been entered; none if the last two are new."""
        end = len(tokens) - 1
        place = self._before[end] if end > 0 else NOWHERE
        best, longest = NOWHERE, 0
        for _ in range(CANDIDATES):
            if place == NOWHERE:
                break
            length = _same(tokens, place, end)
            if length > longest:
                best, longest = place, length
            if longest >= LONGEST:
                break
            place = self._before[place]
        if best == NOWHERE:
            return ()
        back = end - best
        return tuple(tokens[best + 1 + i % back] for i in range(most))


def _same(tokens: Sequence[int], place: int, end: int) -> int:
    """How many tokens up to `place` are those up to `end`, at most LONGEST; two are known to be."""
    length = SHORTEST
    while length < LONGEST and length <= place and tokens[place - length] == tokens[end - length]:
        length += 1
    return length


class NgramDrafter:
    """A PairIndex for each request that has been asked for; costs no forward pass."""

    def __init__(self) -> None:
        self._indexes: dict[int, PairIndex] = {}

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
        """See Drafter."""
        return [self._propose(*asked) for asked in zip(requests, most, strict=True)]

    def forget(self, id: int) -> None:
        self._indexes.pop(id, None)

    def _propose(self, request: Request, most: int) -> Proposal:
        index = self._indexes.setdefault(request.id, PairIndex())
        index.extend(request.tokens)
        found = index.find(request.tokens, most)
        return Proposal(found) if found else NOTHING
