"""`sarathi`: Sarathi-Serve's stall-free batches (OSDI'24, read in its code; docs/policies.md).

A fixed token budget per iteration (`chunk_size`). Every running decode takes one token (out of blocks: the latest
arrival is preempted); prompts already begun take what is left, in order; then new prompts in order of arrival
likewise, as long as the blocks of the whole prompt can be had and the number of sequences allows; the first that does
not fit ends it.
"""

from __future__ import annotations

from accelgen.scheduler.policies.shared import (
    Batch,
    FirstCome,
    at_least,
    latest_first,
    make_room,
    take_begun,
    take_decodes,
    waiting_slots,
)
from accelgen.scheduler.policy import Decision, View, is_decode


class Sarathi(FirstCome):
    name = "sarathi"

    def __init__(self, chunk_size: int = 512) -> None:
        at_least("chunk_size", chunk_size, 1, "tokens")
        self.chunk_size = chunk_size

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table = view.table
        running = table.running
        ready = running[table.remaining(running) > 0]
        decode = is_decode(table, ready)
        budget = min(self.chunk_size, view.limits.max_num_batched_tokens)
        batch = Batch(view, max(budget, int(decode.sum())))  # decodes never wait
        take_decodes(batch, ready[decode], latest_first)
        take_begun(batch, ready[~decode])
        self._take_new(batch)
        make_room(batch, ready, latest_first)
        return batch.decision(), None

    def _take_new(self, batch: Batch) -> None:
        if batch.preempted:  # memory is short: nobody new
            return
        for slot in waiting_slots(batch.view):
            if not batch.admits(slot):
                return
            batch.take(slot, min(batch.pending(slot), batch.tokens))
