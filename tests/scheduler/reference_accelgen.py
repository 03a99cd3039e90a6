"""AccelGen's urgent set and its windows as the rule says them, one candidate at a time, asked whether or not it can
still fit: what the faster code in `scheduler/policies` must decide, too. (Nearness itself: test_accelgen.py.)"""

from __future__ import annotations

from typing import Any

import numpy as np

from accelgen.scheduler.policies.accelgen import AccelGen, Memory
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.policies.slack import Pace
from accelgen.scheduler.policies.urgent import Candidates, make_room
from accelgen.scheduler.policy import Decision, View
from accelgen.scheduler.table import WAITING


class ReferenceAccelGen(AccelGen):
    """Put it behind a variant among the bases of a class, and the variant is built on it."""

    def plan(self, view: View, state: Memory, start_s: float) -> tuple[Decision, Memory]:
        pace = self._pace(view, state)
        found, tightest_s = self._candidates(view, pace, start_s)
        budget = self._budget(view, state, found, tightest_s)
        batch = Batch(view, budget)
        if len(found.slots):
            take_urgent(batch, found, pace.longest_s)
            self._take_similar(batch, state, found, budget, pace)
            make_room(batch, found)
        return batch.decision(), state

    def _take_similar(
        self, batch: Batch, state: Memory, found: Candidates, budget: int, pace: Pace
    ) -> None:
        gone = {*batch.slots, *batch.preempted}
        left = [
            i
            for i, slot in enumerate(found.slots.tolist())
            if slot not in gone and (found.running[i] or not batch.preempted)
        ]
        left.sort(key=lambda i: float(found.remaining_s[i]))
        long = {
            i for i in range(len(found.slots)) if not found.decode[i] and found.pending[i] > budget
        }
        begun = {
            i
            for i in range(len(found.slots))
            if found.running[i] and not found.decode[i] and found.pending[i] > 0
        }
        cut = np.array([i in long | begun for i in range(len(found.slots))])
        is_open = True
        while left and batch.tokens > 0:
            until_s = float(found.remaining_s[left[0]]) + self.gamma_s
            window = [i for i in left if found.remaining_s[i] <= until_s]
            left = left[len(window) :]
            exclusive = begun or any(int(found.slots[i]) in batch.slots for i in long)
            chosen = np.array(
                [
                    i
                    for i in window
                    if (i not in long or i in begun or not exclusive)
                    and (found.running[i] or is_open)
                ],
                dtype=np.int64,
            )
            is_open = (
                self._fill(batch, self._contest(batch, found, chosen, cut, budget)) and is_open
            )


def take_urgent(batch: Batch, found: Candidates, longest_s: float) -> None:
    table = batch.view.table
    rank = range(len(found.slots))
    urgent = sorted(
        (i for i in rank if found.remaining_s[i] < longest_s),
        key=lambda i: (not found.decode[i], found.remaining_s[i]),
    )
    others = [i for i in rank if found.running[i] and found.remaining_s[i] >= longest_s]
    victims = found.slots[sorted(others, key=lambda i: found.remaining_s[i])].tolist()
    for slot in found.slots[urgent].tolist():
        if batch.tokens < 1:
            return
        newcomer = table.state[slot] == WAITING
        wanted = min(batch.pending(slot), batch.tokens)
        while victims and (
            not batch.admits(slot) if newcomer else batch.block_demand(slot, wanted) > batch.blocks
        ):
            batch.preempt(victims.pop())
        chunk = batch.largest_chunk(slot, wanted)
        if chunk and (not newcomer or batch.admits(slot)):
            batch.take(slot, chunk)


def referring(policy: Any) -> Any:
    """An AccelGen of the same kind and parameters, on the reference."""
    bases = (ReferenceAccelGen,) if type(policy) is AccelGen else (type(policy), ReferenceAccelGen)
    return type("Reference", bases, {})(policy.gamma_s, policy.pivot_tokens, policy.raw_units)
