"""What several policies share: their plainest halves, the batch of one iteration, victims, the choice of a replica."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policy import Decision, StepStats, Verdict, Victims, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import WAITING, Ints


class Memoryless:
    """A policy without its rule: it remembers nothing, and a request goes to the replica with the least load."""

    def initial(self) -> None:
        return None

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def observe(self, step: StepStats, state: None) -> None:
        return None


class FirstCome(Memoryless):
    """And requests wait in order of arrival."""

    def order_key(self, view: View, slot: int, state: None) -> float:
        return float(view.table.arrival_s[slot])


class Batch:
    """The iteration being put together: what is taken, and what is left of tokens, blocks and sequences.

    Counts in the same way as the table projects; blocks of victims come back at once. `promised` blocks are those that
    running requests still need for tokens they already have: a newcomer must leave them alone (vLLM's block manager
    admits a prompt only if it can have the blocks of the whole of it)."""

    def __init__(self, view: View, tokens: int) -> None:
        self.view = view
        self.tokens = tokens
        self.blocks = view.free_blocks
        self.promised = promised_blocks(view)
        # Pins give way to running requests, not to newcomers, unless only pins are in the way.
        self.reserved = view.pinned_blocks if view.table.seated else 0
        self.seats = view.limits.max_num_seqs - view.table.seated
        self.slots: list[int] = []
        self.counts: list[int] = []
        self.preempted: list[int] = []

    def block_demand(self, slot: int, count: int) -> int:
        """Further blocks that `count` more tokens of `slot` need, by the terms of the memory policy."""
        table = self.view.table
        needed = -(-(int(table.computed[slot]) + count) // table.block_size)
        if table.has_terms:
            needed += int(table.padding[slot] - table.offered[slot])
        return max(0, needed - int(table.blocks[slot]))

    def pending(self, slot: int) -> int:
        """Tokens of `slot` that wait to be processed."""
        return int(self.view.table.length[slot] - self.view.table.computed[slot])

    @property
    def room(self) -> int:
        """Blocks that a request which has not started may count on."""
        return self.blocks - self.promised - self.reserved

    def admits(self, slot: int) -> bool:
        """Whether a waiting request may start: a free seat, and blocks for all its pending tokens."""
        return self.may_start(self.block_demand(slot, self.pending(slot)))

    def may_start(self, blocks: int) -> bool:
        """As `admits`, of a request that needs so many blocks for all its pending tokens."""
        return self.seats > 0 and self.tokens > 0 and blocks <= self.room

    def largest_chunk(self, slot: int, remaining: int) -> int:
        """The most tokens of `slot`, at most `remaining`, that the tokens and blocks left allow."""
        table = self.view.table
        blocks = int(table.blocks[slot]) + self.blocks
        if table.has_terms:
            blocks += int(table.offered[slot] - table.padding[slot])
        room = blocks * table.block_size - int(table.computed[slot])
        return max(0, min(remaining, self.tokens, room))

    def take(self, slot: int, count: int) -> None:
        """Adds an entry that fits."""
        demand = self.block_demand(slot, count)
        assert count > 0 and count <= self.tokens and demand <= self.blocks, (count, demand)
        if self.view.table.state[slot] == WAITING:
            self.seats -= 1
            self.promised += self.block_demand(slot, self.pending(slot))
        self.slots.append(slot)
        self.counts.append(count)
        self.tokens -= count
        self.blocks -= demand
        self.promised -= demand

    def take_all(self, slots: Ints, counts: Ints, demands: Ints) -> None:
        """Adds entries of running requests that fit together (vectorised `take`)."""
        self.slots.extend(slots.tolist())
        self.counts.extend(counts.tolist())
        self.tokens -= int(counts.sum())
        self.blocks -= int(demands.sum())
        self.promised -= int(demands.sum())
        assert self.tokens >= 0 and self.blocks >= 0

    def preempt(self, slot: int) -> None:
        """Drops the KV of a running request that is not in the batch."""
        self.preempted.append(slot)
        self.blocks += int(self.view.table.blocks[slot])
        self.promised -= self.block_demand(slot, self.pending(slot))
        self.seats += 1

    def decision(self) -> Decision:
        return Decision(self.slots, self.counts, self.preempted)


def take_decodes(batch: Batch, slots: Ints, victims: Victims) -> None:
    """All decodes of `slots` that fit; while one lacks a block, the first of `victims` (or of those that the memory
    policy says) that is not yet in the batch is preempted: with `latest_first` vLLM's rule, recompute the latest
    arrival."""
    table = batch.view.table
    ones = np.ones(len(slots), dtype=np.int64)
    demands = table.block_demand(slots, ones)
    if len(slots) <= batch.tokens and int(demands.sum()) <= batch.blocks:
        batch.take_all(slots, ones, demands)
        return
    order = (batch.view.victims or victims)(batch.view).tolist()
    gone: set[int] = set()
    taken = set(batch.slots)
    for slot in slots.tolist():
        if slot in gone or batch.tokens < 1:
            continue
        while batch.block_demand(slot, 1) > batch.blocks:
            victim = next(v for v in order if v not in gone and v not in taken)
            gone.add(victim)
            batch.preempt(victim)
            if victim == slot:
                break
        if slot not in gone:
            batch.take(slot, 1)
            taken.add(slot)


def take_begun(batch: Batch, slots: Ints) -> None:
    """As much as fits of what is left of each prompt that has begun, in order."""
    for slot in slots.tolist():
        chunk = batch.largest_chunk(slot, batch.pending(slot))
        if chunk and slot not in batch.preempted:
            batch.take(slot, chunk)


def make_room(batch: Batch, ready: Ints, victims: Victims) -> None:
    """Nothing of what is ready fitted, and nobody was preempted: the first victim makes room for the next iteration."""
    if not batch.slots and not batch.preempted and len(ready):
        batch.preempt(int((batch.view.victims or victims)(batch.view)[0]))


def at_least(name: str, value: float, least: float, unit: str = "") -> None:
    """Raises ValueError unless the parameter `name` is a finite number, at least `least`."""
    if not least <= value < inf:
        raise ValueError(f"{name}: {value}{unit and ' ' + unit}, must be at least {least}")


def promised_blocks(view: View) -> int:
    """Blocks that running requests, and those that come back from the host, still need for the tokens they have."""
    table = view.table
    running = table.running
    if table.seated > len(running):
        running = np.concatenate([running, table.returning])
    return int(table.block_demand(running, table.length[running] - table.computed[running]).sum())


def latest_first(view: View) -> Ints:
    """Running slots, latest arrival first."""
    running = view.table.running
    order: Ints = running[np.argsort(-view.table.arrival_s[running], kind="stable")]
    return order


def waiting_slots(view: View) -> Iterator[int]:
    """Slots in waiting order. Do not change the order while iterating."""
    return (slot for _, slot in view.table.waiting)


def least_load(request: Request, views: Sequence[View]) -> Verdict:
    """The replica with the fewest tokens to process, KV use as tie-break; predicted time to first token from its
    queue at the pivot's throughput."""
    loads = [_load(view) for view in views]
    best = min(range(len(views)), key=lambda i: (loads[i], i))
    view = views[best]
    size, seconds = view.cost.pivot(view.limits.max_num_batched_tokens)
    queued = view.table.waiting_tokens + len(request.prompt)
    if queued > size:
        return Verdict(best, queued / size * seconds)
    return Verdict(best, view.cost.predict_upper(Work(queued, prefill_work=queued * queued / 2)))


def _load(view: View) -> tuple[int, int]:
    table = view.table
    pending = int(table.remaining(table.running).sum()) + table.waiting_tokens
    return pending, view.total_blocks - view.free_blocks
