"""`orca`: iteration-level scheduling, first come, first served, with memory reserved for the longest possible sequence
(Orca, OSDI'22, algorithm 1; docs/policies.md, read in Sarathi-Serve's code, `orca_scheduler.py`).

In each iteration every running request decodes one token; waiting ones are admitted in order of arrival, whole, into
the same batch, while blocks for their *maximum* length can be reserved and the number of sequences allows; the first
that does not fit ends it. What is reserved is enough, so nobody is ever preempted.

The maximum length is that of the request, prompt + max_tokens, as in the paper's algorithm; with `max_model_len` it is
the same for all, as in the code.

Reconstructed: prompts beyond the engine's token limit are cut and go on in the next batches. Choices of one prompt
(n > 1) each reserve; a request whose reservation exceeds the whole cache runs alone; should blocks run out all the same
(a takeover from another policy), the latest arrival is preempted.
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


class Orca(FirstCome):
    name = "orca"

    def __init__(self, max_model_len: int = 0) -> None:
        at_least("max_model_len", max_model_len, 0, "tokens")
        self.max_model_len = max_model_len

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        batch = Batch(view, max(view.limits.max_num_batched_tokens, int(decode.sum())))
        take_decodes(batch, ready[decode], latest_first)
        take_begun(batch, ready[~decode])  # cut by the engine's limit
        self._admit(batch)
        make_room(batch, ready, latest_first)
        return batch.decision(), None

    def reserved_blocks(self, view: View, slot: int) -> int:
        """Blocks for the longest that the request, and choices still to be forked from it, can become."""
        table = view.table
        tokens = max(int(table.limit[slot]), self.max_model_len)
        choices = 1 + len(table.request(slot).children)
        return min(view.total_blocks, choices * -(-tokens // table.block_size))

    def _admit(self, batch: Batch) -> None:
        if batch.preempted:  # memory is short: nobody new
            return
        view = batch.view
        table = view.table
        seated = [*table.running.tolist(), *table.returning.tolist()]
        unreserved = view.total_blocks - sum(self.reserved_blocks(view, slot) for slot in seated)
        for slot in waiting_slots(view):
            mine = self.reserved_blocks(view, slot)
            if mine > unreserved or not batch.admits(slot):
                return
            batch.take(slot, min(batch.pending(slot), batch.tokens))
            unreserved -= mine
