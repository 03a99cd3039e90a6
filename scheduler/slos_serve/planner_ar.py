"""Batches without speculation: a simulation of the next-token deadlines (arXiv 2504.08784, dynamic batch sizes).

Every decode has a deadline for its next token, at first one TPOT away. Each batch is as large as the time to the
earliest deadline allows; every decode whose previous deadline lies before its end takes a token, the rest is for
prompts. After any batch the deadline of each decode is at least one TPOT away, so that plans can be put one behind the
other, each starting afresh, and no decode falls behind.

The batches of a window are those of a longer one, but for the last, which the end of the window cuts. So one endless
simulation per set of decodes, made as far as somebody has asked, answers for every window. Reconstructed: a last batch
that has no room for a prompt is left out, and beyond `MOST_SLICES` batches the simulation repeats.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from itertools import chain, repeat
from math import inf

from accelgen.scheduler.slos_serve.roofline import Roofline
from accelgen.scheduler.slos_serve.slices import Slice, steady_s
from accelgen.scheduler.slos_serve.tiers import Counts

MOST_SLICES = 128
_CLOSE_S = 1e-9  # times are sums of floats


class Timeline:
    """The endless simulation of one set of decodes: `counts[k]` of them have `tpots_s[k]` seconds per token.

    `ends_s[i]` and `gains[i]` are time and prompt tokens after i batches. `is_broken`: the decodes could not be kept
    up with in the batch after the last."""

    def __init__(self, roofline: Roofline, tpots_s: tuple[float, ...], counts: Counts) -> None:
        self._roofline, self._tpots_s, self._counts = roofline, tpots_s, counts
        self._decodes = sum(counts)
        self.ends_s, self.gains = [0.0], [0]
        self.slices: list[Slice] = []
        self.is_broken = False
        # Deadlines before batch i: those of tiers that nobody is in are never reached.
        first_s = [tpot_s if n else inf for tpot_s, n in zip(tpots_s, counts, strict=True)]
        self._due_s = [first_s]

    def plan(self, window_s: float) -> tuple[int, float] | None:
        """As `Planner.plan`."""
        if window_s <= 0:
            return 0, 0.0
        self._extend_to(window_s)
        if self.is_broken and window_s > min(self._due_s[-1]) - _CLOSE_S:
            return None
        repeats, at, last = self._place(window_s)
        gain = repeats * self.gains[-1] + self.gains[at]
        elapsed_s = repeats * self.ends_s[-1] + self.ends_s[at]
        if last is None:
            return gain, elapsed_s
        return gain + last.prefill, elapsed_s + last.seconds

    def window(self, window_s: float) -> Iterator[Slice]:
        """The batches of `plan`."""
        if window_s <= 0 or self.plan(window_s) is None:
            return iter(())
        repeats, at, last = self._place(window_s)
        whole = chain.from_iterable(repeat(self.slices, repeats))
        return chain(whole, self.slices[:at], [] if last is None else [last])

    def reach(self, tokens: int) -> float:
        """As `Planner.reach`."""
        if tokens <= 0:
            return 0.0
        while self.gains[-1] < tokens and self._extend():
            pass
        most = self.gains[-1]
        if most < tokens and (self.is_broken or most == 0):
            return inf
        repeats = (tokens - 1) // most
        rest = tokens - repeats * most
        at = bisect_left(self.gains, rest)
        size = min(rest - self.gains[at - 1] + self._decodes, self.slices[at - 1].size)
        last_s = self._roofline.seconds(size, decodes=self._decodes)
        return repeats * self.ends_s[-1] + self.ends_s[at - 1] + last_s

    def _place(self, window_s: float) -> tuple[int, int, Slice | None]:
        """How often the whole simulation fits into the window, how many batches after that, and the one that is cut by
        its end."""
        span_s = inf if self.is_broken else self.ends_s[-1]
        repeats = int(window_s / span_s) if window_s > span_s > 0 else 0
        rest_s = window_s - repeats * self.ends_s[-1]
        at = min(bisect_right(self.ends_s, rest_s + _CLOSE_S) - 1, len(self.slices))
        if at == len(self.slices) and not self.is_broken:
            return repeats, at, None
        last = self._cut(at, rest_s)
        return repeats, at, last if last is not None and last.prefill > 0 else None

    def _extend_to(self, window_s: float) -> None:
        while self.ends_s[-1] < window_s and self._extend():
            pass

    def _extend(self) -> bool:
        """Simulates another batch; False if there is none."""
        if self.is_broken or len(self.slices) == MOST_SLICES:
            return False
        due_s = self._due_s[-1]
        found = self._cut(len(self.slices), min(due_s))
        self.is_broken = found is None
        if found is None:
            return False
        self.slices.append(found)
        self.ends_s.append(self.ends_s[-1] + found.seconds)
        self.gains.append(self.gains[-1] + found.prefill)
        steps = zip(due_s, self._tpots_s, found.lengths, strict=True)
        self._due_s.append([due + tpot * length for due, tpot, length in steps])
        return True

    def _cut(self, at: int, until_s: float) -> Slice | None:
        """Batch `at`, to end until then; None if that is too early for the decodes that it must have."""
        begin_s = self.ends_s[at]
        size = self._roofline.time_to_batch(until_s - begin_s, decodes=self._decodes)
        if size < 1:
            return None
        seconds = self._roofline.seconds(size, decodes=self._decodes)
        end_s = begin_s + seconds
        before_s = zip(self._due_s[at], self._tpots_s, strict=True)
        lengths = tuple(int(due - tpot < end_s - _CLOSE_S) for due, tpot in before_s)
        left = size - sum(n * length for n, length in zip(self._counts, lengths, strict=True))
        return Slice(size, lengths, left, seconds) if left >= 0 else None


class ArPlanner:
    """A Planner for tiers of `tiers` seconds per token; it keeps what it has found: a Timeline for each set of decodes,
    and answers. Within the tightest pace of a set there is one batch: that needs no Timeline."""

    def __init__(self, roofline: Roofline, tiers: tuple[float, ...]) -> None:
        self.roofline, self.tiers = roofline, tiers
        self._timelines: dict[Counts, Timeline] = {}
        self._steady: dict[Counts, bool] = {}
        self._plans: dict[tuple[float, Counts], tuple[int, float] | None] = {}
        self.work, self.steady_s = 0, steady_s(tiers)

    def plan(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        if window_s <= 0:
            return 0, 0.0
        asked = window_s, counts
        if asked not in self._plans:
            self.work += 1
            found = self._one_batch(window_s, counts)
            self._plans[asked] = self._simulated(window_s, counts) if found is None else found
        return self._plans[asked]

    def slices(self, window_s: float, counts: Counts) -> Iterator[Slice]:
        one = self._one_batch(window_s, counts) if window_s > 0 else None
        if one is None:
            return self._timeline(counts).window(window_s)
        prefill, seconds = one
        if not prefill:
            return iter(())
        lengths = tuple(int(n > 0) for n in counts)
        return iter((Slice(prefill + sum(counts), lengths, prefill, seconds),))

    def lasting(self, counts: Counts) -> Iterator[Slice]:
        return self.slices(self.steady_s, counts)

    def reach(self, tokens: int, counts: Counts) -> float:
        if tokens <= 0:
            return 0.0
        self.work += 1
        decodes = sum(counts)
        first = self.roofline.time_to_batch(self._tightest_s(counts), decodes=decodes)
        if tokens + decodes <= first:
            return self.roofline.seconds(tokens + decodes, decodes=decodes)
        timeline = self._timeline(counts)
        before = len(timeline.slices)
        found = timeline.reach(tokens)
        self.work += len(timeline.slices) - before
        return found

    def is_steady(self, counts: Counts) -> bool:
        if counts not in self._steady:
            self._steady[counts] = self._keeps_pace(counts)
        return self._steady[counts]

    def _keeps_pace(self, counts: Counts) -> bool:
        """No batch is harder than the first: each has at least one TPOT, the first exactly that, and all decodes take
        part in it. Only where it is full to the last token does it depend on rounding what the others hold."""
        decodes = sum(counts)
        if not decodes:
            return True
        self.work += 1
        size = self.roofline.time_to_batch(self._tightest_s(counts), decodes=decodes)
        return size > decodes or (
            size == decodes and self._simulated(self.steady_s, counts) is not None
        )

    def _tightest_s(self, counts: Counts) -> float:
        """The tightest pace of these decodes, infinite without any."""
        return next((tier for tier, n in zip(self.tiers, counts, strict=True) if n), inf)

    def _one_batch(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        """`plan` of a window that is over before any token is due: one batch, in which all decodes take part. None if
        there may be more than one."""
        if window_s > self._tightest_s(counts) - 2 * _CLOSE_S:
            return None
        decodes = sum(counts)
        size = self.roofline.time_to_batch(window_s, decodes=decodes)
        if size >= self.roofline.most:
            return None
        if size <= decodes:
            return 0, 0.0
        return size - decodes, self.roofline.seconds(size, decodes=decodes)

    def _simulated(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        timeline = self._timeline(counts)
        before = len(timeline.slices)
        found = timeline.plan(window_s)
        self.work += len(timeline.slices) - before
        return found

    def _timeline(self, counts: Counts) -> Timeline:
        found = self._timelines.get(counts)
        if found is None:
            found = self._timelines[counts] = Timeline(self.roofline, self.tiers, counts)
        return found
