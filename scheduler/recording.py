"""The scheduler's core with a recorder: what `accelgen replay` needs besides the messages themselves.

Messages are recorded where they travel (`accelgen.proto.sockets`). Here goes down what happened to the core in which
order and when, so that the same inputs at the same times can be given to it again:

    core made    (standing) policy, limits, replicas, and what was known from before
    calls        inputs, when many come between two plans
    plan begun   the inputs since the last one, the moment, and the situation before the policy is asked
    learnt       what is known now, once in a while: for a recording whose beginning is lost
    thinking over  a request and after how many tokens: what these are is not in a dump

A call is [what, index of the peer, moment, key]; the key tells which message it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import structs

from accelgen.proto.config import Config
from accelgen.proto.messages import Abort, Inventory, KvReport, StepResult, Submit
from accelgen.proto.recorder import fact, standing_fact
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.memory.policy import MemoryPolicy
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.predictors.class_quantiles import ClassMedian
from accelgen.scheduler.predictors.kinds import is_learner
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.policy import Routing
from accelgen.scheduler.snapshot import Experience

CORE_MADE, CALLS, PLAN_BEGUN, LEARNT = "core made", "calls", "plan begun", "learnt"
THINKING_OVER = "thinking over"
MOST_CALLS = 200  # kept back for the next plan
LEARNT_EVERY = 256  # plans
RECORDED_CONFIG = (
    "policy", "policy_params", "pipeline_depth", "max_num_seqs", "max_num_batched_tokens",
    "max_step_s", "slo_classes", "default_class", "preemption", "memory", "memory_params",
    "routing",
    "drafter", "max_draft_tokens", "draft_tokens",
)  # fmt: skip

Key = int | list[int]


def submit_key(submit: Submit) -> Key:
    return submit.prompt.id


def abort_key(abort: Abort) -> Key:
    return abort.ids[0] if abort.ids else 0


def report_key(report: KvReport) -> Key:
    return [report.step, report.hit_ids[0] if report.hit_ids else 0]


def result_key(result: StepResult) -> Key:
    return result.step


def situation(replica: Replica) -> list[int]:
    """What a replay must agree on before it may compare: requests running, waiting, arriving; tokens computed of the
    running ones and pending of the others; blocks free and pinned."""
    table = replica.table
    running, waiting = len(table.running), len(table.waiting)
    return [
        running,
        waiting,
        len(table) - running - waiting,
        int(table.computed[table.running].sum()),
        table.waiting_tokens,
        replica.free_blocks,
        replica.pinned_blocks,
    ]


def cost_values(replica: Replica) -> list[float]:
    """The cost model as of now: its seven coefficients, scale, upper, lower, number of observations."""
    cost = replica.cost
    return [*structs.astuple(cost.coefficients), cost.scale, cost.upper, cost.lower, cost.observed]


class RecordedCore(SchedulerCore):
    """Every method that changes the core says so to the recorder. Calls that a call makes itself are not recorded."""

    def __init__(
        self,
        config: Config,
        policy: Policy,
        replicas: Mapping[int, ReplicaSpec],
        memory: MemoryPolicy | None = None,
        routing: Routing | None = None,
    ) -> None:
        super().__init__(config, policy, replicas, memory=memory, routing=routing)
        self._specs = replicas
        self._calls: list[tuple[str, int, float, Key]] = []
        self._inside = self._said = False
        self._plans = 0

    def on_submit(self, submit: Submit, frontend: int, now_s: float) -> None:
        self._call("submit", frontend, now_s, submit_key(submit))
        self._within(super().on_submit, submit, frontend, now_s)

    def on_abort(self, abort: Abort, now_s: float) -> None:
        self._call("abort", -1, now_s, abort_key(abort))
        self._within(super().on_abort, abort, now_s)

    def on_frontend_lost(self, frontend: int, now_s: float) -> None:
        self._call("lost", frontend, now_s)
        self._within(super().on_frontend_lost, frontend, now_s)

    def inherit(self, inventory: Inventory, index: int) -> None:
        self._call("inherit", index, 0.0)
        self._within(super().inherit, inventory, index)

    def go_on(self) -> None:
        self._call("go on", -1, 0.0)
        self._within(super().go_on)

    def release_unclaimed(self) -> None:
        self._call("release", -1, 0.0)
        self._within(super().release_unclaimed)

    def on_report(self, report: KvReport, index: int, now_s: float) -> None:
        self._call("report", index, now_s, report_key(report))
        self._within(super().on_report, report, index, now_s)

    def on_result(self, result: StepResult, index: int, now_s: float) -> None:
        self._call("result", index, now_s, result_key(result))
        self._within(super().on_result, result, index, now_s)

    def expire(self, now_s: float) -> None:
        if self._expiry.next_s() <= now_s:
            self._call("expire", -1, now_s)
        self._within(super().expire, now_s)

    def plan_for(self, indices: Sequence[int], now_s: float) -> None:
        if indices:
            calls, self._calls = self._calls, []
            if self._plans % LEARNT_EVERY == LEARNT_EVERY - 1:
                fact(LEARNT, snapshot=self._learnt())
            self._plans += 1
            replicas = [self.replicas[index] for index in indices]
            fact(
                PLAN_BEGUN,
                now_s=now_s,
                calls=calls,
                due=indices,
                situations=[situation(replica) for replica in replicas],
                costs=[cost_values(replica) for replica in replicas],
            )
        super().plan_for(indices, now_s)

    def _note_thinking(self, request: Request) -> None:
        fact(THINKING_OVER, id=request.id, tokens=request.thought)

    def _call(self, what: str, index: int, now_s: float, key: Key = 0) -> None:
        if self._inside:
            return
        if (
            not self._said
        ):  # not before: what is known from before is given to a core after it has been made
            self._said = True
            self._say_made()
        self._calls.append((what, index, now_s, key))
        if len(self._calls) >= MOST_CALLS:
            calls, self._calls = self._calls, []
            fact(CALLS, calls=calls)

    def _within(self, work: Callable[..., None], *arguments: Any) -> None:
        outermost, self._inside = not self._inside, True
        try:
            work(*arguments)
        finally:
            self._inside = not outermost

    def _say_made(self) -> None:
        config = {name: getattr(self.config, name) for name in RECORDED_CONFIG}
        specs = {
            str(index): [spec.blocks, spec.block_size, msgspec.to_builtins(spec.copies)]
            for index, spec in self._specs.items()
        }
        standing_fact(CORE_MADE, config=config, replicas=specs, snapshot=self._learnt())

    def _learnt(self) -> bytes:
        known = Experience(self.predictor if is_learner(self.predictor) else ClassMedian())
        known.take_from(self)
        known.routing_state = None  # a replay puts requests where they were
        return known.packed(self.policy)
