"""SlidingServe's chunks and selection (arXiv 2606.05933): two iterations seen together, and a knapsack of prompts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.table import Bools, Floats, Ints

BUCKETS = 128  # of time, in the knapsack


class Backlog:
    """Prompts in the order in which they will be processed: the attention work of the first so many tokens."""

    def __init__(self, pending: Ints, prior: Ints) -> None:
        """Tokens left and tokens computed of each prompt, [n]."""
        self._ends: list[int] = np.cumsum(pending).tolist()
        self._work: list[float] = np.cumsum(pending * (prior + pending / 2)).tolist()
        self._prior = prior.tolist()
        self.tokens = self._ends[-1] if self._ends else 0

    def work(self, tokens: int) -> float:
        """Sum of chunk * (prior + chunk / 2) over the first `tokens`."""
        i = bisect_left(self._ends, tokens)
        done, work = (self._ends[i - 1], self._work[i - 1]) if i else (0, 0.0)
        rest = tokens - done
        return work + (rest * (self._prior[i] + rest / 2) if rest else 0.0)


@dataclass(frozen=True, slots=True)
class TwoSteps:
    """The present iteration and the one after it: predicted times in seconds, each with all decodes."""

    cost: CostModel
    backlog: Backlog
    decodes: int
    context: int

    def first_s(self, chunk: int) -> float:
        work = Work(chunk, self.decodes, self.context, self.backlog.work(chunk))
        return self.cost.predict(work)

    def second_s(self, first: int, chunk: int) -> float:
        attention = self.backlog.work(first + chunk) - self.backlog.work(first)
        context = self.context + self.decodes  # each has grown by one token
        return self.cost.predict(Work(chunk, self.decodes, context, attention))


def first_chunk(
    steps: TwoSteps, slack_s: float, next_slack_s: float, most: int, step: int
) -> int | None:
    """Prompt tokens of the present iteration such that those of both iterations together are the most, each at most
    `most`: the first must end within `slack_s`, both within `next_slack_s`. Multiples of `step`, or all there are.
    None if not even the decodes alone end in time.

    Time is convex in both chunks, so that the sum is unimodal in the first: ternary search, then a comparison with the
    greedy choice, which rounding may favour. Something is done now if anything can be."""

    whole = min(most, steps.backlog.tokens)

    def in_time(chunk: int) -> bool:
        first_s = steps.first_s(chunk)
        return first_s <= slack_s and first_s + steps.second_s(chunk, 0) <= next_slack_s

    def worth(chunk: int) -> tuple[int, float, int]:
        """Tokens of both iterations; if that is equal, less time, then an earlier first token."""
        first_s = steps.first_s(chunk)
        left = min(most, steps.backlog.tokens - chunk)
        second = _largest(
            left, step, lambda tokens: first_s + steps.second_s(chunk, tokens) <= next_slack_s
        )
        return chunk + second, -first_s - steps.second_s(chunk, second), chunk

    if not in_time(0):
        return None
    greedy = _largest(whole, step, in_time)
    if greedy == steps.backlog.tokens:
        return greedy
    low, high = min(1, greedy), -(-greedy // step)
    while high - low > 2:
        third = (high - low) // 3
        left, right = low + third, high - third
        if worth(left * step) < worth(right * step):
            low = left + 1
        else:
            high = right
    near = [min(i * step, greedy) for i in range(low, high + 1)]
    return max([*near, greedy], key=worth)


def knapsack(weights_s: Floats, capacity_s: float) -> Bools:
    """Which prompts, [n], such that the most of them can be processed within `capacity_s` (0/1 knapsack, equal values;
    times are rounded up to 1/128 of the capacity)."""
    chosen = np.zeros(len(weights_s), dtype=bool)
    if capacity_s <= 0:
        return chosen
    weights = np.maximum(np.ceil(np.minimum(weights_s / capacity_s, 2) * BUCKETS), 1).astype(int)
    best = np.zeros(BUCKETS + 1, dtype=int)
    taken = np.zeros((len(weights), BUCKETS + 1), dtype=bool)
    for i, weight in enumerate(weights.tolist()):
        if weight <= BUCKETS:
            with_it = best[: BUCKETS + 1 - weight] + 1
            taken[i, weight:] = with_it > best[weight:]
            best[weight:] = np.maximum(with_it, best[weight:])
    room = BUCKETS
    for i in range(len(weights) - 1, -1, -1):
        if taken[i, room]:
            chosen[i] = True
            room -= int(weights[i])
    return chosen


def _largest(most: int, step: int, holds: Callable[[int], bool]) -> int:
    """The largest multiple of `step`, or else `most`, that it holds for, given that it holds up to somewhere; at
    least 0."""
    low, high = 0, -(-most // step)
    while low < high:
        middle = (low + high + 1) // 2
        if holds(min(middle * step, most)):
            low = middle
        else:
            high = middle - 1
    return min(low * step, most)
