"""What declined requests get: what is left over (arXiv 2504.08784, soft admission; its code).

They wait in a queue, first come, first served. One begins when KV for all of it is free, to its end, beside what those
that run will still need; a prompt only if the rest of the batch holds the whole of it, otherwise a token of each
decode. They are evicted when admitted requests need their blocks or seats, last come, first out; their tokens are kept,
and one prefill of prompt and answer brings the KV back.

Reconstructed: the first of the queue is cut where it does not fit, so that it cannot wait for ever for a batch as long
as itself; others for which this batch is too short are passed over. One for which there is no KV holds up those behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.slos_serve.kv import whole_blocks
from accelgen.scheduler.table import WAITING, Ints

MOST_LOOKED_AT = 32  # in the queue, per batch


class Evictions:
    """Running best-effort requests that can still give way to a batch; the last one to have come goes first."""

    def __init__(self, batch: Batch, slots: Ints) -> None:
        table = batch.view.table
        self._batch = batch
        taken = {*batch.slots, *batch.preempted}
        order = slots[np.argsort(table.arrival_s[slots], kind="stable")].tolist()
        self.slots = [slot for slot in order if slot not in taken]
        self._blocks = int(table.blocks[self.slots].sum()) if self.slots else 0

    def make_room(self, blocks: int, fits: Callable[[], bool]) -> bool:
        """Evicts until it fits, and says whether it does. Nobody is evicted in vain: not if `blocks` further ones could
        not be had from all of them together."""
        if not fits() and blocks > self._blocks:
            return False
        while not fits() and self.slots:
            self.evict()
        return fits()

    def evict(self) -> None:
        """The last one to have come gives way."""
        slot = self.slots.pop()
        self._blocks -= int(self._batch.view.table.blocks[slot])
        self._batch.preempt(slot)

    def spare(self, slot: int) -> None:
        """It is in the batch now."""
        self.slots.remove(slot)
        self._blocks -= int(self._batch.view.table.blocks[slot])


def take_best_effort(
    batch: Batch, evictions: Evictions, waiting: Iterator[int], most: int, starts: bool
) -> None:
    """Fills what is left of a batch of at most `most` tokens: first those that run, then, if `starts`, new ones of the
    queue."""
    batch.tokens = max(0, min(batch.tokens, most - sum(batch.counts)))
    _take_running(batch, evictions)
    if starts and not batch.preempted:
        _take_new(batch, waiting)


def _take_running(batch: Batch, evictions: Evictions) -> None:
    """In the order in which they came. One that lacks a block takes it from those that came after it."""
    for slot in [*evictions.slots]:
        if batch.tokens < 1:
            return
        if slot not in evictions.slots:  # evicted meanwhile
            continue
        pending = int(batch.view.table.remaining(np.array([slot]))[0])
        wanted = min(pending, batch.tokens)
        demand = batch.block_demand(slot, wanted)
        while demand > batch.blocks and evictions.slots[-1] != slot:
            evictions.evict()
        chunk = batch.largest_chunk(slot, wanted)
        if chunk:
            batch.take(slot, chunk)
            evictions.spare(slot)


def _take_new(batch: Batch, waiting: Iterator[int]) -> None:
    table = batch.view.table
    free: int | None = None
    for place, slot in enumerate(islice(waiting, MOST_LOOKED_AT)):
        if batch.tokens < 1 or batch.seats < 1:
            return
        pending = batch.pending(slot)
        if place and pending > batch.tokens:
            continue
        if free is None:
            free = batch.blocks - _still_needed(batch)
        whole = int(whole_blocks(table, np.array([slot]))[0])
        is_alone = not batch.slots and not len(table.running)
        if not batch.admits(slot) or (whole > free and not is_alone):
            return
        free -= whole
        batch.take(slot, min(pending, batch.tokens))


def _still_needed(batch: Batch) -> int:
    """Blocks that all who run, or begin in this batch, will need beyond those that they have after it."""
    table = batch.view.table
    gone = set(batch.preempted)
    running = [slot for slot in table.running.tolist() if slot not in gone]
    new = [slot for slot in batch.slots if table.state[slot] == WAITING]
    alive = np.array(running + new, dtype=np.int64)
    returned = int(table.blocks[batch.preempted].sum()) if batch.preempted else 0
    taken = batch.view.free_blocks + returned - batch.blocks
    held = table.blocks[alive] * (np.arange(len(alive)) < len(running))
    needed = int(np.maximum(whole_blocks(table, alive) - held, 0).sum())
    return max(0, needed - taken)
