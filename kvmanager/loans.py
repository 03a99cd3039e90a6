"""Who lives inside whom: blocks that a request has been given and does not use, lent to another one (embedding, as in
CacheOPT, arXiv 2503.13773, section 3.3).

A loan ends in one of three ways. The guest gives its blocks back: they are the unused end of its host again. The host
goes first, or gets other blocks in their place (blocks are interchangeable): what it lent is the guest's own. Or
somebody else shares the block by then (a prefix hit, a fork): it stays with him, and the host does without it.

Reconstructed: the paper does not say what becomes of a guest that outlives its host, nor of shared prefixes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from accelgen.kvmanager.request import Request


@dataclass(slots=True, eq=False)
class Loan:
    """`blocks` of `host` that `guest` (a request id) has, or a copy of its KV that is under way. Over when the host is
    None."""

    guest: int
    host: Request | None
    blocks: set[int]


class Loans:
    """The ledger. A guest has one host, a host may have many guests, and no guest is a host."""

    def __init__(self) -> None:
        self._of_guest: dict[int, Loan] = {}
        self._by_host: dict[int, list[Loan]] = {}
        self.resized: dict[int, Request] = {}  # hosts whose blocks have become fewer or more
        self.lent = self.returned = 0  # blocks, ever
        self.guests = 0  # requests that have begun to live in others, ever

    @property
    def any(self) -> bool:
        """Whether there is a loan."""
        return bool(self._by_host)

    @property
    def living_inside(self) -> int:
        """How many requests hold blocks of others now."""
        return len(self._of_guest)

    def spare(self, guest: Request, host: Request | None, block_size: int) -> int:
        """How many blocks `host` could lend to `guest` now."""
        if host is None or host is guest or not host.running or host.moving or host.host:
            return 0
        known = self._of_guest.get(guest.id)
        if host.id in self._of_guest or guest.id in self._by_host:
            return 0  # a guest does not lend, and a host does not borrow
        if known is not None and known.host is not host:
            return 0
        return len(host.table) + host.computed // -block_size  # less those that it uses

    def lend(self, guest: Request, host: Request, count: int, block_size: int) -> list[int]:
        """The last `count` blocks of `host`, at most what it can spare, become the guest's."""
        assert 0 < count <= self.spare(guest, host, block_size)
        blocks = host.table[-count:]
        del host.table[-count:]
        host.sent = min(host.sent, len(host.table))
        if host.capacity:
            host.capacity = len(host.table) * block_size
        self.resized[host.id] = host
        self.lent += count
        loan = self._of_guest.get(guest.id)
        if loan is None:
            loan = self._of_guest[guest.id] = Loan(guest.id, host, set())
            self._by_host.setdefault(host.id, []).append(loan)
            self.guests += 1
        loan.blocks.update(blocks)
        return blocks

    def of(self, guest: Request) -> Loan | None:
        """What `guest` has borrowed."""
        return self._of_guest.get(guest.id)

    def take_along(self, guest: Request) -> Loan | None:
        """What `guest` has borrowed goes on without it: it gives it back later, or now."""
        return self._of_guest.pop(guest.id, None)

    def returns(self, loan: Loan, block: int, block_size: int) -> None:
        """`block` is the end of its host again."""
        assert loan.host is not None
        loan.blocks.remove(block)
        host = loan.host
        host.table.append(block)
        if host.capacity:
            host.capacity = len(host.table) * block_size
        self.resized[host.id] = host
        self.returned += 1

    def close(self, loan: Loan | None) -> None:
        """What has not been returned is the guest's own."""
        if loan is None:
            return
        if self._of_guest.get(loan.guest) is loan:
            del self._of_guest[loan.guest]
        if loan.host is not None:
            others = self._by_host[loan.host.id]
            others.remove(loan)
            if not others:
                del self._by_host[loan.host.id]
        loan.host = None
        loan.blocks.clear()

    def forgive(self, host: Request) -> None:
        """`host` goes: all that it has lent is its guests' own."""
        for loan in self._by_host.get(host.id, [])[:]:
            self.close(loan)

    def replace(self, host: Request, count: int) -> None:
        """`host` got `count` blocks from elsewhere: of what it has lent, so many are its guests' own, the newest loans
        first."""
        for loan in self._by_host.get(host.id, [])[::-1]:
            for block in sorted(loan.blocks)[:count]:
                loan.blocks.remove(block)
                count -= 1
            if not loan.blocks:
                self.close(loan)

    def clear(self) -> None:
        """Nobody remembers who lives inside whom: all is its holder's own."""
        for loans in [*self._by_host.values()]:
            for loan in loans[:]:
                self.close(loan)

    def check(self, requests: Iterable[Request], moving: dict[int, set[int]]) -> list[str]:
        """What is wrong with the ledger, given all requests, and the blocks that are leaving by the id of their
        request: nothing, one hopes."""
        known = {request.id: request for request in requests}
        faults: list[str] = []
        seen: set[int] = set()
        for id, loans in self._by_host.items():
            if not loans or any(loan.host is not known.get(id) for loan in loans):
                faults.append(f"a loan of {id}, which is not its host")
            if id in self._of_guest:
                faults.append(f"{id} is a host and a guest")
            for loan in loans:
                guest = known.get(loan.guest)
                held = {*guest.table} if guest and self._of_guest.get(loan.guest) is loan else set()
                if not loan.blocks or not loan.blocks <= held | moving.get(loan.guest, set()):
                    faults.append(f"{loan.guest} does not have what it borrowed of {id}")
                if loan.blocks & seen:
                    faults.append("a block is borrowed twice")
                seen |= loan.blocks
        if any(loan.host is None for loan in self._of_guest.values()):
            faults.append("a loan that is over is still in the ledger")
        return faults
