"""What is done with a policy's decision before it is carried out: checked, and cut to the limits of the server."""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.cost_model import CostModel
from accelgen.scheduler.policy import Decision, Limits, work_of_decision
from accelgen.scheduler.table import RUNNING, WAITING, RequestTable


class BadDecision(RuntimeError):
    """A policy answered with something that cannot be executed; the text says what."""


def check(decision: Decision, table: RequestTable, policy: str) -> None:
    """Raises BadDecision unless every entry can be processed and everyone preempted runs."""
    slots = np.array(decision.slots, dtype=np.int64)
    counts = np.array(decision.counts, dtype=np.int64)
    named = [*decision.slots, *decision.preempt, *decision.requeue]
    if len(slots) != len(counts) or len(set(named)) != len(named):
        raise BadDecision(f"{policy}: a request is named twice, or counts are missing")
    if len(slots) and not (
        slots.min() >= 0
        and slots.max() < len(table.requests)
        and (table.state[slots] >= WAITING).all()
        and (counts >= 1).all()
        and (counts <= table.remaining(slots)).all()
    ):
        raise BadDecision(f"{policy}: an entry that is not there to be processed")
    if any(table.state[slot] != RUNNING for slot in decision.preempt):
        raise BadDecision(f"{policy}: preempts a request that does not run")
    if any(table.state[slot] != WAITING for slot in decision.requeue):
        raise BadDecision(f"{policy}: requeues a request that does not wait")


def clip(decision: Decision, table: RequestTable, limits: Limits, cost: CostModel) -> None:
    """Holds the decision to the limits by cutting prompt chunks: for tokens the last ones, for time the largest."""
    excess = sum(decision.counts) - limits.max_num_batched_tokens
    for i in range(len(decision.counts) - 1, -1, -1) if excess > 0 else ():
        cut = min(max(excess, 0), decision.counts[i] - 1)
        decision.counts[i] -= cut
        excess -= cut
    work = work_of_decision(table, decision)
    while cost.predict(work) > limits.max_step_s:
        largest = max(range(len(decision.counts)), key=decision.counts.__getitem__)
        if decision.counts[largest] <= table.block_size:
            break
        decision.counts[largest] = max(table.block_size, decision.counts[largest] // 2)
        work = work_of_decision(table, decision)
