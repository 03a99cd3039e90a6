"""`least-load`: the replica with the fewest tokens to be processed and tokens of KV for them, in turn among equals.

What counts as load, and where that comes from, is at `load_of` in `scheduler/routing/shared.py`. Taking turns among
equals is vLLM's rule, too: its data-parallel balancer begins to look at another replica each time. It differs from
what `planned` does for most policies in that KV counts as much as computation does.
"""

from __future__ import annotations

from collections.abc import Mapping

from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.shared import Rotating, by_load


class LeastLoad(Rotating):
    name = "least-load"

    def order(self, request: Request, views: Mapping[int, View], state: int) -> list[list[int]]:
        return [[index] for index in by_load(views, state)]
