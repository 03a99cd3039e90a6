"""What is done with a policy's decision before it is carried out: checked, and cut to the limits of the server."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.policy import Decision, Limits, is_decode
from accelgen.scheduler.table import RUNNING, WAITING, Bools, Ints, RequestTable


class BadDecision(RuntimeError):
    """A policy answered with something that cannot be executed; the text says what."""


@dataclass(slots=True)
class Entries:
    """What a decision processes, [n] each: `counts` tokens of the requests in `slots`, after the `starts` tokens that
    are computed; which of them decode, and how many drafted tokens are verified behind a decode's own."""

    slots: Ints
    counts: Ints
    starts: Ints
    decode: Bools
    drafts: Ints | None = None

    @property
    def work(self) -> Work:
        """The features of the iteration."""
        return self.work_with(self.drafts)

    def work_with(self, drafts: Ints | None) -> Work:
        """The features with other drafts. A decode with drafts is a short chunk for the device."""
        if drafts is None:
            return Work.of(self.starts, self.counts, self.decode)
        return Work.of(self.starts, self.counts + drafts, self.decode & (drafts == 0))

    def part(self, kept: list[int]) -> Entries:
        """Those at the positions `kept`, ascending."""
        if len(kept) == len(self.slots):
            return self
        at = np.array(kept, dtype=np.int64)
        drafts = None if self.drafts is None else self.drafts[at]
        return Entries(self.slots[at], self.counts[at], self.starts[at], self.decode[at], drafts)


def check(decision: Decision, table: RequestTable, policy: str) -> Entries:
    """Raises BadDecision unless every entry can be processed and everyone preempted runs."""
    slots = np.array(decision.slots, dtype=np.int64)
    counts = np.array(decision.counts, dtype=np.int64)
    named = [*decision.slots, *decision.preempt]
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
    if any(table.requests[slot] is None for slot in decision.declined):
        raise BadDecision(f"{policy}: declines a request that is not there")
    if decision.swap and not {*decision.swap} <= {*decision.preempt}:
        raise BadDecision(f"{policy}: swaps a request that it does not preempt")
    if decision.allocate or decision.embed:
        _check_blocks(decision, table, policy)
    entries = Entries(slots, counts, table.computed[slots], is_decode(table, slots))
    if decision.drafts is not None:
        entries.drafts = drafts = np.array(decision.drafts, dtype=np.int64)
        if len(drafts) != len(slots) or drafts.min(initial=0) < 0:
            raise BadDecision(f"{policy}: drafts are missing, or fewer than none")
        able = entries.decode & (table.state[slots] == RUNNING)
        if (drafts[~able] > 0).any():
            raise BadDecision(f"{policy}: drafts for a request that does not decode")
    return entries


def _check_blocks(decision: Decision, table: RequestTable, policy: str) -> None:
    """Blocks are given to, and lent by, requests that run, and none that is preempted."""
    running = {*table.running.tolist()} - {*decision.preempt}
    if not decision.allocate.keys() <= running | {*decision.slots}:
        raise BadDecision(f"{policy}: allocates blocks for a request that does not run")
    if min(decision.allocate.values(), default=0) < 0:
        raise BadDecision(f"{policy}: allocates fewer than 0 blocks")
    if not decision.embed.keys() <= running | {*decision.slots}:
        raise BadDecision(f"{policy}: embeds a request that does not run")
    if not running >= {*decision.embed.values()}:
        raise BadDecision(f"{policy}: embeds a request in one that does not run")
    if any(guest == host for guest, host in decision.embed.items()):
        raise BadDecision(f"{policy}: embeds a request in itself")


def clip(entries: Entries, block_size: int, limits: Limits, cost: CostModel) -> Work:
    """Holds entries to the limits, drafts first: for tokens the last ones, for time all. Then by cutting prompt chunks:
    for tokens the last ones, for time the largest. Returns the features of what is left."""
    _clip_drafts(entries, limits, cost)
    counts = entries.counts
    excess = int(counts.sum()) - limits.max_num_batched_tokens
    for i in range(len(counts) - 1, -1, -1) if excess > 0 else ():
        cut = min(max(excess, 0), int(counts[i]) - 1)
        counts[i] -= cut
        excess -= cut
    work = entries.work
    while cost.predict(work) > limits.max_step_s:
        largest = int(counts.argmax())
        if counts[largest] <= block_size:
            break
        counts[largest] = max(block_size, counts[largest] // 2)
        work = entries.work
    return work


def _clip_drafts(entries: Entries, limits: Limits, cost: CostModel) -> None:
    drafts = entries.drafts
    if drafts is None:
        return
    left = limits.max_num_batched_tokens - int(entries.counts.sum())
    drafts = np.clip(left - (np.cumsum(drafts) - drafts), 0, drafts)
    entries.drafts = drafts if drafts.any() else None
    if entries.drafts is not None and cost.predict(entries.work) > limits.max_step_s:
        entries.drafts = None
