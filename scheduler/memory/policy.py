"""What a memory policy sees, and what it answers. It is found by its entry point (`accelgen.memory`).

A scheduling policy says who computes what. A memory policy says, around that decision, what memory a request must be
given to start, who lends it, who gives way, how, and who gets more ahead of need. So any of one kind can be combined
with any of the other:

    before   sets terms for this plan in the table (`RequestTable.pad`, `offer`), and returns the View that the
             scheduling policy gets: with as many free blocks as newcomers may count on, and an order of victims
    after    adds to the decision: `allocate`, `embed`, `swap`, and further victims

It has no sockets, no clock and no hidden state: what it must remember is a value that it receives and returns.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, Protocol

from accelgen.proto.config import Config
from accelgen.proto.policies import MEMORY_GROUP, unknown_memory
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.policy import Decision, Policy, StepStats, UnknownPolicy, View


class MemoryPolicy(Protocol):
    """See accelgen.scheduler.memory.on_demand for the smallest one."""

    name: str

    def initial(self) -> Any:
        """The state of a memory policy that has seen nothing: a msgspec-serialisable value."""

    def inherited(self, state: Any) -> Any:
        """With what of its state a new scheduler goes on, on a replica that it takes over: all copies there are done,
        and nobody lives inside anybody else any more."""

    def before(self, view: View, state: Any, start_s: float) -> tuple[View, Any]:
        """What the scheduling policy sees of `view`, for an iteration predicted to start at `start_s`."""

    def after(
        self, view: View, decision: Decision, state: Any, start_s: float
    ) -> tuple[Decision, Any]:
        """What becomes of its decision, which may be changed in place. `view` is the one that `before` was given."""

    def observe(self, step: StepStats, state: Any) -> Any:
        """After every executed iteration."""


def load_memory(name: str, params: Mapping[str, Any] | None = None) -> MemoryPolicy:
    """The installed memory policy `name` with its parameters. Raises UnknownPolicy, and whatever its package raises."""
    if name == ON_DEMAND.name and not params:
        return ON_DEMAND
    if fault := unknown_memory(name):
        raise UnknownPolicy(fault)
    kind = next(iter(entry_points(group=MEMORY_GROUP, name=name))).load()
    try:
        memory: MemoryPolicy = kind(**(params or {}))
    except (TypeError, ValueError) as error:
        raise UnknownPolicy(f"memory_params: {name}: {error}") from error
    return memory


def memory_of(policy: Policy, config: Config) -> MemoryPolicy:
    """The memory policy that a server with `config` runs beside `policy`: the one it names, else the policy's own (its
    attribute `memory`), else on demand. Raises UnknownPolicy, and whatever its package raises."""
    if config.memory:
        return load_memory(config.memory, config.memory_params)
    return load_memory(getattr(policy, "memory", ON_DEMAND.name), config.memory_params)
