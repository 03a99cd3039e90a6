"""`round-robin`: each replica in turn, whatever its load (the usual baseline, SLOs-Serve's too, arXiv 2504.08784).

Who is down is passed over and loses its turn. After a takeover the turn is that of the replica after the one that was
given a request last.
"""

from __future__ import annotations

from collections.abc import Mapping

from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.shared import Rotating, in_turn


class RoundRobin(Rotating):
    name = "round-robin"

    def order(self, request: Request, views: Mapping[int, View], state: int) -> list[list[int]]:
        return [[index] for index in in_turn(views, state)]
