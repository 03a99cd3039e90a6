"""Runs what a scheduler has recorded through another policy, and compares.

The real SchedulerCore gets the recorded messages at the recorded times; at every plan the other policy is asked for its
decision on the same View, and what had been decided then is carried out. So each decision is compared on its own: what
would have become of a different one is not simulated. What the other policy remembers is its own.

Token ids are zeros in a recording: a request that ended with a stop token does so by one that stands for all of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec
from msgspec import structs

from accelgen.proto.config import Config
from accelgen.proto.messages import (
    Abort,
    Body,
    Inventory,
    KvReport,
    Plan,
    Reason,
    StepResult,
    Submit,
)
from accelgen.proto.recorder import RECV
from accelgen.proto.recording import Fact, Message, Recording, RecordingError
from accelgen.scheduler.admission import roomy
from accelgen.scheduler.comparison import Asked, Comparison, Rerun, RerunMemory
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.memory.crossover import Copies
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.memory.policy import MemoryPolicy, memory_of
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.recording import (
    CALLS,
    CORE_MADE,
    LEARNT,
    PLAN_BEGUN,
    THINKING_OVER,
    Key,
    abort_key,
    report_key,
    result_key,
    situation,
    submit_key,
)
from accelgen.scheduler.replica import Replica, ResultOutOfTurn
from accelgen.scheduler.routing.planned import PLANNED
from accelgen.scheduler.snapshot import unpacked
from accelgen.scheduler.table import ARRIVING, WAITING, RequestTable

STOP_TOKEN, THINK_TOKEN = 1, 2
NO_CORE = "made by a scheduler whose beginning is not in the recording"
NOT_LEARNT = "before what the scheduler had learnt was recorded"
FOREIGN = "with requests from before the recording"
CUT_OFF = "at the very end, without its plan"
OTHER_POLICY = "made by another policy, before a swap"

_KEYS: dict[str, tuple[type[Body], Callable[[Any], Key]]] = {
    "submit": (Submit, submit_key),
    "abort": (Abort, abort_key),
    "report": (KvReport, report_key),
    "result": (StepResult, result_key),
}


@dataclass
class Outcome:
    """What came of a replay. `skipped` counts decisions that could not be compared, by cause. `recorded_policy` and
    its parameters are those of the last core in the recording."""

    recorded_policy: str
    recorded_params: dict[str, Any]
    comparisons: list[Comparison] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    arrivals: int = 0
    # of them, those that the other policy would have given another replica, had the routing left it the choice
    elsewhere: int = 0
    max_batched_tokens: int = 0
    max_step_s: float = 0.0


def recorded_policy(recording: Recording) -> tuple[str, dict[str, Any]]:
    """Name and parameters of the policy that was at work last. Raises RecordingError."""
    made = [e for e in recording.events if isinstance(e, Fact) and e.name == CORE_MADE]
    if not made:
        raise RecordingError(
            f"{recording.path}: {recording.process} has recorded no scheduling decision"
        )
    return _policy_of(_config_of(made[-1], recording))


def replay(recording: Recording, policy: Policy) -> Outcome:
    """Compares `policy` with all that the policy at work last has decided. Beside it works the memory policy that was
    recorded, or if that was the recorded policy's own, its own. Raises RecordingError, PolicyFailed, UnknownPolicy."""
    return _Replay(recording, policy).run()


class _Ahead:
    """What must be known of a recording before its time: in which place a request went, at which token it stopped,
    after how many its thinking was over, and what was decided. A *part* of a recording is the life of one core."""

    def __init__(self, recording: Recording) -> None:
        self.homes: dict[tuple[int, int], int] = {}  # (part, request id) -> replica; accepted ones
        self.stops: dict[tuple[int, int, int], int] = {}  # (part, step, request id) -> tokens in it
        self.thought: dict[tuple[int, int], int] = {}  # (part, request id) -> tokens
        self.plans: dict[int, dict[int, Plan]] = {}  # place of the fact -> by replica
        self.last = -1  # place of the last fact of a plan
        part = 0
        current: dict[int, Plan] = {}
        newest: dict[int, tuple[int, int]] = {}  # request id -> step, number of its newest tokens
        for place, event in enumerate(recording.events):
            if isinstance(event, Fact):
                if event.name == CORE_MADE:
                    part, current, newest = part + 1, {}, {}
                elif event.name == PLAN_BEGUN:
                    current = self.plans[place] = {}
                    self.last = place
                elif event.name == THINKING_OVER:
                    values = event.values
                    self.thought[part, values["id"]] = values["tokens"]
            elif event.direction != RECV:
                self._note(event, part, current, newest)

    def _note(
        self,
        event: Message,
        part: int,
        current: dict[int, Plan],
        newest: dict[int, tuple[int, int]],
    ) -> None:
        match event.kind:
            case "Plan":
                plan = event.body
                assert isinstance(plan, Plan)
                current[_index(event.peer)] = plan
            case "Lookup":
                for prompt in event.field("prompts"):
                    self.homes[part, prompt[0]] = _index(event.peer)
            case "Tokens":
                step = event.field("step")
                for id, count in zip(event.field("ids"), event.field("counts"), strict=True):
                    newest[id] = step, count
            case "Finished":
                for id, reason, *_ in event.field("ends"):
                    if reason == Reason.STOP and id in newest:
                        step, count = newest[id]
                        self.stops[part, step, id] = count


