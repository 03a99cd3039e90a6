"""A scheduler process that is not in office: everything is imported, it waits for a policy and for its term."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import structlog
from msgspec.structs import replace

from accelgen.proto.child import Child
from accelgen.proto.messages import Assume, Prepare, Yield
from accelgen.scheduler import policies
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.memory.policy import MemoryPolicy, memory_of
from accelgen.scheduler.policy import Policy, UnknownPolicy, find_policy, load_policy
from accelgen.scheduler.routing.planned import PLANNED
from accelgen.scheduler.routing.policy import Routing, routing_of
from accelgen.scheduler.session import IDLE_S, Office
from accelgen.scheduler.snapshot import unpacked

PREPARE_S = 20.0  # what somebody's package may take to import, in silence

log = structlog.get_logger()


def import_policies() -> None:
    """Imports the policies of this package, and numpy; those of others may change before they are asked for."""
    for module in pkgutil.iter_modules(policies.__path__):
        importlib.import_module(f"{policies.__name__}.{module.name}")


class Standby:
    """Waits, in phase "standby"; after Prepare "prepared"; until Assume. It may have been in office before."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._policy: Policy | None = None
        self._memory: MemoryPolicy = ON_DEMAND
        self._routing: Routing = PLANNED
        self._own = _packages()  # imported before any policy was asked for

    def wait(self) -> Office | None:
        """The office, when it is to be taken; None if the process is to stop."""
        child = self._child
        child.gauges = dict
        child.phase("standby", 5.0)
        while not child.stopping:
            while child.orders:
                match child.orders.popleft():
                    case Prepare() as order:
                        self._prepare(order)
                    case Assume() as order:
                        return self._assume(order)
                    case Yield():
                        log.warning("told to yield, but not in office")
            child.link.socket.poll(int(IDLE_S * 1000))
            child.beat()
        return None

    def _prepare(self, order: Prepare) -> None:
        """Makes a policy, or fails with one line."""
        self._child.phase("preparing", PREPARE_S)
        importlib.invalidate_caches()  # a package may have been installed since
        try:
            self._check_fresh(order.policy)
            self._policy = load_policy(order.policy, order.params)
            self._child.config = replace(  # goes into recordings
                self._child.config,
                policy=order.policy,
                policy_params=order.params,
                memory=order.memory,
                memory_params=order.memory_params,
                routing=order.routing,
            )
            self._memory = memory_of(self._policy, self._child.config)
            self._routing = routing_of(self._child.config)
        except UnknownPolicy as error:
            self._child.fail(str(error))
        except Exception as error:  # foreign code: whatever it comes up with is the cause
            log.exception("policy failed")
            self._child.fail(f"policy {order.policy}: {type(error).__name__}: {error}")
        self._child.phase("prepared", 5.0)

    def _check_fresh(self, name: str) -> None:
        """Python does not import a package twice, and another version may have been installed since it did."""
        package = find_policy(name).module.partition(".")[0]
        if package in _packages() - self._own:
            raise UnknownPolicy(f"policy {name}: this process has imported {package} before")

    def _assume(self, order: Assume) -> Office:
        if self._policy is None:
            self._child.fail("told to take office, but not with which policy")
        self._child.epoch = order.term
        learnt = unpacked(order.snapshot, self._policy, self._memory, self._routing)
        return Office(self._child, self._policy, learnt, self._memory, self._routing)


def _packages() -> set[str]:
    return {name.partition(".")[0] for name in sys.modules}
