"""A replica with requests in chosen states, for a policy's rule worked out by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from accelgen.proto.messages import Objective, Sampling
from accelgen.scheduler.cost_model import Coefficients, CostModel, Work
from accelgen.scheduler.policy import Limits, Policy, StepStats, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import WAITING, RequestTable

LINEAR = Coefficients(a=0.01, b=0.0001, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)


def request(id: int, prompt: int, slo: Objective, max_tokens: int = 100) -> Request:
    return Request(id, 0, [1] * prompt, Sampling(), max_tokens, frozenset(), slo, "standard")


class Scene:
    """`blocks` free blocks of 16 tokens, and those that running requests hold. An iteration takes 10 ms + 0.1 ms per
    token, unless other coefficients are given."""

    def __init__(
        self, policy: Policy, blocks: int = 100, seats: int = 64, tokens: int = 8192,
        cost: Coefficients = LINEAR,
    ) -> None:  # fmt: skip
        self.policy, self.table = policy, RequestTable(16)
        self.limits, self.cost = Limits(seats, tokens, 100.0), CostModel(cost)
        self.free_blocks, self.pinned_blocks = blocks, 0
        self.state: Any = policy.initial()
        self.preempted: list[int] = []
        self.requeued: list[int] = []
        self.declined: list[int] = []
        self.last: dict[int, int] = {}

    @property
    def view(self) -> View:
        held = int(self.table.blocks[self.table.running].sum())
        total = self.free_blocks + held
        free, pinned = self.free_blocks, self.pinned_blocks
        return View(self.table, free, pinned, total, self.limits, self.cost, last=self.last)

    def waiting(
        self, prompt: int, ttft_s: float | None = 5.0, tpot_s: float | None = 0.2,
        at_s: float = 0.0, e2e_s: float | None = None, max_tokens: int = 100,
    ) -> int:  # fmt: skip
        """A new request; its slot."""
        id = 1 + len(self.table.slot_of)
        slo = Objective(ttft_s, tpot_s, e2e_s)
        slot = self.table.add(request(id, prompt, slo, max_tokens), at_s)
        self.table.enqueue(slot, self.policy.order_key(self.view, slot, self.state))
        return slot

    def running(self, prompt: int, computed: int, last_s: float = 0.0, **options: Any) -> int:
        """A decode if computed == prompt, else a prompt that has begun."""
        slot = self.waiting(prompt, **options)
        self.table.start(slot)
        sampled = self.table.plan(np.array([slot]), np.array([computed]), last_s)
        if sampled[0]:
            self.table.first_s[slot] = last_s
        return slot

    def plan(self, at_s: float = 0.0) -> dict[int, int]:
        """Tokens by slot; nothing is carried out but changes of the order, though the policy will be told so."""
        decision, self.state = self.policy.plan(self.view, self.state, at_s)
        self.preempted, self.requeued = decision.preempt, [*decision.requeue]
        self.declined = decision.declined
        for slot, key in decision.requeue.items():
            assert key == self.policy.order_key(self.view, slot, self.state)
            self.table.move(slot, key)
        ids = self.table.ids[decision.slots].tolist() if decision.slots else []
        self.last = dict(zip(ids, decision.counts, strict=True))
        return dict(zip(decision.slots, decision.counts, strict=True))

    def step(self, at_s: float = 0.0, run_s: float = 0.01) -> dict[int, int]:
        """Plans and carries it out: the table is projected, the policy hears of the iteration."""
        taken = self.plan(at_s)
        held = int(self.table.blocks[self.table.running].sum())
        for slot in self.preempted:
            self.table.computed[slot] = self.table.blocks[slot] = 0
            self.table.enqueue(slot, self.policy.order_key(self.view, slot, self.state))
        slots = np.array([*taken], dtype=np.int64)
        counts = np.array([*taken.values()], dtype=np.int64)
        for slot in slots[self.table.state[slots] == WAITING].tolist():
            self.table.start(slot)
        work = Work(prefill_tokens=int(counts.sum()))
        self.table.plan(slots, counts, at_s + run_s)
        self.free_blocks -= int(self.table.blocks[self.table.running].sum()) - held
        ids = self.table.ids[slots].tolist()
        stats = StepStats(run_s, [], len(self.preempted), 0, ids, work)
        self.state = self.policy.observe(stats, self.state)
        return taken

    def rank(self, slots: list[int]) -> list[int]:
        """The waiting ones of `slots` in the waiting order."""
        return [slot for _, slot in self.table.waiting if slot in slots]
