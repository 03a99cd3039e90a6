"""`fastgen`: DeepSpeed-FastGen's Dynamic SplitFuse (arXiv 2401.08671; docs/policies.md, read in DeepSpeed-MII's code,
`ragged_batching.py`).

Every forward pass has the same size (`forward_size`). Tokens of running requests come first, as long as sequences,
tokens and blocks allow; then prompts in the order of the buffer, short ones composed and long ones split such that the
batch is exactly full. The rest of the one that was split goes to the front of the buffer. A prompt needs blocks for all
of it; the first that lacks them ends the batch. A request for whose next token there is no block is passed over. If
nothing can be scheduled, the last request in the buffer that holds KV is flushed and queued again at the end.

The buffer is a queue: whoever has run goes to its end. So requests take turns where decodes alone exceed the batch.

Reconstructed: none of the rule. The defaults (768 tokens, 512 sequences) are DeepSpeed's own; the engine's limit of
running sequences, and its guard for blocks promised to prompts that have begun, hold in addition.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.shared import Batch, at_least, least_load, waiting_slots
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import Ints


class Flushed(Struct, frozen=True):
    """The request flushed last, by id (0: none), and when: that is its place in the buffer."""

    id: int = 0
    at_s: float = 0.0


class FastGen:
    name = "fastgen"

    def __init__(self, forward_size: int = 768, max_sequences: int = 512) -> None:
        at_least("forward_size", forward_size, 1, "tokens")
        at_least("max_sequences", max_sequences, 1)
        self.forward_size, self.max_sequences = forward_size, max_sequences

    def initial(self) -> Flushed:
        return Flushed()

    def order_key(self, view: View, slot: int, state: Flushed) -> float:
        if view.table.ids[slot] == state.id:
            return state.at_s
        return float(view.table.arrival_s[slot])

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Flushed, start_s: float) -> tuple[Decision, Flushed]:
        table = view.table
        batch = Batch(view, min(self.forward_size, view.limits.max_num_batched_tokens))
        ready = table.running[table.remaining(table.running) > 0]
        ready = ready[np.argsort(table.last_s[ready], kind="stable")]  # as they stand in the buffer
        decode = is_decode(table, ready)
        self._take_decodes(batch, ready[decode])
        if self._take_split(batch, ready[~decode]):
            self._take_new(batch)
        if not batch.slots and len(ready):
            last = int(ready[-1])
            batch.preempt(last)
            state = Flushed(int(table.ids[last]), start_s)
        return batch.decision(), state

    def observe(self, step: StepStats, state: Flushed) -> Flushed:
        return state

    def _take_decodes(self, batch: Batch, slots: Ints) -> None:
        """One token each, in order; those that lack a block are passed over."""
        slots = slots[: min(batch.tokens, self.max_sequences)]
        ones = np.ones(len(slots), dtype=np.int64)
        demands = batch.view.table.block_demand(slots, ones)
        fits = np.cumsum(demands) <= batch.blocks
        fits |= demands == 0
        batch.take_all(slots[fits], ones[fits], demands[fits])

    def _take_split(self, batch: Batch, begun: Ints) -> bool:
        """What is left of prompts that were split; False if one of them must wait, and everybody behind it."""
        for slot in begun.tolist():
            pending = batch.pending(slot)
            if self._is_full(batch) or batch.block_demand(slot, pending) > batch.blocks:
                return False
            batch.take(slot, min(pending, batch.tokens))
        return True

    def _take_new(self, batch: Batch) -> None:
        for slot in waiting_slots(batch.view):
            if self._is_full(batch) or not batch.admits(slot):
                return
            batch.take(slot, min(batch.pending(slot), batch.tokens))

    def _is_full(self, batch: Batch) -> bool:
        return batch.tokens < 1 or len(batch.slots) >= self.max_sequences
