"""`slidingserve`: SlidingServe (arXiv 2606.05933; docs/policies.md). A reconstruction: the paper has no public code,
and was known here from its abstract and a review only.

From the paper: a latency predictor that is linear in the features of a batch (here the fitted cost model); prompts
sorted by (state of their objective, urgency, remaining work); the chunk of this iteration chosen together with that of
the next one, instead of the largest that the slack allows (SlidingChunker); and when TTFT violations are predicted, a
0/1 knapsack decides which prompts run (BatchConstructor).

Reconstructed, because the sources are silent: all decodes join each iteration; deadlines are cumulative, as in QoServe,
which the paper builds on; an objective is lost if even a prefill from now on at the pivot's throughput would be late,
and lost ones come last; urgency is the slack beyond that prefill in steps of `urgency_s`; without any slack a batch has
128 tokens, and never more than 2552, as in QoServe; if prompts processed in their order would be late, the capacity of
the knapsack is the time until the first deadline missed, each prompt is worth the same, and those left out follow if
tokens remain; out of blocks, the prompt, or else the decode, with the latest deadline is recomputed.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from accelgen.scheduler.policies.prompts import keep_known
from accelgen.scheduler.policies.shared import (
    Batch,
    at_least,
    least_load,
    make_room,
    take_decodes,
)
from accelgen.scheduler.policies.slack import first_token_due_s, next_token_due_s, tbt_s
from accelgen.scheduler.policies.two_steps import Backlog, TwoSteps, first_chunk, knapsack
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import FAR_S, WAITING, Bools, Ints

LEAST, MOST = 128, 2552  # tokens of a batch
ITEMS = 32  # prompts in the knapsack
LOST_S = 10 * FAR_S  # added to the key of a prompt whose objective is lost


class Lost(Struct, frozen=True):
    """Requests, by id, that were found too late to make their objective before they began."""

    ids: frozenset[int] = frozenset()


class SlidingServe:
    name = "slidingserve"

    def __init__(self, step: int = 32, urgency_s: float = 0.1, offline_tpot_s: float = 0.4) -> None:
        at_least("step", step, 1, "tokens")
        at_least("urgency_s", urgency_s, 1e-6, "s")
        at_least("offline_tpot_s", offline_tpot_s, 0, "s")
        self.step, self.urgency_s, self.offline_tpot_s = step, urgency_s, offline_tpot_s

    def initial(self) -> Lost:
        return Lost()

    def order_key(self, view: View, slot: int, state: Lost) -> float:
        due_s = first_token_due_s(view.table, np.array([slot]), self.offline_tpot_s)[0]
        return float(due_s) + LOST_S * (int(view.table.ids[slot]) in state.ids)

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Lost, start_s: float) -> tuple[Decision, Lost]:
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        decodes = ready[decode]
        batch = Batch(view, len(decodes))
        take_decodes(batch, decodes, self._victims)
        most = view.limits.max_num_seqs if batch.seats > 0 else 0
        waiting = [slot for _, slot in table.waiting.islice(0, most)]
        slots = np.concatenate([ready[~decode], np.array(waiting, dtype=np.int64)])
        order, lost = self._sort(view, slots, start_s)
        if batch.preempted:
            order = order[~np.isin(order, batch.preempted)]
        batch.tokens = self._prompt_tokens(view, decodes, order, start_s)
        _take_in_order(batch, order)
        make_room(batch, ready, self._victims)
        decision = batch.decision()
        taken = set(batch.slots)
        late = [slot for slot in lost[table.key[lost] < LOST_S / 2].tolist() if slot not in taken]
        keys_s = first_token_due_s(table, np.array(late, dtype=np.int64), self.offline_tpot_s)
        decision.requeue = dict(zip(late, (keys_s + LOST_S).tolist(), strict=True))
        ids = table.ids[late].tolist()
        return decision, Lost(keep_known(state.ids, ids, table))

    def observe(self, step: StepStats, state: Lost) -> Lost:
        return state

    def _victims(self, view: View) -> Ints:
        """Prompts, then decodes, with the latest deadline first."""
        table = view.table
        due_s = first_token_due_s(table, table.running, self.offline_tpot_s)
        return table.running[np.lexsort((-due_s, is_decode(table, table.running)))]

    def _sort(self, view: View, slots: Ints, now_s: float) -> tuple[Ints, Ints]:
        """Prompts in the order of execution, and the waiting ones among them whose objective is lost."""
        table = view.table
        size, seconds = view.cost.pivot(view.limits.max_num_batched_tokens)
        left = table.length[slots] - table.computed[slots]
        takes_s = left.astype(np.float64) * (seconds / size)
        spare_s = first_token_due_s(table, slots, self.offline_tpot_s) - now_s - takes_s
        lost: Bools = spare_s < 0
        order = np.lexsort((left, np.floor(spare_s / self.urgency_s), lost))
        first = order[:ITEMS]
        first = first[~lost[first]]
        misses = np.cumsum(takes_s[first]) > spare_s[first] + takes_s[first]
        if misses.any():
            until_s = float((spare_s + takes_s)[first][misses].min())
            chosen = np.zeros(len(slots), dtype=bool)
            chosen[first[knapsack(takes_s[first], until_s)]] = True
            order = np.concatenate([order[chosen[order]], order[~chosen[order]]])
        return slots[order], slots[lost & (table.state[slots] == WAITING)]

    def _prompt_tokens(self, view: View, decodes: Ints, order: Ints, now_s: float) -> int:
        """Prompt tokens of the batch."""
        table, count = view.table, len(decodes)
        most = max(0, min(MOST, view.limits.max_num_batched_tokens) - count)
        backlog = Backlog(table.length[order] - table.computed[order], table.computed[order])
        steps = TwoSteps(view.cost, backlog, count, int(table.computed[decodes].sum()))
        slack_s = next_token_due_s(table, decodes, self.offline_tpot_s) - now_s
        next_s = slack_s + tbt_s(table, decodes, self.offline_tpot_s)
        least_s, least_next_s = float(slack_s.min(initial=FAR_S)), float(next_s.min(initial=FAR_S))
        chunk = first_chunk(steps, least_s, least_next_s, most, self.step)
        least = max(0, LEAST - count)
        return min(most, least if chunk is None else chunk)


def _take_in_order(batch: Batch, order: Ints) -> None:
    """As much of each prompt as fits; once a new one cannot start, no other new one does."""
    closed = bool(batch.preempted)
    for slot in order.tolist():
        if batch.tokens < 1:
            return
        if batch.view.table.state[slot] == WAITING:
            closed = closed or not batch.admits(slot)
            if closed:
                continue
        chunk = batch.largest_chunk(slot, batch.pending(slot))
        if chunk:
            batch.take(slot, chunk)
