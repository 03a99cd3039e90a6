"""Replicas as a routing sees them: requests that wait or run there, and what it is asked."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from accelgen.proto.messages import Objective, Sampling
from accelgen.scheduler.cost_model import CostModel
from accelgen.scheduler.policy import Limits, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.policy import Routing
from accelgen.scheduler.table import RequestTable

BLOCK, BLOCKS = 4, 1000


def request_of(id: int, prompt: list[int], salt: bytes = b"", max_tokens: int = 8) -> Request:
    return Request(
        id, 0, prompt, Sampling(), max_tokens, frozenset(), Objective(5.0, 0.25), "standard", salt
    )


class Scene:
    """Replicas that are given requests and lose them again; nothing is computed but what `run` says."""

    def __init__(self, routing: Routing, replicas: int, blocks: int = BLOCKS) -> None:
        self.routing, self.state = routing, routing.initial()
        self.tables = {index: RequestTable(BLOCK) for index in range(replicas)}
        self.blocks = blocks
        self.down: set[int] = set()
        self.home: dict[int, int] = {}
        self.requests: dict[int, Request] = {}
        self._ids = count(1)

    @property
    def views(self) -> dict[int, View]:
        limits = Limits(256, 8192, 10.0)
        found = {}
        for index, table in self.tables.items():
            held = int(table.blocks[table.running].sum())
            if index not in self.down:
                free = self.blocks - held
                found[index] = View(table, free, 0, self.blocks, limits, CostModel())
        return found

    def order(self, prompt: list[int], salt: bytes = b"") -> list[int]:
        """All replicas that live, in the order in which they would be asked."""
        groups = self.routing.order(request_of(0, prompt, salt), self.views, self.state)
        return [index for group in groups for index in group]

    def send(self, prompt: list[int], salt: bytes = b"") -> int:
        """A request that arrives: the id it gets."""
        id = next(self._ids)
        request = request_of(id, prompt, salt)
        groups = self.routing.order(request, self.views, self.state)
        self.put(request, groups[0][0])
        return id

    def put(self, request: Request, index: int) -> None:
        """It is given to that replica, where it waits."""
        self.home[request.id], self.requests[request.id] = index, request
        table = self.tables[index]
        table.enqueue(table.add(request, 0.0), float(request.id))
        view = self.views[index]
        self.state = self.routing.placed(request, index, view, self.state)

    def run(self, id: int) -> None:
        """Its prompt is computed: it runs, and holds blocks."""
        table = self.tables[self.home[id]]
        slot = table.slot_of[id]
        table.start(slot)
        table.computed[slot] = table.length[slot]
        table.blocks[slot] = -(-int(table.length[slot]) // BLOCK)

    def end(self, id: int, answer: list[int] | None = None) -> None:
        request, index = self.requests.pop(id), self.home.pop(id)
        request.generated.extend(answer or [])
        view = self.views[index]
        self.tables[index].remove(self.tables[index].slot_of[id])
        self.state = self.routing.ended(request, index, view, self.state)

    def counts(self) -> Mapping[int, int]:
        return {index: len(table) for index, table in self.tables.items()}


def known_keys(state: Any, index: int) -> int:
    """How many blocks prefix-affinity remembers of a replica."""
    return len(state.keys.get(index, {}))
