"""Batches with speculation: draft lengths per tier (arXiv 2504.08784, SLO-adaptive speculative decoding).

A decode that has s tokens verified at once, s - 1 of them drafted, gets acc(s) = (1 - alpha^s) / (1 - alpha) tokens on
average if each draft is accepted with probability alpha. Of all tiers one is the bottleneck: for each tier and each
length it may have, every other tier has the shortest length with which it is not the bottleneck itself, in closed form.
A batch takes as long as the least that its decodes can wait, floor(acc(s)) tokens at their pace; the lengths that leave
the most for prompts are taken. The batches of a window are all alike; one that is too short for any has none
(reconstructed: in the code such a window makes the plan infeasible, though nothing is due in it). A batch is charged
max(s) draft steps, as in the code: one more than the longest draft has.

Paces hold on average over the acceptance of drafts, not for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import repeat
from math import ceil, inf, log
from operator import mul

from msgspec import Struct

from accelgen.scheduler.slos_serve.planner_ar import Timeline
from accelgen.scheduler.slos_serve.roofline import Roofline
from accelgen.scheduler.slos_serve.slices import Slice, steady_s
from accelgen.scheduler.slos_serve.tiers import Counts

ALPHA, MOST_DRAFTS = 0.6, 10  # the code's defaults
_CLOSE = 1e-9


Shape = tuple[tuple[int, ...], int, float]
"""Tokens verified per decode of each tier (0: nobody is in it), the most of these, and the longest time that a batch
may take with them."""


class Lengths(Struct, frozen=True):
    """A Shape with so many `decodes`: the tokens `used` by all of them, and how many the longest batch has (0: it
    cannot be so short)."""

    lengths: tuple[int, ...]
    decodes: int
    used: int
    steps: int
    unit_s: float
    size: int


def accepted(length: int, alpha: float) -> float:
    """acc(s): tokens that a decode gets on average of `length` verified ones, the corrected or added one included."""
    return (1 - alpha**length) / (1 - alpha)


def shortest(tpot_s: float, bottleneck_s: float, length: int, alpha: float, most: int) -> int:
    """The smallest s of at most `most` with which a tier of `tpot_s` can wait as long as the bottleneck, a tier of
    `bottleneck_s` with `length` tokens: acc(s) * tpot_s >= acc(length) * bottleneck_s. 0 if there is none."""
    share = ((tpot_s - bottleneck_s) + alpha**length * bottleneck_s) / tpot_s
    if share <= 0:
        return 0
    found = max(1, ceil(log(share) / log(alpha) - _CLOSE))
    return found if found <= most else 0


class SdPlanner:
    """A Planner for tiers of `tiers` seconds per token; at most `most` tokens of a request are verified at once. Raises
    ValueError for an acceptance that is no probability between 0 and 1, or no length at all."""

    def __init__(
        self, roofline: Roofline, tiers: tuple[float, ...], alpha: float = ALPHA, most: int = MOST_DRAFTS,
    ) -> None:  # fmt: skip
        if not 0 < alpha < 1:
            raise ValueError(f"alpha: {alpha}, must be between 0 and 1")
        if most < 1:
            raise ValueError(f"most: {most} tokens, must be at least 1")
        self.roofline, self.tiers, self.alpha, self.most = roofline, tiers, alpha, most
        self._known: dict[Counts, list[Lengths]] = {}
        self._shapes: dict[tuple[int, ...], list[Shape]] = {}
        self._found: dict[tuple[float, Counts], tuple[int, Slice] | None] = {}
        self._idle = Timeline(roofline, tiers, (0,) * len(tiers))
        self.work, self.steady_s = 0, steady_s(tiers)

    def plan(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        if window_s <= 0:
            return 0, 0.0
        if not any(counts):
            return self._idle.plan(window_s)
        found = self._best(window_s, counts)
        if found is None:
            return None
        times, one = found
        return times * one.prefill, times * one.seconds

    def slices(self, window_s: float, counts: Counts) -> Iterator[Slice]:
        if not any(counts):
            return self._idle.window(window_s)
        found = self._best(window_s, counts) if window_s > 0 else None
        return iter(()) if found is None else repeat(found[1], found[0])

    def lasting(self, counts: Counts) -> Iterator[Slice]:
        return self.slices(self.steady_s, counts)

    def reach(self, tokens: int, counts: Counts) -> float:
        if tokens <= 0 or not any(counts):
            return self._idle.reach(tokens)
        return min((self._reach(tokens, one) for one in self._lengths(counts)), default=inf)

    def is_steady(self, counts: Counts) -> bool:
        return self.plan(self.steady_s, counts) is not None

    def _reach(self, tokens: int, one: Lengths) -> float:
        room = one.size - one.used
        if room < 1:
            return inf
        if tokens <= room:
            least_s = self.roofline.seconds(tokens + one.used, one.steps, one.decodes)
            return min(one.unit_s, least_s)
        return ceil(tokens / room) * one.unit_s

    def _best(self, window_s: float, counts: Counts) -> tuple[int, Slice] | None:
        """How many batches, and each of them."""
        asked = window_s, counts
        if asked not in self._found:
            self.work += 1
            self._found[asked] = self._search(window_s, counts)
        return self._found[asked]

    def _search(self, window_s: float, counts: Counts) -> tuple[int, Slice] | None:
        best: tuple[int, Lengths, int, float] | None = None
        most, sizes = -1, dict[int, int]()  # of a batch that fills the window, by drafting steps
        for one in self._lengths(counts):
            unit_s, size = one.unit_s, one.size
            times = int(window_s / unit_s + _CLOSE)
            if window_s < unit_s:
                if one.steps not in sizes:
                    sizes[one.steps] = self.roofline.time_to_batch(window_s, one.steps, one.decodes)
                if sizes[one.steps] >= one.used:
                    unit_s, size, times = window_s, sizes[one.steps], 1
                else:  # the window is too short, and nothing is due in it
                    times = 0
            if size >= one.used and times * (size - one.used) > most:
                most, best = times * (size - one.used), (times, one, size, unit_s)
        if best is None:
            return None
        times, one, size, unit_s = best
        return times, Slice(size, one.lengths, size - one.used, unit_s)

    def _lengths(self, counts: Counts) -> list[Lengths]:
        """For each bottleneck and length of it, those that are not the same as others."""
        found = self._known.get(counts)
        if found is None:
            shapes = self._shapes_of(tuple(k for k, n in enumerate(counts) if n))
            self.work += 1 + len(shapes) // 2
            found = self._known[counts] = self._with_counts(shapes, counts)
        return found

    def _shapes_of(self, tiers: tuple[int, ...]) -> list[Shape]:
        """If somebody is in each of these `tiers`, and nobody in others."""
        found = self._shapes.get(tiers)
        if found is None:
            asked = [(i, length) for i in tiers for length in range(1, self.most + 1)]
            every = (self._with_bottleneck(tiers, *one) for one in asked)
            found = [one for one in dict.fromkeys(every) if one is not None]
            self._shapes[tiers] = found
        return found

    def _with_bottleneck(self, tiers: tuple[int, ...], tier: int, length: int) -> Shape | None:
        lengths = [0] * len(self.tiers)
        for k in tiers:
            own_s, other_s = self.tiers[k], self.tiers[tier]
            lengths[k] = shortest(own_s, other_s, length, self.alpha, self.most)
            if not lengths[k]:
                return None
        sure = (int(accepted(lengths[k], self.alpha) + _CLOSE) * self.tiers[k] for k in tiers)
        return tuple(lengths), max(lengths), min(sure)

    def _with_counts(self, shapes: list[Shape], counts: Counts) -> list[Lengths]:
        decodes, size_of = sum(counts), self.roofline.time_to_batch
        return [
            Lengths(
                lengths,
                decodes,
                sum(map(mul, counts, lengths)),
                steps,
                unit_s,
                size_of(unit_s, steps, decodes),
            )
            for lengths, steps, unit_s in shapes
        ]
