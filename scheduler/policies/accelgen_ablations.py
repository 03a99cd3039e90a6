"""AccelGen without one of its three parts, each time exactly that part (the paper's figures: simulator/published.py;
rules: docs/policies.md).

`accelgen-no-chunking`: no dynamic chunking. The batch is not sized by objectives: its budget is what the engine takes,
and prompts are processed whole, however long (beyond the engine's limit they are cut there).

`accelgen-no-ordering`: no prioritisation by objectives. The order is that of arrival, nobody is urgent, and the window
of similar requests is one of similar arrivals; the latest arrival gives way. The budget is the same.

`accelgen-no-batching`: no multi-resource batching. After the urgent set, requests are taken in the order of T_r until
the first new one that does not fit, whatever their demands for tokens and blocks; those that run go on.

Reconstructed: all three, because the sources give the names of the ablations and their losses only.
"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.policies.accelgen import AccelGen, Memory, bounded
from accelgen.scheduler.policies.distance import Contest, take_in_order
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.policies.slack import Pace, Slack
from accelgen.scheduler.policies.urgent import Candidates
from accelgen.scheduler.policy import View
from accelgen.scheduler.table import Bools, Floats, Ints


class NoChunking(AccelGen):
    name = "accelgen-no-chunking"

    def _budget(self, view: View, state: Memory, found: Candidates, tightest_s: float) -> int:
        return bounded(view, found, view.limits.max_num_batched_tokens)


class NoOrdering(AccelGen):
    name = "accelgen-no-ordering"

    def order_key(self, view: View, slot: int, state: Memory) -> float:
        return float(view.table.arrival_s[slot])

    def _rank_s(self, view: View, slots: Ints, times: Slack, pace: Pace) -> Floats:
        arrival_s: Floats = view.table.arrival_s[slots]
        waited_s: Floats = arrival_s - arrival_s.min(initial=np.inf)
        return waited_s + pace.longest_s  # below that it would be urgent


class NoBatching(AccelGen):
    name = "accelgen-no-batching"

    def _fill(self, batch: Batch, contest: Contest) -> bool:
        return take_in_order(batch, contest)

    def _may_take(self, batch: Batch, found: Candidates) -> Bools:
        return np.ones(len(found.slots), dtype=bool)  # the first that does not fit ends it
