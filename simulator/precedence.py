"""Who goes first, and who is given up: the decisions that the search for an upper reference is free to make.

Requests are known by their ids, 1 for the first to arrive. Those that are kept come in an order of the candidate's own,
those given up after them all, in order of arrival. A `Script` makes the same decisions one by one, each the moment that
it first matters, so that going through all scripts goes through all orders that differ in anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from accelgen.scheduler.table import RequestTable

LAST = 1e6
"""Ranks from here on are those of requests that are given up, or lost."""


class Order:
    """Ranks of requests 1 .. `requests`: of the kept ones their place in `kept`. Made for one run: `lose` changes
    it."""

    def __init__(self, requests: int, kept: Sequence[int]) -> None:
        self.ranks: NDArray[np.float64] = LAST + np.arange(requests + 1.0)
        self.ranks[list(kept)] = np.arange(len(kept))
        self.lost = 0

    def lose(self, id: int) -> None:
        """Its objective is lost: from now on it counts as given up."""
        self.ranks[id] = LAST + id
        self.lost += 1

    def waiting(self, table: RequestTable) -> Iterable[int]:
        """Slots of waiting requests by rank: the table's own order, which it has asked for."""
        return (slot for _, slot in table.waiting)

    @property
    def open(self) -> set[int]:
        """Those whose place is not decided yet."""
        return set()

    def decide(self, ids: Sequence[int]) -> None:
        """Not all that `ids` ask for can be done at once: from now on each of them has its place."""


class Script(Order):
    """Decides by the numbers of `choices`, by 0 once they are used up. `log`: what was chosen, of how many options.

    A request that meets m kept ones is placed behind the last of them (0), before the j-th (j = 1 .. m), or given up
    (m + 1)."""

    def __init__(self, requests: int, choices: Sequence[int] = ()) -> None:
        super().__init__(requests, range(1, requests + 1))
        self.log: list[tuple[int, int]] = []
        self._choices = choices
        self._open = set(range(1, requests + 1))
        self._kept: list[int] = []

    def lose(self, id: int) -> None:
        super().lose(id)
        self._open.discard(id)
        if id in self._kept:
            self._kept.remove(id)

    def waiting(self, table: RequestTable) -> Iterable[int]:
        slots = [slot for _, slot in table.waiting]
        return sorted(slots, key=lambda slot: float(self.ranks[table.ids[slot]]))

    @property
    def open(self) -> set[int]:
        return self._open

    def decide(self, ids: Sequence[int]) -> None:
        for id in sorted(self._open.intersection(ids)):
            met = [other for other in self._kept if other in ids]
            at, options = len(self.log), len(met) + 2
            chosen = self._choices[at] if at < len(self._choices) else 0
            self.log.append((chosen, options))
            self._open.remove(id)
            if chosen == 0:
                self._kept.append(id)
            elif chosen <= len(met):
                self._kept.insert(self._kept.index(met[chosen - 1]), id)
            else:
                super().lose(id)
        self.ranks[self._kept] = np.arange(len(self._kept))

    def describe(self) -> str:
        """What was decided."""
        kept = " ".join(map(str, self._kept)) or "nobody"
        return f"order where it matters: {kept}"


def next_choices(log: Sequence[tuple[int, int]]) -> list[int] | None:
    """The choices of the next script after the one that left `log`, depth first; None after the last."""
    for at in range(len(log) - 1, -1, -1):
        chosen, options = log[at]
        if chosen + 1 < options:
            return [*(choice for choice, _ in log[:at]), chosen + 1]
    return None


def done_share(choices: Sequence[int], log: Sequence[tuple[int, int]]) -> float:
    """About how much of all scripts lies before the one with `choices`; `log` is that of the one before it."""
    share, width = 0.0, 1.0
    for choice, (_, options) in zip(choices, log, strict=False):
        width /= options
        share += choice * width
    return share if choices else 1.0
