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
    ends_s = start_s + np.cumsum(takes_s)
    late = np.flatnonzero(ends_s > due_s)
    if not len(late):
        return kept
    first = int(late[0])  # nobody before it is late
    heap = list(zip((-takes_s[:first]).tolist(), range(first), strict=True))
    heapq.heapify(heap)
    at_s = float(ends_s[first - 1]) if first else start_s
    rest = zip(takes_s[first:].tolist(), due_s[first:].tolist(), strict=True)
    for i, (take_s, limit_s) in enumerate(rest, first):
        heapq.heappush(heap, (-take_s, i))
        at_s += take_s
        if at_s > limit_s:
            longest_s, given_up = heapq.heappop(heap)
            at_s += longest_s
            kept[given_up] = False
    return kept