class _Replay:
    def __init__(self, recording: Recording, policy: Policy) -> None:
        self.recording, self.policy = recording, policy
        self.ahead = _Ahead(recording)
        self.outcome = Outcome(*recorded_policy(recording))
        self.part = 0
        self.swapped = False  # the core at work has another policy than the last one
        self.core: SchedulerCore | None = None
        self.rerun = Rerun(policy)
        self.memory: MemoryPolicy = ON_DEMAND  # beside it, in the core at work
        self.learnt = False  # what the scheduler knew is known here
        self.early: dict[
            int, set[int]
        ] = {}  # by replica: requests that were given a place in the order before
        self.epoch = 0
        self.pending: dict[str, list[Message]] = {}  # received, not yet given to the core

    def run(self) -> Outcome:
        for place, event in enumerate(self.recording.events):
            if isinstance(event, Message):
                self._note(event)
            elif event.name == CORE_MADE:
                self._make_core(event)
            elif event.name == LEARNT and self.core is not None and not self.learnt:
                self._give(event.values["snapshot"])
            elif event.name == CALLS:
                self._call(event.values["calls"])
            elif event.name == PLAN_BEGUN:
                self._call(event.values["calls"])
                self._plan(place, event)
        self.outcome.arrivals += self.rerun.arrivals
        self.outcome.elsewhere += self.rerun.elsewhere
        return self.outcome

    def _note(self, message: Message) -> None:
        if message.peer == "supervisor":
            return
        self.epoch = max(self.epoch, message.header.epoch)
        if message.direction == RECV:
            self.pending.setdefault(message.kind, []).append(message)

    def _make_core(self, made: Fact) -> None:
        config = _config_of(made, self.recording)
        specs = {int(index): _spec_of(told) for index, told in made.values["replicas"].items()}
        self.part += 1
        self.memory = memory_of(self.policy, config)
        beside = RerunMemory(self.rerun, self.memory)
        self.rerun.chooses = config.routing in ("", PLANNED.name)
        self.core = SchedulerCore(config, self.rerun, specs, memory=beside, routing=PLANNED)
        for kind, waiting in self.pending.items():  # the rest was for the core before
            self.pending[kind] = [m for m in waiting if m.header.epoch == self.epoch]
        last = (self.outcome.recorded_policy, self.outcome.recorded_params)
        self.swapped = _policy_of(config) != last
        self.outcome.max_batched_tokens = config.max_num_batched_tokens
        self.outcome.max_step_s = config.max_step_s
        self.learnt = False
        if not made.standing:
            self._give(made.values["snapshot"])

    def _give(self, snapshot: bytes) -> None:
        assert self.core is not None
        unpacked(snapshot, self.policy, self.memory).give_to(self.core)
        self.learnt = True
        self.early = {i: set(one.table.slot_of) for i, one in self.core.replicas.items()}

    # --- inputs --------------------------------------------------------------------------------------------------

    def _call(self, calls: list[tuple[str, int, float, Key]]) -> None:
        core = self.core
        if core is None:
            return
        for what, index, now_s, key in calls:
            match what:
                case "lost":
                    core.on_frontend_lost(index, now_s)
                case "inherit":
                    self._inherit(core, index)
                case "go on":
                    core.go_on()
                case "release":
                    core.release_unclaimed()
                case "expire":
                    core.expire(now_s)
                case _:
                    body = self._take(what, key)
                    if body is not None:
                        self._feed(core, body, index, now_s)
            core.outbox.clear()

    def _take(self, what: str, key: Key) -> Body | None:
        """The received message that a call was about; None if it came before the recording begins. What was received
        before it and not given to the core then, never will be."""
        kind, key_of = _KEYS[what]
        waiting = self.pending.get(kind.__name__, [])
        for place, message in enumerate(waiting):
            body = message.body
            if key_of(body) == key:
                del waiting[: place + 1]
                return body
        return None

    def _feed(self, core: SchedulerCore, body: Body, index: int, now_s: float) -> None:
        match body:
            case Submit():
                home = self.ahead.homes.get((self.part, body.prompt.id))
                views = {i: replica.view() for i, replica in core.replicas.items()}
                prompt = body.prompt
                able = roomy(views, len(prompt.tokens) - prompt.generated + body.max_tokens)
                if home in able:  # else it was refused, or over
                    self.rerun.home = [*able].index(home)
                    core.on_submit(self._with_ends(body), index, now_s)
            case Abort():
                core.on_abort(body, now_s)
            case KvReport():
                core.on_report(body, index, now_s)
            case StepResult():
                if any(flight.step == body.step for flight in core.replicas[index].flights):
                    self._feed_result(core, body, index, now_s)

    def _with_ends(self, submit: Submit) -> Submit:
        """With tokens of our own for where it ends and where its thinking does: in the recording all are zero."""
        objective, prompt = submit.objective, submit.prompt
        if objective.thinking is not None and objective.thinking.end_ids:
            thinking = structs.replace(objective.thinking, end_ids=[THINK_TOKEN])
            objective = structs.replace(objective, thinking=thinking)
            over = self.ahead.thought.get((self.part, prompt.id), 0)
            if 0 < over <= prompt.generated:
                tokens = list(prompt.tokens)
                tokens[len(tokens) - prompt.generated + over - 1] = THINK_TOKEN
                prompt = structs.replace(prompt, tokens=tokens)
        return structs.replace(
            submit, prompt=prompt, stop_token_ids=[STOP_TOKEN], objective=objective
        )

    def _feed_result(
        self, core: SchedulerCore, result: StepResult, index: int, now_s: float
    ) -> None:
        tokens, at = [0] * len(result.tokens), 0
        table = core.replicas[index].table
        for id, count in zip(result.ids, result.counts, strict=True):
            stop = self.ahead.stops.get((self.part, result.step, id), 0)
            if 0 < stop <= count:  # what was accepted behind it has not been sent
                tokens[at + stop - 1] = STOP_TOKEN
            over = self.ahead.thought.get((self.part, id), 0)
            if over and id in table.slot_of:
                place = over - 1 - len(table.request(table.slot_of[id]).generated)
                if 0 <= place < count:
                    tokens[at + place] = THINK_TOKEN
            at += count
        with suppress(ResultOutOfTurn):  # as it was then: another core follows
            core.on_result(structs.replace(result, tokens=tokens), index, now_s)

    def _inherit(self, core: SchedulerCore, index: int) -> None:
        found = [
            message
            for message in self.pending.get("Inventory", [])
            if message.peer == f"kvmanager-{index}"
        ]
        if found:
            inventory = found[-1].body
            assert isinstance(inventory, Inventory)
            core.inherit(inventory, index)

    # --- decisions -----------------------------------------------------------------------------------------------

    def _plan(self, place: int, begun: Fact) -> None:
        core, values = self.core, begun.values
        if core is None:
            self.outcome.skipped[NO_CORE] += len(values["due"])
            return
        plans = self.ahead.plans[place]
        for index, expected, cost in zip(
            values["due"], values["situations"], values["costs"], strict=True
        ):
            replica, plan = core.replicas[index], plans.get(index)
            _set_cost(replica, cost)
            alike = situation(replica) == expected
            if plan is not None:
                replica.step = plan.step
            learnt = self._has_learnt(index, replica.table)
            asked = self.rerun.asked = Asked(index, replica, values["now_s"], plan)
            core.plan_for([index], values["now_s"])
            core.outbox.clear()
            self._judge(asked, learnt, alike, place == self.ahead.last)

    def _has_learnt(self, index: int, table: RequestTable) -> bool:
        """Whether the order in which requests wait is that of a policy which knew what it knew then."""
        early = self.early[index] = {id for id in self.early.get(index, ()) if _waits(table, id)}
        return self.learnt and not early

    def _judge(self, asked: Asked, learnt: bool, alike: bool, last: bool) -> None:
        skipped = self.outcome.skipped
        if self.swapped:
            skipped[OTHER_POLICY] += 1
        elif not learnt:
            skipped[NOT_LEARNT] += 1
        elif not (alike and asked.complete):
            skipped[FOREIGN] += 1
        elif last and asked.plan is None:
            skipped[CUT_OFF] += 1
        elif asked.comparison is not None:
            self.outcome.comparisons.append(asked.comparison)


