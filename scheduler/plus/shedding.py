"""Which prompts can be in time, when not all can? As many as possible: whenever one would be late in the order of
deadlines, the longest of those before it and itself is given up (J. M. Moore, Management Science 15, 1968, with
Hodgson's rule: no schedule of one machine has fewer late jobs)."""

from __future__ import annotations

import heapq

import numpy as np

from accelgen.scheduler.table import Bools, Floats


def keepable(takes_s: Floats, due_s: Floats, start_s: float) -> Bools:
    """Jobs in ascending order of `due_s` that take `takes_s` each from `start_s` on, [n]: which of them are kept."""
    kept = np.ones(len(takes_s), dtype=bool)
    if (start_s + np.cumsum(takes_s) <= due_s).all():
        return kept
    heap: list[tuple[float, int]] = []
    at_s = start_s
    for i, (take_s, limit_s) in enumerate(zip(takes_s.tolist(), due_s.tolist(), strict=True)):
        heapq.heappush(heap, (-take_s, i))
        at_s += take_s
        if at_s > limit_s:
            longest_s, given_up = heapq.heappop(heap)
            at_s += longest_s
            kept[given_up] = False
    return kept
