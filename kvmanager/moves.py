"""Copies of KV to the host's memory and back that are under way.

Until the worker has said that a copy is done, the blocks on both of its sides stay reserved, whatever becomes of the
request meanwhile: it may end, or be preempted, and the copy goes on without it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from accelgen.kvmanager.block_pool import BlockPool
from accelgen.kvmanager.host_pool import HostPool
from accelgen.kvmanager.loans import Loan
from accelgen.kvmanager.request import Request


@dataclass(slots=True, eq=False)
class Move:
    """A copy. When it is done, `blocks` of the device and `hosts` of the host are given back, and `request` goes on
    (None: it has been given up meanwhile). `loan`: what of `blocks` is borrowed."""

    request: Request | None
    blocks: list[int]
    hosts: list[int]
    loan: Loan | None = None


class Moves:
    """All copies under way, one at most of each request."""

    def __init__(self, pool: BlockPool, host: HostPool) -> None:
        self.pool, self.host = pool, host
        self.under_way: dict[int, Move] = {}

    def __contains__(self, id: int) -> bool:
        return id in self.under_way

    def begin_out(self, request: Request, loan: Loan | None) -> tuple[list[int], list[int]]:
        """What `request` holds begins to leave: (from, to). Afterwards it is away."""
        blocks, hosts = request.table, self.host.take(len(request.table))
        self.pool.leave(blocks)
        self.under_way[request.id] = Move(request, blocks, [], loan)
        request.table, request.host, request.moving = [], hosts, True
        return blocks, hosts

    def begin_in(self, request: Request, blocks: list[int]) -> tuple[list[int], list[int]]:
        """What `request` has on the host begins to come back into `blocks`, which are its own: (from, to)."""
        hosts = request.host
        self.under_way[request.id] = Move(request, [], hosts)
        request.table, request.host, request.moving = blocks, [], True
        return hosts, blocks

    def abandon(self, request: Request, loan: Loan | None) -> None:
        """`request`, which is moving, loses its KV. Nobody will read what is being copied."""
        move = self.under_way[request.id]
        move.request = None
        if request.host:
            move.hosts = request.host
        else:
            self.pool.leave(request.table)
            move.blocks, move.loan = request.table, loan
        request.table, request.host, request.moving = [], [], False

    def blocks_of(self, id: int) -> list[int]:
        """Blocks of the device that are leaving for, or after, request `id`."""
        move = self.under_way.get(id)
        return move.blocks if move is not None else []

    def leaves(self) -> Counter[int]:
        """How many copies own each leaving block."""
        return Counter(block for move in self.under_way.values() for block in move.blocks)

    def check(self, requests: list[Request]) -> list[str]:
        """What does not fit together, in words."""
        faults = []
        for request in requests:
            move = self.under_way.get(request.id)
            mine = move is not None and move.request is request
            if request.moving != mine:
                faults.append(f"request {request.id} is moving without a copy, or the reverse")
            if request.host and request.table:
                faults.append(f"request {request.id} is here and away")
        if any(
            move.request is not None and not move.request.moving for move in self.under_way.values()
        ):
            faults.append("a copy of a request that does not move")
        hosts = [block for request in requests for block in request.host]
        hosts += [block for move in self.under_way.values() for block in move.hosts]
        return faults + self.host.check(hosts)