def _waits(table: RequestTable, id: int) -> bool:
    return id in table.slot_of and table.state[table.slot_of[id]] in (ARRIVING, WAITING)


def _set_cost(replica: Replica, values: list[float]) -> None:
    *coefficients, scale, upper, lower, observed = values
    cost = replica.cost
    cost.coefficients = Coefficients(*coefficients)
    cost.scale, cost.upper, cost.lower, cost.observed = scale, upper, lower, int(observed)


def _spec_of(told: list[Any]) -> ReplicaSpec:
    """Blocks, tokens per block and, in newer recordings, what copies of KV take."""
    blocks, size, *copies = told
    return ReplicaSpec(
        blocks, size, copies=msgspec.convert(copies[0], Copies | None) if copies else None
    )


def _policy_of(config: Config) -> tuple[str, dict[str, Any]]:
    return config.policy, dict(config.policy_params)


def _config_of(made: Fact, recording: Recording) -> Config:
    unbounded = {
        "max_queued_requests": 2**31,
        "max_queued_tokens": 2**62,
    }  # who was refused is known
    try:
        return msgspec.convert({**made.values["config"], **unbounded}, Config)
    except (msgspec.ValidationError, KeyError, TypeError) as error:
        raise RecordingError(f"{recording.path}: recorded by another accelgen: {error}") from error


def _index(peer: str) -> int:
    """3 of "kvmanager-3"."""
    return int(peer.rpartition("-")[2])
