"""One decision beside another: a policy that carries out what was recorded, and asks another, with the memory policy
beside it, what they would do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from accelgen.proto.messages import Plan
from accelgen.scheduler.decision import Entries, check
from accelgen.scheduler.memory.policy import MemoryPolicy
from accelgen.scheduler.policy import Decision, Policy, StepStats, Verdict, View, is_decode
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import RUNNING, WAITING, RequestTable

Result = TypeVar("Result")


class PolicyFailed(RuntimeError):
    """The policy raised something outside of `plan`; the text is one line."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided: tokens by request, whose KV is taken, what the iteration would take. `tightest_s`: the shortest
    time per token that a decoding request in it was promised, infinite for none. Of memory: whose KV goes to the host,
    how many blocks who is to hold, and who lives inside whom. `drafts`: how many tokens are drafted, at most, for those
    for whom any are; they are no part of the tokens above, but of the time."""

    counts: dict[int, int]
    preempt: frozenset[int]
    prefill_tokens: int
    decodes: int
    predicted_s: float
    tightest_s: float
    swap: frozenset[int] = frozenset()
    blocks: dict[int, int] = field(default_factory=dict)
    hosts: dict[int, int] = field(default_factory=dict)
    drafts: dict[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, decision: Decision, replica: Replica) -> Choice:
        table, slots = replica.table, np.array(decision.slots, dtype=np.int64)
        decode, counts = is_decode(table, slots), np.array(decision.counts, dtype=np.int64)
        entries = Entries(slots, counts, table.computed[slots], decode)
        work = entries.work
        entries.drafts = drafts = np.array(decision.drafts or [0] * len(slots), dtype=np.int64)
        ids = table.ids
        return cls(
            dict(zip(ids[slots].tolist(), decision.counts, strict=True)),
            frozenset(int(ids[slot]) for slot in decision.preempt),
            work.prefill_tokens,
            work.decode_seqs,
            replica.predicted_s(entries, entries.work) if len(slots) else 0.0,
            float(table.tpot_s[slots[decode]].min(initial=np.inf)),
            frozenset(int(ids[slot]) for slot in decision.swap or ()),
            {int(ids[slot]): blocks for slot, blocks in decision.allocate.items()},
            {int(ids[guest]): int(ids[host]) for guest, host in decision.embed.items()},
            {id: n for id, n in zip(ids[slots].tolist(), drafts.tolist(), strict=True) if n},
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
        """The same tokens and drafts for the same requests, the same preempted in the same way, the same memory
        given."""
        other, recorded = self.other, self.recorded
        return other is not None and all(
            getattr(recorded, what) == getattr(other, what)
            for what in ("counts", "drafts", "preempt", "swap", "blocks", "hosts")
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
        given = self.plan.drafts or [0] * len(self.plan.ids)
        drafts: list[int] = []
        decision = Decision([], [], [], drafts=drafts)
        for id, count, ahead in zip(self.plan.ids, self.plan.counts, given, strict=True):
            if _has_pending(table, id, count):
                decision.slots.append(table.slot_of[id])
                decision.counts.append(count)
                drafts.append(ahead)
            else:
                self.complete = False
        for id in self.plan.swap_in:  # how many tokens it was to process is not known any more
            if _has_pending(table, id, 1) and table.away[table.slot_of[id]]:
                decision.slots.append(table.slot_of[id])
                decision.counts.append(1)
                drafts.append(0)
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
    """A Policy: the state is the other policy's, and so is the waiting order; what is done is what was recorded. It
    decides as the other one does, and the RerunMemory beside it puts in the place of that what was recorded."""

    def __init__(self, other: Policy) -> None:
        self.other, self.name = other, other.name
        self.home = 0  # the recorded place, among the views, of the request that arrives next
        self.chooses = True  # the replica was the policy's choice, not that of a routing
        self.elsewhere = self.arrivals = 0
        self.asked: Asked | None = None
        self.fault = ""  # how it has failed to decide

    def initial(self) -> Any:
        return self.ask(self.other.initial)

    def order_key(self, view: View, slot: int, state: Any) -> float:
        return self.ask(self.other.order_key, view, slot, state)

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        verdict = self.ask(self.other.admit, request, views, now_s)
        self.arrivals += 1
        self.elsewhere += self.chooses and verdict.replica != self.home
        return Verdict(self.home, verdict.predicted_ttft_s)

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        self.fault = ""
        try:
            return self.other.plan(view, state, start_s)
        except (
            Exception
        ) as error:  # it is somebody's policy on trial: whatever it raises is a result
            self.fault = _line(error)
            return Decision([], [], []), state

    def observe(self, step: StepStats, state: Any) -> Any:
        return self.ask(self.other.observe, step, state)

    def ask(self, method: Callable[..., Result], *arguments: Any) -> Result:
        """What the other policy, or the memory policy beside it, says. Raises PolicyFailed."""
        try:
            return method(*arguments)
        except Exception as error:
            raise PolicyFailed(f"{self.name}: {method.__name__}: {_line(error)}") from error


class RerunMemory:
    """The MemoryPolicy beside a Rerun. Terms are those of `other`; what both of them would do is compared with what was
    recorded, which is done."""

    def __init__(self, rerun: Rerun, other: MemoryPolicy) -> None:
        self.rerun, self.other, self.name = rerun, other, other.name

    def initial(self) -> Any:
        return self.rerun.ask(self.other.initial)

    def inherited(self, state: Any) -> Any:
        return self.rerun.ask(self.other.inherited, state)

    def before(self, view: View, state: Any, start_s: float) -> tuple[View, Any]:
        return self.rerun.ask(self.other.before, view, state, start_s)

    def after(
        self, view: View, decision: Decision, state: Any, start_s: float
    ) -> tuple[Decision, Any]:
        asked, fault = self.rerun.asked, self.rerun.fault
        assert asked is not None
        recorded, other = asked.recorded(), None
        if not fault:
            try:
                decision, state = self.other.after(view, decision, state, start_s)
                view.table.clear_terms()
                admissible = _admissible(decision, asked.replica, self.rerun.name)
                other = Choice.of(admissible, asked.replica)
                recorded.requeue.update(decision.requeue)
                recorded.declined = decision.declined
            except Exception as error:  # as above
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
        return self.rerun.ask(self.other.observe, step, state)


def _admissible(decision: Decision, replica: Replica, policy: str) -> Decision:
    """As the server would have carried it out."""
    table = replica.table
    reach = replica.reach(decision, check(decision, table, policy))
    replica.cut(decision, reach)
    slots, counts = reach.entries.slots.tolist(), reach.entries.counts.tolist()
    drafts = [0] * len(slots) if reach.entries.drafts is None else reach.entries.drafts.tolist()
    decision.slots = slots + reach.back
    decision.counts = counts + [1] * len(reach.back)
    decision.drafts = drafts + [0] * len(reach.back)
    decision.swap = reach.out
    planned = dict(zip(slots, counts, strict=True))
    runs = ({*table.running.tolist()} - {*decision.preempt}) | {*slots}
    used = {s: -(-(int(table.computed[s]) + planned.get(s, 0)) // table.block_size) for s in runs}
    given = decision.allocate.items()
    decision.allocate = {s: max(blocks, used[s]) for s, blocks in given if s in runs}
    pairs = decision.embed.items()
    decision.embed = {s: host for s, host in pairs if s in runs or s in reach.back}
    return decision


def _has_pending(table: RequestTable, id: int, count: int) -> bool:
    slot = table.slot_of.get(id)
    if slot is None or table.state[slot] < WAITING:
        return False
    return bool(count <= table.remaining(np.array([slot]))[0])


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
