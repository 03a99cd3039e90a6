"""Who waits for memory in which order: CacheOPT's slack (arXiv 2503.13773, section 3.3.2).

A new request has the slack that its TTFT objective leaves, one that was preempted that of its TBT objective, both less
the iterations it needs, each as long as the longest one so far. Who has none left is *critical*: it must start in the
next iteration.

The time by which a request must start does not change as time passes, so the order goes by that. Reconstructed: a
prompt takes several iterations if it is cut into chunks; a request preempted before its first token still has its TTFT
objective; one with an end-to-end objective must start so early that its predicted output can follow at one token per
longest iteration; "historical" is the last so many iterations, since one hiccup would else count for ever.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.slack import NEAR_S
from accelgen.scheduler.table import Bools, Floats, Ints, RequestTable

WINDOW = 200  # iterations


class LongestRun(Struct, frozen=True):
    """The seconds of the last iterations, as a value."""

    runs_s: tuple[float, ...] = ()

    def after(self, run_s: float) -> LongestRun:
        """With one more iteration."""
        return LongestRun((*self.runs_s[1 - WINDOW :], run_s))

    def longest_s(self, default_s: float) -> float:
        """The longest one; `default_s` before any."""
        return max(self.runs_s, default=default_s)


def latest_start_s(table: RequestTable, slots: Ints, chunk: float, longest_s: float) -> Floats:
    """By when each of `slots` must be in a batch, [n], if an iteration takes `longest_s` and processes `chunk` tokens
    of a prompt. Slack is this minus now."""
    pending = table.length[slots] - table.computed[slots]
    iterations = np.ceil(np.maximum(pending, 1) / chunk)
    generated = table.length[slots] - table.prompt_len[slots]
    next_due_s = table.last_s[slots] + table.tpot_s[slots]
    due_s = np.where(generated > 0, next_due_s, table.first_due_s[slots])
    end_s = table.end_due_s[slots]
    to_come = np.maximum(table.predicted_output[slots] - generated, 1)
    spread_s = end_s - (to_come - 1) * longest_s  # the token due at `due_s` is one of them
    due_s = np.where(end_s < NEAR_S, np.minimum(due_s, spread_s), due_s)
    start_s: Floats = due_s - iterations * longest_s
    return start_s


def slack_order(table: RequestTable, slots: Ints, chunk: float, longest_s: float) -> Ints:
    """`slots` by slack, the smallest first; of equals the smaller id."""
    by_start = latest_start_s(table, slots, chunk, longest_s)
    order: Ints = slots[np.lexsort((table.ids[slots], by_start))]
    return order


def critical(latest_s: Floats, now_s: float, longest_s: float) -> Bools:
    """Who misses its objective unless it is in the iteration that starts now, [n]: there is no time for another one
    before it."""
    late: Bools = latest_s - now_s < longest_s
    return late
