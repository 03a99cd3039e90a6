"""The next slice of the plan becomes an iteration: who is in it, with how many tokens and drafts, and who gives way."""

from __future__ import annotations

from heapq import merge

import numpy as np

from accelgen.scheduler.policies.prompts import Place
from accelgen.scheduler.policies.shared import Batch, make_room, take_decodes
from accelgen.scheduler.policy import View, is_decode
from accelgen.scheduler.slos_serve.best_effort import Evictions, take_best_effort
from accelgen.scheduler.slos_serve.filling import take_extra, take_prompts
from accelgen.scheduler.slos_serve.order import places
from accelgen.scheduler.slos_serve.slices import Slice
from accelgen.scheduler.slos_serve.speculating import stated_drafts
from accelgen.scheduler.slos_serve.standing import (
    PRIORITY_S,
    admitted_places,
    are_admitted,
    best_effort_places,
)
from accelgen.scheduler.slos_serve.state import Memory
from accelgen.scheduler.slos_serve.survey import Rules, due_s
from accelgen.scheduler.table import Bools, Ints

Drafts = dict[int, int] | None
"""By slot; None: those that the engine chooses."""


class Follower:
    """Of the plan in `state`, once."""

    def __init__(self, view: View, state: Memory, rules: Rules) -> None:
        self.view, self.state, self.rules = view, state, rules
        self.slice: Slice = state.plan.at(state.position)

    def follow(self, moved: dict[int, float], start_s: float) -> tuple[Batch, Drafts]:
        """The iteration at `start_s`. `moved`: keys by slot that the waiting order does not have yet."""
        table, most = self.view.table, self.view.limits.max_num_batched_tokens
        ready = table.running[table.remaining(table.running) > 0]
        mine = are_admitted(table, ready, self.state.best_effort)
        decode = is_decode(table, ready)
        decodes, begun = ready[mine & decode], ready[mine & ~decode]
        due = self._are_due(decodes)
        batch = Batch(self.view, min(max(self.slice.size, int(due.sum())), most))
        take_decodes(batch, decodes[due], self._victims)
        drafts = self._take_drafts(batch, start_s)
        evictions = Evictions(batch, ready[~mine])
        # Whoever gave way for decodes shows that KV is short: nobody starts, unless it was best effort alone.
        gone = table.ids[batch.preempted].tolist()
        starts = all(id in self.state.best_effort for id in gone)
        fresh = sorted((key, slot) for slot, key in moved.items())
        admitted = merge((p for p in fresh if p[0] < -PRIORITY_S / 2), admitted_places(table))
        take_prompts(batch, self._places(begun, batch.preempted), admitted, evictions, starts)
        rest = decodes[~due]
        take_extra(batch, rest[~np.isin(rest, batch.preempted)] if batch.preempted else rest)
        queue = merge((p for p in fresh if p[0] > PRIORITY_S / 2), best_effort_places(table))
        waiting = (slot for _, slot in queue)
        take_best_effort(batch, evictions, waiting, self.state.calm, starts)
        make_room(batch, ready, self._victims)
        return batch, drafts

    def _take_drafts(self, batch: Batch, start_s: float) -> Drafts:
        """What the slice drafts for each decode in the batch, which has so much less room then."""
        if not self.view.speculation.most:
            return None
        joins, position = self.state.plan.joins, self.state.position
        tiers = {id: k for id, k in self.state.tiers.items() if joins.get(id, 0) <= position}
        per_s = self.state.rate.per_s(start_s)
        stated = stated_drafts(self.view, batch.slots, self.slice, tiers, per_s)
        if stated is None:
            return None
        batch.tokens = max(0, batch.tokens - sum(stated))
        return dict(zip(batch.slots, stated, strict=True))

    def _places(self, begun: Ints, preempted: list[int]) -> list[Place]:
        """Of prompts that have begun, in the order of those that wait."""
        gone = set(preempted)
        slots = [slot for slot in begun.tolist() if slot not in gone]
        due = places(self.view.table, slots, self.rules)
        return [(at_s - PRIORITY_S, slot) for at_s, slot in zip(due, slots, strict=True)]

    def _are_due(self, decodes: Ints) -> Bools:
        """Decodes that the slice has a token for, [n]: those unknown to the plan always; those ahead of it not yet, or,
        without credit, always."""
        lengths, tiers = self.slice.lengths, self.state.tiers
        joins, position = self.state.plan.joins, self.state.position

        def is_due(id: int) -> bool:
            if id not in tiers:
                return True
            if joins.get(id, 0) > position:
                return not self.rules.credit
            return lengths[tiers[id]] > 0

        return np.array([is_due(id) for id in self.view.table.ids[decodes].tolist()], dtype=bool)

    def _victims(self, view: View) -> Ints:
        """Best-effort requests, the last to have come first; then prompts, then decodes, the latest deadline first."""
        table, running = view.table, view.table.running
        mine, decode = (
            are_admitted(table, running, self.state.best_effort),
            is_decode(table, running),
        )
        last_s = np.where(mine, due_s(table, running, self.rules), table.arrival_s[running])
        return running[np.lexsort((-last_s, decode & mine, mine))]
