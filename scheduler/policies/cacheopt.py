"""`cacheopt`: CacheOPT (arXiv 2503.13773; docs/policies.md): requests wait by slack, and memory is given by
`accelgen.scheduler.memory.cacheopt`, unless another memory policy is chosen.

New requests wait by the slack that their TTFT objective leaves, those preempted by that of their TBT objective, each
less the iterations needed, as long as the longest one lately (waiting.py). Iterations are Sarathi-Serve's (OSDI'24): a
fixed budget (`chunk_size`), every decode one token, then prompts that have begun, then new ones.

Reconstructed: how a batch is put together, which the paper leaves to the engine; that a new one for which there is no
memory does not hold up those behind it, which may fit, or live inside another one (when it gets critical, memory is
found for it), unless it is late by `patience` times its objective: what comes free is then for it, or a large one would
wait for ever behind a stream of small ones; and that nobody new starts in an iteration in which somebody had to give
way.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.memory.cacheopt import CacheOptMemory
from accelgen.scheduler.memory.waiting import LongestRun, latest_start_s
from accelgen.scheduler.policies.shared import (
    Batch,
    at_least,
    latest_first,
    least_load,
    make_room,
    take_begun,
    take_decodes,
)
from accelgen.scheduler.policies.slack import NEAR_S
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import Bools, Floats, Ints

MOST_SEATS = 2  # waiting requests looked at, in multiples of max_num_seqs


class Seen(Struct, frozen=True):
    """What the rule remembers: the last iteration times."""

    runs: LongestRun = LongestRun()


class CacheOpt:
    name = "cacheopt"
    memory = CacheOptMemory.name

    def __init__(self, chunk_size: int = 512, patience: float = 10.0) -> None:
        at_least("chunk_size", chunk_size, 1, "tokens")
        at_least("patience", patience, 0)
        self.chunk_size, self.patience = chunk_size, patience

    def initial(self) -> Seen:
        return Seen()

    def order_key(self, view: View, slot: int, state: Seen) -> float:
        """The time by which it must start."""
        return float(self._latest_s(view, np.array([slot]), state)[0])

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Seen, start_s: float) -> tuple[Decision, Seen]:
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        batch = Batch(view, max(self._budget(view), int(decode.sum())))  # decodes never wait
        take_decodes(batch, ready[decode], latest_first)
        take_begun(batch, ready[~decode])
        if not batch.preempted:
            self._take_new(batch, state, start_s)
        make_room(batch, ready, latest_first)
        return batch.decision(), state

    def observe(self, step: StepStats, state: Seen) -> Seen:
        return Seen(state.runs.after(step.run_s)) if step.ids else state

    def _take_new(self, batch: Batch, state: Seen, start_s: float) -> None:
        """Of the first in the queue those that there is memory for, while there are tokens. Behind one that is out of
        patience and finds none, only those start that live inside others."""
        table, limits = batch.view.table, batch.view.limits
        head = table.waiting.islice(0, MOST_SEATS * limits.max_num_seqs)
        slots = np.array([slot for _, slot in head], dtype=np.int64)
        pending = table.length[slots] - table.computed[slots]
        blocks = table.block_demand(slots, pending)
        impatient = np.zeros(len(slots), dtype=bool)
        if int(blocks.sum()) > batch.room:  # or nobody is held up
            impatient = self._impatient(batch.view, slots, state, start_s)
        held_up = False
        columns = (slots.tolist(), pending.tolist(), blocks.tolist(), impatient.tolist())
        for slot, tokens, needed, must in zip(*columns, strict=True):
            if batch.may_start(needed) and not (held_up and slot not in table.lenders):
                batch.take(slot, min(tokens, batch.tokens))
            elif batch.tokens < 1 or batch.seats < 1:
                return
            else:
                held_up |= must

    def _impatient(self, view: View, slots: Ints, state: Seen, start_s: float) -> Bools:
        """Who is late by that many times what its objective gives to its first, to all, or else to each of its tokens,
        [n]."""
        table = view.table
        due_s = np.minimum(table.first_due_s[slots], table.end_due_s[slots])
        given_s = np.maximum(due_s - table.arrival_s[slots], 0.0)
        given_s = np.where(due_s < NEAR_S, given_s, table.tpot_s[slots])
        late: Bools = self._latest_s(view, slots, state) + self.patience * given_s < start_s
        return late

    def _latest_s(self, view: View, slots: Ints, state: Seen) -> Floats:
        budget = self._budget(view)
        longest_s = state.runs.longest_s(view.cost.predict(Work(prefill_tokens=budget)))
        return latest_start_s(view.table, slots, budget, longest_s)

    def _budget(self, view: View) -> int:
        return min(self.chunk_size, view.limits.max_num_batched_tokens)
