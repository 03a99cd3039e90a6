"""The batch of one iteration, filled up to a time: decodes, then chunks of prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accelgen.scheduler.cost_model import Work, with_prompt
from accelgen.scheduler.plus.timing import Fitted
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.policy import is_decode
from accelgen.scheduler.table import RUNNING, Ints

LEAST_CHUNK = 32  # tokens; less is not worth a prompt's share of an iteration


class Filling:
    """`work`: the features of what is in the batch. `is_full`: no time is left for prompts."""

    def __init__(self, batch: Batch, fitted: Fitted) -> None:
        self.batch, self.fitted = batch, fitted
        self.work = Work()
        self.is_full = False

    def take_decodes(self, slots: Ints, victims: Sequence[int]) -> None:
        """All of `slots`; who lacks a block preempts the first of `victims` that is not in the batch."""
        batch, table = self.batch, self.batch.view.table
        ones = np.ones(len(slots), dtype=np.int64)
        demands = table.block_demand(slots, ones)
        if len(slots) <= batch.tokens and int(demands.sum()) <= batch.blocks:
            batch.take_all(slots, ones, demands)
        else:
            self._take_one_by_one(slots, victims)
        taken = np.array(batch.slots, dtype=np.int64)
        self.work = Work.of(
            table.computed[taken], np.array(batch.counts, dtype=np.int64), is_decode(table, taken)
        )

    def _take_one_by_one(self, slots: Ints, victims: Sequence[int]) -> None:
        batch = self.batch
        gone, taken = set(batch.preempted), set(batch.slots)
        for slot in slots.tolist():
            if batch.tokens < 1:  # nobody gives way to one that has no token
                return
            while slot not in gone and batch.block_demand(slot, 1) > batch.blocks:
                victim = next(v for v in victims if v not in gone and v not in taken)
                gone.add(victim)
                batch.preempt(victim)
            if slot not in gone:
                batch.take(slot, 1)
                taken.add(slot)

    def add_decodes(self, slots: Ints, limit_s: float) -> None:
        """Those of `slots` that neither time nor blocks keep out."""
        batch, table, work = self.batch, self.batch.view.table, self.work
        gone = set(batch.preempted)
        for slot in slots.tolist():
            context = work.decode_context + int(table.computed[slot])
            more = Work(work.prefill_tokens, work.decode_seqs + 1, context, work.prefill_work)
            if self.fitted.seconds(more) > limit_s or batch.tokens < 1:
                break
            if slot not in gone and batch.block_demand(slot, 1) <= batch.room:
                batch.take(slot, 1)
                work = more
        self.work = work

    def take_prompts(
        self, slots: Ints, limit_s: float, kept: int = 0, evictable: Sequence[int] = ()
    ) -> None:
        """Chunks of `slots` in order until the time is used up. Who starts leaves `kept` blocks free. Those of
        `evictable` that are not in the batch give way to it, if that is enough."""
        batch, table = self.batch, self.batch.view.table
        busy = {*batch.slots, *batch.preempted} if evictable else ()
        able = [v for v in evictable if v not in busy]
        spare = int(table.blocks[able].sum()) if able else 0
        demands = table.block_demand(slots, table.length[slots] - table.computed[slots])
        begun = table.state[slots] == RUNNING
        possible = begun | (demands <= batch.room - kept + spare)
        gone = set(batch.preempted)
        for slot in slots[possible].tolist():
            if self.is_full or batch.tokens < 1:
                return
            if slot in gone:
                continue
            if table.state[slot] != RUNNING and not self._may_start(slot, kept, able):
                continue
            self._take_chunk(slot, limit_s)
            gone.update(batch.preempted)

    def _may_start(self, slot: int, kept: int, able: list[int]) -> bool:
        """Whether there is room for a newcomer, at the expense of the first of `able` if need be."""
        batch, table = self.batch, self.batch.view.table
        demand = batch.block_demand(slot, batch.pending(slot)) + kept
        short = demand - batch.room
        if short > 0 or batch.seats < 1:
            if not able or int(table.blocks[able].sum()) < short:
                return False
            while able and (batch.room < demand or batch.seats < 1):
                batch.preempt(able.pop(0))
        return batch.admits(slot)

    def _take_chunk(self, slot: int, limit_s: float) -> None:
        batch = self.batch
        prior, pending = int(batch.view.table.computed[slot]), batch.pending(slot)
        most = min(batch.tokens, pending)
        room = self.fitted.tokens_within(limit_s, self.work, prior, most)
        self.is_full = room < pending
        if not batch.slots:  # something has to go on, on a device slower than any limit, too
            room = max(room, min(most, LEAST_CHUNK))
        chunk = min(room, batch.largest_chunk(slot, pending))
        if chunk < 1 or (chunk < min(pending, LEAST_CHUNK) and batch.slots):
            return
        batch.take(slot, chunk)
        self.work = with_prompt(self.work, chunk, prior)
