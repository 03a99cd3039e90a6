"""What a scheduler has learnt, kept from session to session and handed over to a successor.

The requests are not in it: journals and inventories tell of them. What a policy remembers goes to a successor with the
same policy; another one begins anew.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from msgspec import Struct

from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.cost_model import Coefficients, CostModel
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.memory.policy import MemoryPolicy
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.predictors.class_quantiles import ClassMedian
from accelgen.scheduler.predictors.kinds import make_predictor
from accelgen.scheduler.predictors.learnt import Learner, Learnt, Regression
from accelgen.scheduler.routing.planned import PLANNED
from accelgen.scheduler.routing.policy import Routing
from accelgen.scheduler.speculation import DraftState

VERSION = 1
MOST_BYTES = 1 << 20  # it passes through the supervisor
MOST_PATIENCE = 64.0

log = structlog.get_logger()


class CostState(Struct, frozen=True):
    """A CostModel as values."""

    coefficients: Coefficients
    scale: float
    upper: float
    lower: float
    observed: int


class Snapshot(Struct, frozen=True):
    """What travels: `outputs` are the output lengths seen last by class, `costs`, `states` and `memory_states` (of the
    policy, and of the memory policy) are by replica. The kind of length predictor, its parameters, and the regression
    of one that fits any came later; without them it is the class median. So did the memory policy, and the routing with
    its state and the incarnations of the workers and KV managers, by replica, that this is about; and `last`: what the
    policy is to be told with the next View, by replica."""

    version: int
    policy: str
    outputs: dict[str, list[int]]
    costs: dict[int, CostState]
    states: dict[int, Any]
    predictor: str = ClassMedian.name
    predictor_params: dict[str, Any] = {}  # msgspec copies it
    regression: Regression | None = None
    memory: str = ON_DEMAND.name
    memory_states: dict[int, Any] = {}
    routing: str = PLANNED.name
    routing_state: Any = None
    workers: dict[int, int] = {}
    drafts: dict[int, DraftState] = {}
    managers: dict[int, int] = {}
    last: dict[int, dict[int, int]] = {}


@dataclass
class Experience:
    """`patience`: how many times its bound an iteration may take; doubled when one did not come back. `memory`: the
    name of the memory policy whose `memory_states` they are. `routing`: likewise, None for no state; `workers`,
    `managers`: the incarnations, by replica, that it has known last; `last`: View.last, which belongs to the
    states."""

    predictor: Learner = field(default_factory=ClassMedian)
    costs: dict[int, CostModel] = field(default_factory=dict)
    states: dict[int, Any] = field(default_factory=dict)
    patience: float = 1.0
    memory: str = ON_DEMAND.name
    memory_states: dict[int, Any] = field(default_factory=dict)
    routing: str = PLANNED.name
    routing_state: Any = None
    workers: dict[int, int] = field(default_factory=dict)
    drafts: dict[int, DraftState] = field(default_factory=dict)
    managers: dict[int, int] = field(default_factory=dict)
    last: dict[int, dict[int, int]] = field(default_factory=dict)

    def give_to(self, core: SchedulerCore) -> None:
        """A new core knows what its forerunner knew."""
        core.predictor = self.predictor
        for index, replica in core.replicas.items():
            replica.cost = self.costs.get(index, replica.cost)
            replica.state = self.states.get(index, replica.state)
            replica.last = self.last.get(index, replica.last)
            if self.memory == core.memory.name:
                replica.memory_state = self.memory_states.get(index, replica.memory_state)
            replica.patience = self.patience
            if index in self.drafts:
                replica.speculation.go_on_from(self.drafts[index])
        if self.routing == core.placement.routing.name and self.routing_state is not None:
            core.placement.state = self.routing_state
            for known, now in ((self.workers, core.workers), (self.managers, core.managers)):
                for index in now:
                    if known.get(index, now[index]) != now[index]:
                        core.placement.lose(index)

    def take_from(self, core: SchedulerCore) -> None:
        """Before a core is given up."""
        if self.memory != core.memory.name:
            self.memory, self.memory_states = core.memory.name, {}
        for index, replica in core.replicas.items():
            self.costs[index], self.states[index] = replica.cost, replica.state
            self.last[index] = replica.last
            self.memory_states[index] = replica.memory_state
            if replica.speculation.most:
                self.drafts[index] = replica.speculation.state()
        self.routing, self.routing_state = core.placement.routing.name, core.placement.state
        self.workers.update(core.workers)
        self.managers.update(core.managers)
        came_back = any(replica.steps for replica in core.replicas.values())
        self.patience = 1.0 if came_back else min(MOST_PATIENCE, 2 * self.patience)

    def packed(self, policy: Policy) -> bytes:
        """For a successor. A state that does not travel stays behind, which is logged: that of the routing first, which
        comes back with the requests that live."""
        costs = {
            index: CostState(c.coefficients, c.scale, c.upper, c.lower, c.observed)
            for index, c in self.costs.items()
        }
        predictor, learnt = self.predictor, self.predictor.learnt()
        bare = Snapshot(
            VERSION,
            policy.name,
            learnt.outputs,
            costs,
            {},
            predictor.name,
            predictor.params,
            learnt.regression,
            self.memory,
            routing=self.routing,
            workers=self.workers,
            drafts=self.drafts,
            managers=self.managers,
        )
        found = bare
        for owner, more in (
            (
                policy.name,
                {"states": self.states, "last": self.last, "memory_states": self.memory_states},
            ),
            (self.routing, {"routing_state": self.routing_state}),
        ):
            try:
                more = {name: msgspec.to_builtins(state) for name, state in more.items()}
                whole = msgspec.structs.replace(found, **more)
                size = len(msgspec.msgpack.encode(whole))
                if size <= MOST_BYTES:
                    found = whole
                    continue
                cause = f"{size} bytes of {MOST_BYTES} allowed"
            except (TypeError, ValueError, OverflowError, RecursionError) as error:
                cause = str(error)
            log.warning("the policy's state is not handed over", policy=owner, cause=cause)
        return msgspec.msgpack.encode(found)


def unpacked(
    data: bytes, policy: Policy, memory: MemoryPolicy = ON_DEMAND, routing: Routing = PLANNED
) -> Experience:
    """What a forerunner has left; what of it cannot be used is left out, which is logged."""
    if not data:
        return Experience()
    try:
        found = msgspec.msgpack.decode(data, type=Snapshot)
        if found.version != VERSION:
            raise ValueError(f"version {found.version} of {VERSION}")
    except (msgspec.MsgspecError, ValueError) as error:
        log.warning("the snapshot cannot be used", cause=str(error))
        return Experience()
    costs = {}
    for index, state in found.costs.items():
        costs[index] = cost = CostModel(state.coefficients)
        cost.scale, cost.upper, cost.lower = state.scale, state.upper, state.lower
        cost.observed = state.observed
    states = _states(found.states, found.policy, policy)
    return Experience(
        _predictor(found),
        costs,
        states,
        memory=memory.name,
        memory_states=_states(found.memory_states, found.memory, memory),
        routing=routing.name,
        routing_state=_states({0: found.routing_state}, found.routing, routing).get(0),
        workers=dict(found.workers),
        drafts=found.drafts,
        managers=dict(found.managers),
        last={index: last for index, last in found.last.items() if index in states},
    )


def _predictor(found: Snapshot) -> Learner:
    learnt = Learnt(found.outputs, found.regression)
    try:
        return make_predictor(found.predictor, found.predictor_params, learnt)
    except ValueError as error:
        log.warning("the length predictor cannot be used", cause=str(error))
        return ClassMedian(learnt)


def _states(
    states: dict[int, Any], owner: str, policy: Policy | MemoryPolicy | Routing
) -> dict[int, Any]:
    """The states of `owner` as those of `policy`; none if that is another one, or they are of another shape."""
    if owner != policy.name:
        return {}
    kind = type(policy.initial())
    try:
        return {index: msgspec.convert(state, kind) for index, state in states.items()}
    except (msgspec.MsgspecError, TypeError, ValueError) as error:
        log.warning("the policy's state cannot be used", policy=policy.name, cause=str(error))
        return {}
