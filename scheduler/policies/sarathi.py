"""`sarathi`: Sarathi-Serve's stall-free batches (papers.md 5.3, read in its code).

A fixed token budget per iteration (`chunk_size`). Every running decode takes one token (out of blocks: the latest
arrival is preempted); prompts already begun take what is left, in order; then new prompts in order of arrival
likewise, as long as the blocks of the whole prompt can be had and the number of sequences allows; the first that does
not fit ends it.
"""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.scheduler.policies.shared import (
    Batch,
    at_least,
    latest_first,
    least_load,
    make_room,
    take_decodes,
    waiting_slots,
)
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request


class Sarathi:
    name = "sarathi"

    def __init__(self, chunk_size: int = 512) -> None:
        at_least("chunk_size", chunk_size, 1, "tokens")
        self.chunk_size = chunk_size

    def initial(self) -> None:
        return None

    def order_key(self, view: View, slot: int, state: None) -> float:
        return float(view.table.arrival_s[slot])

    def admit(self, request: Request, views: Sequence[View]) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table = view.table
        running = table.running
        ready = running[table.remaining(running) > 0]
        decode = is_decode(table, ready)
        budget = min(self.chunk_size, view.limits.max_num_batched_tokens)
        batch = Batch(view, max(budget, int(decode.sum())))  # decodes never wait
        take_decodes(batch, ready[decode], latest_first)
        for slot in ready[~decode].tolist():
            chunk = batch.largest_chunk(slot, batch.pending(slot))
            if chunk and slot not in batch.preempted:
                batch.take(slot, chunk)
        self._take_new(batch)
        make_room(batch, ready, latest_first)
        return batch.decision(), None

    def observe(self, step: StepStats, state: None) -> None:
        return None

    def _take_new(self, batch: Batch) -> None:
        if batch.preempted:  # memory is short: nobody new
            return
        for slot in waiting_slots(batch.view):
            if not batch.admits(slot):
                return
            batch.take(slot, min(batch.pending(slot), batch.tokens))
