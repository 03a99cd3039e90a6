"""The replica of each request: the routing's order, and the scheduling policy's word on it. Part of the scheduler's
core; what a policy refuses everywhere is refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from accelgen.scheduler.decision import BadDecision
from accelgen.scheduler.policy import Policy, Verdict, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.policy import Routing


class Placement:
    """The routing of a core and what it remembers. `routed`: how many requests it has given to which replica, without
    those that were found there after a takeover."""

    def __init__(self, routing: Routing, policy: Policy) -> None:
        self.routing, self._policy = routing, policy
        self.state: Any = routing.initial()
        self.routed: Counter[int] = Counter()

    def choose(self, request: Request, views: Mapping[int, View], now_s: float) -> Verdict:
        """Where it goes; `Verdict.replica` is an index of `views`. Raises BadDecision if the routing names a replica
        that is not there, or none."""
        groups, refusals = self._order(request, views), list[Verdict]()
        for group in groups:
            verdict = self._policy.admit(request, [views[index] for index in group], now_s)
            verdict = replace(verdict, replica=group[verdict.replica])
            if not verdict.refused:
                return verdict
            refusals.append(verdict)
        verdict = min(refusals, key=lambda one: one.is_hopeless)  # "never" only if all say so
        if len(groups) > 1:
            words = f"{verdict.refused}; {len(groups)} were asked, one after the other"
            verdict = replace(verdict, refused=words)
        return verdict

    def settle(self, request: Request, index: int, view: View, found: bool) -> None:
        """The request is given to that replica, where it was `found` or not."""
        self.routed[index] += not found
        self.state = self.routing.placed(request, index, view, self.state)

    def end(self, request: Request, index: int, view: View) -> None:
        """It has ended there."""
        self.state = self.routing.ended(request, index, view, self.state)

    def lose(self, index: int) -> None:
        """The replica has a new worker or KV manager."""
        self.state = self.routing.lost(index, self.state)

    def _order(self, request: Request, views: Mapping[int, View]) -> Sequence[Sequence[int]]:
        groups = [group for group in self.routing.order(request, views, self.state) if group]
        unknown = {index for group in groups for index in group} - views.keys()
        if unknown or not groups:
            named = ", ".join(map(str, sorted(unknown))) or "none"
            raise BadDecision(
                f"routing {self.routing.name}: of the replicas {', '.join(map(str, views))} that live"
                f" it names {named}"
            )
        return groups
