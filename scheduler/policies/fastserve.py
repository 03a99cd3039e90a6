"""`fastserve`: FastServe's skip-join multi-level feedback queue (arXiv 2305.05920; docs/policies.md, read in its code,
`fastserve/scheduler.py`).

Level i has a quantum of `quantum_s` * 2**i. A new request joins the first level whose quantum is at least the predicted
time of its prompt alone, at the end of that level. Each iteration takes requests from the highest level downwards,
until the batch has `max_batch_size` of them or its prompts exceed `max_tokens_per_batch`. Afterwards whoever has had
more processing time than its level's quantum moves one level down, with its time reset, and all go to the *front* of
their level. Every `starvation_period` iterations those idle for `starvation_s` go to the front of the highest level.

What the code swaps out is swapped out with `--preemption swap`, else dropped and computed again. KV goes from the end
of the lowest level upwards, then from the end of the batch. Nothing goes ahead of need. So the proactive part of the
rule, and the deferral of new prompts when host memory is short, are missing.

Reconstructed: a prompt longer than the limit of tokens is cut, and goes on from the front of its level; where a
running request needs a place among `max_num_seqs`, the end of the lowest level gives it up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, log2

import numpy as np
from msgspec import structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policies.feedback_queue import (
    LOWEST,
    SPAN,
    Job,
    Place,
    Queues,
    begun,
    charge,
    in_order,
    promote,
)
from accelgen.scheduler.policies.shared import Batch, at_least, least_load
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import RUNNING, WAITING


class FastServe:
    name = "fastserve"

    def __init__(
        self, quantum_s: float = 0.01, max_batch_size: int = 0, max_tokens_per_batch: int = 2048,
        starvation_s: float = 3.0, starvation_period: int = 1000,
    ) -> None:  # fmt: skip
        if not quantum_s > 0:
            raise ValueError(f"quantum_s: {quantum_s} s, must be above 0")
        at_least("max_batch_size", max_batch_size, 0)
        at_least("max_tokens_per_batch", max_tokens_per_batch, 1, "tokens")
        at_least("starvation_s", starvation_s, 0, "s")
        at_least("starvation_period", starvation_period, 1, "iterations")
        self.quantum_s, self.max_batch_size = quantum_s, max_batch_size
        self.max_tokens_per_batch = max_tokens_per_batch
        self.starvation_s, self.starvation_period = starvation_s, starvation_period

    def initial(self) -> Queues:
        return Queues()

    def order_key(self, view: View, slot: int, state: Queues) -> float:
        table = view.table
        job = state.jobs.get(int(table.ids[slot]))
        if job is not None:
            return job.key
        arrival_s = max(0.0, float(table.arrival_s[slot]))
        return self._first_level(view, slot) * SPAN + arrival_s

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Queues, start_s: float) -> tuple[Decision, Queues]:
        table = view.table
        state = self._with_running(view, state)
        size = self.max_batch_size or view.limits.max_num_seqs
        places = in_order(view.table, state, size)
        chosen = self._choose(view, places[:size])
        batch = Batch(view, sum(chosen.values()))
        running = set(table.running.tolist())
        victims = (s for _, _, s in reversed(places) if s in running and s not in chosen)
        _take(batch, chosen, victims)
        state.jobs.update(begun(table, state, [slot for slot in chosen if slot not in running]))
        state = structs.replace(state, iterations=state.iterations + bool(view.last))
        if chosen and (state.iterations + 1) % self.starvation_period == 0:
            state = promote(view.table, state, start_s - self.starvation_s, batch.slots)
        return batch.decision(), state

    def observe(self, step: StepStats, state: Queues) -> Queues:
        return charge(state, step.ids, step.run_s, self.quantum_s)

    def _first_level(self, view: View, slot: int) -> int:
        """Skip-join: the first level whose quantum the prompt does not exceed."""
        tokens = int(view.table.length[slot] - view.table.computed[slot])
        seconds = view.cost.predict(Work(tokens, prefill_work=tokens * tokens / 2))
        level = ceil(log2(max(seconds / self.quantum_s, 1.0)))
        return min(level, LOWEST)

    def _with_running(self, view: View, state: Queues) -> Queues:
        """Everybody who runs has a job (forked choices, and what another policy has left, begin here); those that
        have ended do not keep theirs for long. The dictionary is a new one."""
        table = view.table
        jobs = state.jobs
        if len(jobs) > 2 * len(table) + 64:
            jobs = {id: job for id, job in jobs.items() if id in table.slot_of}
        running = zip(table.ids[table.running].tolist(), table.running.tolist(), strict=True)
        strangers = [(id, slot) for id, slot in running if id not in jobs]
        begun = {id: Job(self._first_level(view, slot), 0.0, 0) for id, slot in strangers}
        return structs.replace(state, jobs=jobs | begun)

    def _choose(self, view: View, places: list[Place]) -> dict[int, int]:
        """Tokens by slot, from the front of the queues until the batch is full."""
        table, tokens, prompts = view.table, view.limits.max_num_batched_tokens, 0
        most = min(self.max_tokens_per_batch, tokens)
        chosen: dict[int, int] = {}
        for _, _, slot in places:
            count = pending = int(table.length[slot] - table.computed[slot])
            is_prompt = pending > 1 or table.length[slot] <= table.prompt_len[slot]
            if prompts + count > most:
                if prompts or not is_prompt:
                    break
                count = most  # too long for any batch
            if tokens < 1:
                break
            chosen[slot] = count = min(count, tokens)
            prompts += count * is_prompt
            tokens -= count
        return chosen


def _take(batch: Batch, chosen: dict[int, int], victims: Iterator[int]) -> None:
    """Takes what is chosen (and removes from it what must go after all), and drops KV until it has its blocks and
    places: of the victims in order, then from the end of the batch. A new request needs blocks for all its tokens."""
    table = batch.view.table
    slots = np.array([*chosen], dtype=np.int64)
    counts = np.array([*chosen.values()], dtype=np.int64)
    new = table.state[slots] == WAITING
    whole = np.where(new, table.length[slots] - table.computed[slots], counts)
    needs = np.cumsum(table.block_demand(slots, whole)).tolist()
    seats = np.cumsum(new).tolist()
    last = len(slots) - 1

    def fits(last: int) -> bool:
        # What is pinned may be the new one's own: not to be counted on while there is one.
        pinned = batch.reserved if seats[last] else 0
        return bool(needs[last] <= batch.blocks - pinned and seats[last] <= max(0, batch.seats))

    while last >= 0 and not fits(last):
        victim = next(victims, None)
        if victim is None:
            victim = int(slots[last])
            del chosen[victim]
            last -= 1
        if table.state[victim] == RUNNING:
            batch.preempt(victim)
    slots, counts = slots[: last + 1], counts[: last + 1]
    batch.take_all(slots, counts, table.block_demand(slots, counts))
