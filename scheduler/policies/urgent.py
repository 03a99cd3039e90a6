"""AccelGen's urgent set: who must be in the next iteration, and who gives way (arXiv 2503.13737, batching, step 1)."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.table import Bools, Floats, Ints


class Candidates(Struct, frozen=True):
    """Requests that may be in the batch, [n] each: running ones first, then the waiting ones near the head. Their
    `pending` tokens need `blocks` further KV blocks."""

    slots: Ints
    remaining_s: Floats
    decode: Bools
    running: Bools
    pending: Ints
    blocks: Ints

    def may_start(self, batch: Batch) -> Bools:
        """Which of them a seat and blocks are left for, [n]: those that run need neither."""
        return self.running | ((self.blocks <= batch.room) & (batch.seats > 0))


def take_urgent(batch: Batch, found: Candidates, longest_s: float) -> None:
    """Requests that miss their objective unless they are in this iteration, ascending T_r, decodes first. Where there
    is no room, the running request with the largest T_r that is not urgent is preempted, or whom the memory policy
    names."""
    is_urgent = found.remaining_s < longest_s
    others = np.flatnonzero(found.running & ~is_urgent)
    victims = _last_in_front(batch, found.slots[others], found.remaining_s[others])
    for part in (is_urgent & found.decode, is_urgent & ~found.decode):
        which = np.flatnonzero(part)
        which = which[np.argsort(found.remaining_s[which], kind="stable")]
        if not take_together(batch, found, which):
            _take_singly(batch, found, which, victims)


def _last_in_front(batch: Batch, others: Ints, remaining_s: Floats) -> list[int]:
    """Who gives way, the first victim at the end: the largest T_r, unless the memory policy says who."""
    chosen = batch.view.victims
    if chosen is None:
        last: list[int] = others[np.argsort(remaining_s, kind="stable")].tolist()
        return last
    may = set(others.tolist())
    return [slot for slot in reversed(chosen(batch.view).tolist()) if slot in may]


def take_together(batch: Batch, found: Candidates, which: Ints) -> bool:
    """Takes decodes that all fit; False, and nothing taken, if they do not or are none."""
    blocks = found.blocks[which]
    if len(which) > batch.tokens or not found.decode[which].all() or blocks.sum() > batch.blocks:
        return False
    batch.take_all(found.slots[which], found.pending[which], blocks)
    return True


def _take_singly(batch: Batch, found: Candidates, which: Ints, victims: list[int]) -> None:
    """Takes as much of each as fits; where one lacks blocks or a seat, the last of `victims` is preempted."""
    if not victims:  # nothing comes free: who does not fit now never will
        which = which[found.may_start(batch)[which]]
    columns = (found.slots, found.running, found.pending, found.blocks)
    for slot, running, pending, blocks in zip(*(c[which].tolist() for c in columns), strict=True):
        if batch.tokens < 1:
            return
        if not running:
            while victims and not batch.may_start(blocks):
                batch.preempt(victims.pop())
            if not batch.may_start(blocks):
                continue
        wanted = min(pending, batch.tokens)
        while running and victims and batch.block_demand(slot, wanted) > batch.blocks:
            batch.preempt(victims.pop())
        chunk = batch.largest_chunk(slot, wanted)
        if chunk:
            batch.take(slot, chunk)


def make_room(batch: Batch, found: Candidates) -> None:
    """Nothing fitted although somebody runs: the largest T_r, or whom the memory policy names, makes room for the next
    iteration."""
    if batch.slots or batch.preempted or not found.running.any():
        return
    running = np.flatnonzero(found.running)
    if batch.view.victims is None:
        batch.preempt(int(found.slots[running[found.remaining_s[running].argmax()]]))
    else:
        batch.preempt(int(batch.view.victims(batch.view)[0]))
