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

from msgspec import Struct

from accelgen.scheduler.slos_serve.planner_ar import Timeline
from accelgen.scheduler.slos_serve.roofline import Roofline
from accelgen.scheduler.slos_serve.slices import Slice, steady_s
from accelgen.scheduler.slos_serve.tiers import Counts

ALPHA, MOST_DRAFTS = 0.6, 10  # the code's defaults
_CLOSE = 1e-9


class Lengths(Struct, frozen=True):
    """Tokens verified per decode of each tier (0: nobody is in it), `used` by all `decodes`, and the longest time that
    a batch may take with them."""

    lengths: tuple[int, ...]
    decodes: int
    used: int
    steps: int
    unit_s: float


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
        room = self._size(one.unit_s, one) - one.used
        if room < 1:
            return inf
        if tokens <= room:
            least_s = self.roofline.seconds(tokens + one.used, one.steps, one.decodes)
            return min(one.unit_s, least_s)
        return ceil(tokens / room) * one.unit_s

    def _size(self, limit_s: float, one: Lengths) -> int:
        """Of the largest batch with these lengths that takes no longer."""
        return self.roofline.time_to_batch(limit_s, one.steps, one.decodes)

    def _best(self, window_s: float, counts: Counts) -> tuple[int, Slice] | None:
        """How many batches, and each of them."""
        best: tuple[int, Slice] | None = None
        for one in self._lengths(counts):
            unit_s = min(one.unit_s, window_s)
            size = self._size(unit_s, one)
            prefill, times = size - one.used, int(window_s / unit_s + _CLOSE)
            if (
                prefill < 0 and unit_s < one.unit_s
            ):  # the window is too short, and nothing is due in it
                unit_s, times = one.unit_s, 0
                size = self._size(unit_s, one)
                prefill = size - one.used
            if prefill >= 0 and (best is None or times * prefill > best[0] * best[1].prefill):
                best = times, Slice(size, one.lengths, prefill, unit_s)
        return best

    def _lengths(self, counts: Counts) -> list[Lengths]:
        """One for each bottleneck and length of it."""
        found = self._known.get(counts)
        if found is None:
            tiers = [k for k, n in enumerate(counts) if n]
            asked = [(i, length) for i in tiers for length in range(1, self.most + 1)]
            self.work += len(asked)
            every = [self._with_bottleneck(counts, *one) for one in asked]
            found = self._known[counts] = [one for one in every if one is not None]
        return found

    def _with_bottleneck(self, counts: Counts, tier: int, length: int) -> Lengths | None:
        lengths = [0] * len(counts)
        for k, n in enumerate(counts):
            if n:
                lengths[k] = shortest(
                    self.tiers[k], self.tiers[tier], length, self.alpha, self.most
                )
                if not lengths[k]:
                    return None
        paces = zip(lengths, self.tiers, strict=True)
        unit_s = min(int(accepted(s, self.alpha) + _CLOSE) * tpot_s for s, tpot_s in paces if s)
        used = sum(n * s for n, s in zip(counts, lengths, strict=True))
        return Lengths(tuple(lengths), sum(counts), used, max(lengths), unit_s)
