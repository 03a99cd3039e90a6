"""AccelGen's urgent set: who must be in the next iteration, and who gives way (papers.md 1.4, step 1)."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.table import WAITING, Bools, Floats, Ints


class Candidates(Struct, frozen=True):
    """Requests that may be in the batch, [n] each: running ones first, then the waiting ones near the head."""

    slots: Ints
    remaining_s: Floats
    decode: Bools
    running: Bools
    pending: Ints


def take_urgent(batch: Batch, found: Candidates, longest_s: float) -> None:
    """Requests that miss their objective unless they are in this iteration, ascending T_r, decodes first. Where there
    is no room, the running request with the largest T_r that is not urgent is preempted."""
    is_urgent = found.remaining_s < longest_s
    others = np.flatnonzero(found.running & ~is_urgent)
    victims = found.slots[others[np.argsort(found.remaining_s[others])]].tolist()
    for part in (is_urgent & found.decode, is_urgent & ~found.decode):
        which = np.flatnonzero(part)
        slots = found.slots[which[np.argsort(found.remaining_s[which], kind="stable")]]
        if not _take_together(batch, slots, found.decode[which]):
            _take_singly(batch, slots.tolist(), victims)


def _take_together(batch: Batch, slots: Ints, decode: Bools) -> bool:
    """Takes decodes that all fit; False, and nothing taken, if they do not or are none."""
    ones = np.ones(len(slots), dtype=np.int64)
    demands = batch.view.table.block_demand(slots, ones)
    if not decode.all() or len(slots) > batch.tokens or int(demands.sum()) > batch.blocks:
        return False
    batch.take_all(slots, ones, demands)
    return True


def _take_singly(batch: Batch, slots: list[int], victims: list[int]) -> None:
    """Takes as much of each as fits; where one lacks blocks or a seat, the last of `victims` is preempted."""
    table = batch.view.table
    for slot in slots:
        if batch.tokens < 1:
            return
        newcomer = table.state[slot] == WAITING
        wanted = min(batch.pending(slot), batch.tokens)
        while victims and (
            not batch.admits(slot) if newcomer else batch.block_demand(slot, wanted) > batch.blocks
        ):
            batch.preempt(victims.pop())
        chunk = batch.largest_chunk(slot, wanted)
        if chunk and (not newcomer or batch.admits(slot)):
            batch.take(slot, chunk)


def make_room(batch: Batch, found: Candidates) -> None:
    """Nothing fitted although somebody runs: the largest T_r makes room for the next iteration."""
    if batch.slots or batch.preempted or not found.running.any():
        return
    running = np.flatnonzero(found.running)
    batch.preempt(int(found.slots[running[found.remaining_s[running].argmax()]]))
