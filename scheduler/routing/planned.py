"""`planned`: the scheduling policy's own choice among all replicas (the default).

`slos-serve` chooses by planning: a request goes to the first replica, round robin, whose plan has room for it, to the
last one as best effort (SLOs-Serve, arXiv 2504.08784). The other policies take the replica with the fewest tokens to be
processed, KV in use as tie-break (`least_load` in `scheduler/policies/shared.py`).
"""

from __future__ import annotations

from collections.abc import Mapping

from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.shared import Forgetful


class Planned(Forgetful):
    name = "planned"

    def order(self, request: Request, views: Mapping[int, View], state: None) -> list[list[int]]:
        return [[*views]]


PLANNED = Planned()
