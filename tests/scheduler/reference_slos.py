"""SLOs-Serve's planning written down a second time, as plainly as can be: no memo, no formula, every subset and order.

Batches are sought token by token, windows simulated from their beginning each time, requests admitted by trying
everything. Times in seconds; a batch of n tokens takes `seconds(n)`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, permutations
from math import inf

from accelgen.scheduler.slos_serve.admission import Candidate

Seconds = Callable[[int], float]
CLOSE = 1e-9


def largest(seconds: Seconds, limit_s: float, most: int) -> int:
    size = 0
    while size < most and seconds(size + 1) <= limit_s + CLOSE:
        size += 1
    return size


def batches(
    seconds: Seconds, most: int, tiers: Sequence[float], counts: Sequence[int], window_s: float
) -> list[tuple[float, list[int], int]] | None:
    """(end, tokens per decode of each tier, prompt tokens) of each batch in the window; None if a decode is late."""
    clock_s, done = 0.0, []
    due = {k: tiers[k] for k, n in enumerate(counts) if n}
    while clock_s < window_s - CLOSE:
        due_s = min(due.values(), default=inf)
        whole = most if due_s == inf else largest(seconds, due_s - clock_s, most)
        size = largest(seconds, window_s - clock_s, whole)
        end_s = clock_s + seconds(size)
        taking = [k for k in due if due[k] - tiers[k] < end_s - CLOSE]
        left = size - sum(counts[k] for k in taking)
        if size == whole and (size == 0 or left < 0):
            return None if due_s <= window_s + CLOSE else done
        if size < whole and left <= 0:  # cut by the window, and no room for a prompt
            return done
        for k in taking:
            due[k] += tiers[k]
        done.append((end_s, [int(k in taking) for k in range(len(tiers))], left))
        clock_s = end_s
    return done


def supply(
    seconds: Seconds,
    most: int,
    tiers: Sequence[float],
    counts: Sequence[int],
    steady_s: float,
    chosen: Sequence[Candidate],
) -> list[tuple[float, int]] | None:
    """(end, prompt tokens) of all batches until the last deadline, for requests that decode from their deadlines on;
    None if decodes are late, or will be."""
    counts, clock_s, found = list(counts), 0.0, []
    for one in sorted(chosen, key=lambda one: one.due_s):
        window = batches(seconds, most, tiers, counts, one.due_s - clock_s)
        if window is None:
            return None
        found += [(clock_s + end_s, prefill) for end_s, _, prefill in window]
        clock_s = found[-1][0] if found else 0.0
        counts[one.tier] += one.decodes
        if batches(seconds, most, tiers, counts, steady_s) is None:
            return None
    return found


def in_time(order: Sequence[Candidate], found: Sequence[tuple[float, int]]) -> bool:
    """Whether each prompt is complete by its deadline if they are processed in this order."""
    needed = 0
    for one in order:
        needed += one.tokens
        made, end_s = 0, inf
        for batch_end_s, prefill in found:
            made += prefill
            if made >= needed:
                end_s = min(end_s, batch_end_s)
        if end_s > one.due_s + CLOSE:
            return False
    return True


def best_profit(
    seconds: Seconds,
    most: int,
    tiers: Sequence[float],
    counts: Sequence[int],
    steady_s: float,
    candidates: Sequence[Candidate],
    blocks: int,
    seats: int,
) -> float | None:
    """The most profit of any set with all old requests in it, over all orders of its prompts; None if there is none."""
    old = [one for one in candidates if not one.is_new]
    new = [one for one in candidates if one.is_new]
    best = None
    for size in range(len(new) + 1):
        for more in combinations(new, size):
            if sum(one.blocks for one in more) > blocks or sum(one.decodes for one in more) > seats:
                continue
            chosen = [*old, *more]
            profit = sum(one.profit for one in chosen)
            if best is not None and profit <= best:
                continue
            found = supply(seconds, most, tiers, counts, steady_s, chosen)
            if found is not None and any(in_time(order, found) for order in permutations(chosen)):
                best = profit
    return best
