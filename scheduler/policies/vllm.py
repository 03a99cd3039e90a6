"""`vllm`: first come, first served, prompts first, as vLLM was first (SOSP'23, read in its code; docs/policies.md).

Waiting prompts are admitted in order of arrival, whole, while their blocks, the token limit and the number of sequences
allow. If any was admitted, the batch consists of prompts only and decodes stall; else every running request decodes,
and when there is no block for one, the latest arrival is preempted (recompute) and goes back to the front.

Reconstructed: a prompt that alone exceeds the token limit is cut by the engine and goes on in the next batches.
"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.policies.shared import (
    Batch,
    FirstCome,
    latest_first,
    make_room,
    take_begun,
    take_decodes,
    waiting_slots,
)
from accelgen.scheduler.policy import Decision, View, is_decode

WATERMARK = 0.01  # share of blocks that admission leaves free, so that decodes can grow


class Vllm(FirstCome):
    name = "vllm"

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        batch = Batch(view, view.limits.max_num_batched_tokens)
        self._take_prompts(batch)
        if not batch.slots:
            running = view.table.running
            ready = running[view.table.remaining(running) > 0]
            take_decodes(batch, ready[is_decode(view.table, ready)], latest_first)
            make_room(batch, ready, latest_first)  # only cut prompts, and no block for them
        return batch.decision(), None

    def _take_prompts(self, batch: Batch) -> None:
        """Prompts cut by the engine's limit first, then new ones until one does not fit."""
        table = batch.view.table
        running = table.running
        take_begun(batch, running[(table.remaining(running) > 0) & ~is_decode(table, running)])
        if len(running):
            batch.promised += int(np.ceil(WATERMARK * batch.view.total_blocks))
        for slot in waiting_slots(batch.view):
            count = min(batch.pending(slot), batch.view.limits.max_num_batched_tokens)
            if not batch.admits(slot) or count > batch.tokens:
                return
            batch.take(slot, count)
