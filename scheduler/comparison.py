"""One decision beside another: a policy that carries out what was recorded, and asks another what it would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from accelgen.proto.messages import Plan
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.decision import check, clip
from accelgen.scheduler.policy import Decision, Policy, StepStats, Verdict, View, is_decode
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import RUNNING, WAITING, RequestTable

Result = TypeVar("Result")


class PolicyFailed(RuntimeError):
    """The policy raised something outside of `plan`; the text is one line."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided: tokens by request, whose KV is dropped, what the iteration would take. `tightest_s`: the
    shortest time per token that a decoding request in it was promised, infinite for none."""

    counts: dict[int, int]
    preempt: frozenset[int]
    prefill_tokens: int
    decodes: int
    predicted_s: float
    tightest_s: float

    @classmethod
    def of(cls, decision: Decision, replica: Replica) -> Choice:
        table, slots = replica.table, np.array(decision.slots, dtype=np.int64)
        decode = is_decode(table, slots)
        work = Work.of(table.computed[slots], np.array(decision.counts, dtype=np.int64), decode)
        return cls(
            dict(zip(table.ids[slots].tolist(), decision.counts, strict=True)),
            frozenset(int(table.ids[slot]) for slot in decision.preempt),
            work.prefill_tokens,
            work.decode_seqs,
            replica.cost.predict(work) if len(slots) else 0.0,
            float(table.tpot_s[slots[decode]].min(initial=np.inf)),
        )

    @property
    def tokens(self) -> int:
        return self.prefill_tokens + self.decodes


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both decisions at one moment. `step` -1: nothing had been planned. `other` None: it failed, as `fault` says."""

    replica: int
    step: int
    moment_s: float
    recorded: Choice
    other: Choice | None
    fault: str = ""

    @property
    def same(self) -> bool:
        """The same tokens for the same requests, and the same preempted."""
        other, recorded = self.other, self.recorded
        return other is not None and (recorded.counts, recorded.preempt) == (
            other.counts,
            other.preempt,
        )


@dataclass(slots=True)
class Asked:
    """What the next call of `Rerun.plan` is about. `plan` None: nothing was planned then. `complete` turns false if the
    plan names what the table does not have."""

    index: int
    replica: Replica
    moment_s: float
    plan: Plan | None
    complete: bool = True
    comparison: Comparison | None = None

    def recorded(self) -> Decision:
        """The decision that the plan was made of."""
        if self.plan is None:
            return Decision([], [], [])
        table = self.replica.table
        decision = Decision([], [], [])
        for id, count in zip(self.plan.ids, self.plan.counts, strict=True):
            if _has_pending(table, id, count):
                decision.slots.append(table.slot_of[id])
                decision.counts.append(count)
            else:
                self.complete = False
        for id in self.plan.swap_in:  # how many tokens it was to process is not known any more
            if _has_pending(table, id, 1) and table.away[table.slot_of[id]]:
                decision.slots.append(table.slot_of[id])
                decision.counts.append(1)
            else:
                self.complete = False
        for id in self.plan.preempt + self.plan.swap_out:
            if id in table.slot_of and table.state[table.slot_of[id]] == RUNNING:
                decision.preempt.append(table.slot_of[id])
            else:
                self.complete = False
        gone = {*self.plan.swap_out}
        decision.swap = [slot for slot in decision.preempt if int(table.ids[slot]) in gone]
        self._recall_blocks(decision, table)
        return decision

    def _recall_blocks(self, decision: Decision, table: RequestTable) -> None:
        """Allocations and embeddings of requests that are there."""
        plan, slot_of = self.plan, table.slot_of
        assert plan is not None
        running = {*table.running.tolist()} - {*decision.preempt}
        known = running | {*decision.slots}
        for id, blocks in zip(plan.allocate_ids, plan.allocate_blocks, strict=True):
            if slot_of.get(id) in known:
                decision.allocate[slot_of[id]] = blocks
        for guest, host in zip(plan.embed_guests, plan.embed_hosts, strict=True):
            if slot_of.get(guest) in known and slot_of.get(host) in running:
                decision.embed[slot_of[guest]] = slot_of[host]


class Rerun:
    """A Policy: the state is the other policy's, and so is the waiting order; what is done is what was recorded."""

    def __init__(self, other: Policy) -> None:
        self.other, self.name = other, other.name
        self.home = 0  # the recorded place, among the views, of the request that arrives next
        self.elsewhere = self.arrivals = 0
        self.asked: Asked | None = None

    def initial(self) -> Any:
        return self._ask(self.other.initial)

    def order_key(self, view: View, slot: int, state: Any) -> float:
        return self._ask(self.other.order_key, view, slot, state)

    def admit(self, request: Request, views: Sequence[View]) -> Verdict:
        verdict = self._ask(self.other.admit, request, views)
        self.arrivals += 1
        self.elsewhere += verdict.replica != self.home
        return Verdict(self.home, verdict.predicted_ttft_s)

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        asked = self.asked
        assert asked is not None
        recorded = asked.recorded()
        other, fault = None, ""
        try:
            decision, state = self.other.plan(view, state, start_s)
            other = Choice.of(_admissible(decision, asked.replica, self.name), asked.replica)
            for slot in decision.requeue.keys() - recorded.slots:
                recorded.requeue[slot] = decision.requeue[slot]
        except (
            Exception
        ) as error:  # it is somebody's policy on trial: whatever it raises is a result
            fault = _line(error)
        asked.comparison = Comparison(
            asked.index,
            -1 if asked.plan is None else asked.plan.step,
            asked.moment_s,
            Choice.of(recorded, asked.replica),
            other,
            fault,
        )
        return recorded, state

    def observe(self, step: StepStats, state: Any) -> Any:
        return self._ask(self.other.observe, step, state)

    def _ask(self, method: Callable[..., Result], *arguments: Any) -> Result:
        try:
            return method(*arguments)
        except Exception as error:
            raise PolicyFailed(f"{self.name}: {method.__name__}: {_line(error)}") from error


def _admissible(decision: Decision, replica: Replica, policy: str) -> Decision:
    """As the server would have carried it out."""
    reach = replica.reach(decision, check(decision, replica.table, policy))
    clip(reach.entries, replica.table.block_size, replica.limits, replica.cost)
    decision.slots = reach.entries.slots.tolist() + reach.back
    decision.counts = reach.entries.counts.tolist() + [1] * len(reach.back)
    return decision


def _has_pending(table: RequestTable, id: int, count: int) -> bool:
    slot = table.slot_of.get(id)
    if slot is None or table.state[slot] < WAITING:
        return False
    return bool(count <= table.remaining(np.array([slot]))[0])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
