"""What a routing sees, and what it answers. It is found by its entry point (`accelgen.routing`).

A scheduling policy says what one replica computes. A routing says, once for each request, which replica it goes to, as
an order: groups of replicas, best first. Within a group they are all the same to it, and the scheduling policy
chooses (`Policy.admit`); if that refuses, the next group is asked. So any routing can be combined with any policy:
one that plans (SLOs-Serve, arXiv 2504.08784) chooses among all replicas if all are one group, and is asked one
replica after the other if each is a group of its own.

A routing has no sockets, no clock and no hidden state: what it must remember is a value that it receives and returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import Any, Protocol

from accelgen.proto.config import Config
from accelgen.proto.policies import ROUTING_GROUP, parse_routing, unknown_routing
from accelgen.scheduler.policy import UnknownPolicy, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.planned import PLANNED

Order = Sequence[Sequence[int]]
"""Groups of replicas by index, the best group first. Who is in none is not asked."""


class Routing(Protocol):
    """See accelgen.scheduler.routing.round_robin for a small one; accelgen.scheduler.routing.shared has the methods
    that most of them have in common, so that only `order` is left to write."""

    name: str

    def initial(self) -> Any:
        """The state of a routing that has seen nothing: a msgspec-serialisable value. It is nobody else's, so that the
        methods that return one may change it in place."""

    def order(self, request: Request, views: Mapping[int, View], state: Any) -> Order:
        """Where a request that arrives should go. `views` has the replicas that live and whose KV cache holds it to its
        end, by index, at least one: one that is down, or starts again, or is too small is not among them. Nothing is
        changed: `placed` says what came of it."""

    def placed(self, request: Request, index: int, view: View, state: Any) -> Any:
        """After a request was given to replica `index`, and its siblings with it. Also after a takeover, for each that
        lives, wherever it is: so what a scheduler that died has not handed over comes back."""

    def ended(self, request: Request, index: int, view: View, state: Any) -> Any:
        """After a request, or a sibling, has ended there, whatever the reason; what it has said is in `generated`."""

    def lost(self, index: int, state: Any) -> Any:
        """Replica `index` has a new worker or a new KV manager: nothing of what has ended there is cached any more.
        Those that live are placed again."""


def load_routing(text: str) -> Routing:
    """The installed routing that `text` says, with its parameters: "NAME" or "NAME:key=value:..."; "" is `planned`.
    Raises UnknownPolicy, and whatever its package raises."""
    if text in ("", PLANNED.name):
        return PLANNED
    try:
        name, params = parse_routing(text)
    except ValueError as error:
        raise UnknownPolicy(f"routing: {error}") from error
    if fault := unknown_routing(name):
        raise UnknownPolicy(fault)
    kind = next(iter(entry_points(group=ROUTING_GROUP, name=name))).load()
    try:
        routing: Routing = kind(**params)
    except (TypeError, ValueError) as error:
        raise UnknownPolicy(f"routing: {name}: {error}") from error
    return routing


def routing_of(config: Config) -> Routing:
    """The routing of a server with `config`. Raises UnknownPolicy, and whatever its package raises."""
    return load_routing(config.routing)
