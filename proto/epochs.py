"""Epochs: whose orders are obeyed. Sans I/O; frontends, KV managers and workers all decide by it.

An epoch is a number in the header of every message. Its high part, the *term*, is given out by the supervisor, one for
each process that takes the scheduler's office; the low part counts how often that process has taken over from itself
since (Resync), for which it need not ask anybody.

A scheduler takes office with Activate, in an epoch higher than the one before; a KV manager takes its worker likewise,
with Resync. Only a process that the supervisor has started may: one whose incarnation the newest Directory lists as
living in that role. The Directory and the first words of a new process come over different links, in any order: a
claim of who is not listed is kept, and judged again when a Directory lists it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from accelgen.proto.frame import Header
from accelgen.proto.messages import Activate, Directory, Resync, Role

RESYNC_BITS = 16
MAX_PENDING = 64  # claims of processes that are not listed; the oldest gives way

Kind = TypeVar("Kind", Activate, Resync)


def epoch_of(term: int, resyncs: int = 0) -> int:
    """The epoch of a scheduler's `resyncs`-th takeover from itself in its `term`."""
    assert term >= 0 and 0 <= resyncs < 1 << RESYNC_BITS
    return (term << RESYNC_BITS) + resyncs


def epoch_name(epoch: int) -> str:
    """For people, who see terms elsewhere (`accelgen status`): 2, or 2.1 after the scheduler of term 2 has taken over
    from itself."""
    resyncs = epoch & ((1 << RESYNC_BITS) - 1)
    return f"{epoch >> RESYNC_BITS}" + (f".{resyncs}" if resyncs else "")


@dataclass(frozen=True, slots=True)
class Claim(Generic[Kind]):
    """A word that claims an epoch, and whose it is. `repeated`: of the one in office, which has forgotten nothing."""

    peer: bytes
    epoch: int
    incarnation: int
    body: Kind
    repeated: bool = False


class Fence(Generic[Kind]):
    """Who is in office: `epoch` and `peer` (0 and b"" before the first). Members of `role`, if given only those of
    `index`, may claim it.

    `counters`: stale (from anybody else, or of another epoch), stranger (a claim of a process that was not listed, or
    not yet)."""

    def __init__(self, role: Role, index: int | None = None) -> None:
        self.epoch = 0
        self.peer = b""
        self.counters: Counter[str] = Counter()
        self._role, self._index = role, index
        self._directory: Directory | None = None
        self._listed: frozenset[int] = frozenset()  # incarnations
        self._pending: dict[int, Claim[Kind]] = {}  # the newest of each incarnation

    def claim(self, peer: bytes, header: Header, body: Kind) -> Claim[Kind] | None:
        """Judges a claim: what is to be obeyed now, or None."""
        claim = Claim(peer, header.epoch, header.incarnation, body)
        if claim.incarnation in self._listed or not self._may_succeed(claim):
            return self._seat(claim)
        self.counters["stranger"] += 1
        held = self._pending.pop(claim.incarnation, claim)
        self._pending[claim.incarnation] = max(claim, held, key=lambda one: one.epoch)
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        return None

    def learn(self, directory: Directory | None) -> Claim[Kind] | None:
        """Takes the newest Directory, also if it is known already: the kept claim that is to be obeyed now."""
        if directory is None or directory is self._directory:
            return None
        self._directory = directory
        self._listed = frozenset(
            m.incarnation for m in directory.members
            if m.role is self._role and self._index in (None, m.index)
            and m.incarnation and m.phase != "dead"
        )  # fmt: skip
        found = [self._pending.pop(one) for one in list(self._pending) if one in self._listed]
        obeyed = None
        for claim in sorted(found, key=lambda one: one.epoch):
            obeyed = self._seat(claim) or obeyed
        return obeyed

    def passes(self, peer: bytes, header: Header) -> bool:
        """Whether a message comes from the one in office, in its epoch. Counts those that do not."""
        if peer == self.peer and header.epoch == self.epoch:
            return True
        self.counters["stale"] += 1
        return False

    def _may_succeed(self, claim: Claim[Kind]) -> bool:
        return claim.epoch > self.epoch or self._is_repeated(claim)

    def _is_repeated(self, claim: Claim[Kind]) -> bool:
        return claim.epoch == self.epoch and claim.peer == self.peer

    def _seat(self, claim: Claim[Kind]) -> Claim[Kind] | None:
        if not self._may_succeed(claim):
            self.counters["stale"] += 1
            return None
        claim = replace(claim, repeated=self._is_repeated(claim))
        self.epoch, self.peer = claim.epoch, claim.peer
        return claim
