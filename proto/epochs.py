"""Epochs: which scheduler is obeyed. Sans I/O; frontends, KV managers and workers all decide by it.

An epoch is a number in the header of every message. Its high part, the *term*, is given out by the supervisor, one for
each process that takes the scheduler's office; the low part counts how often that process has taken over from itself
since (Resync), for which it need not ask anybody.

A scheduler takes office with Activate, in an epoch higher than the one before. Only a process that the supervisor has
started may: one whose incarnation the newest Directory lists as a living scheduler. Directory and Activate come over
different links, in any order: an Activate of a process that is not listed is kept, and judged again when a Directory
lists it.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from accelgen.proto.frame import Header
from accelgen.proto.messages import Activate, Directory, Role

RESYNC_BITS = 16
MAX_PENDING = 64  # Activates of processes that are not listed; the oldest gives way


def epoch_of(term: int, resyncs: int = 0) -> int:
    """The epoch of a scheduler's `resyncs`-th takeover from itself in its `term`."""
    assert term >= 0 and 0 <= resyncs < 1 << RESYNC_BITS
    return (term << RESYNC_BITS) + resyncs


@dataclass(frozen=True, slots=True)
class Activation:
    """An Activate and who sent it. `repeated`: by the scheduler in office, which has lost nothing of what it knows."""

    peer: bytes
    epoch: int
    incarnation: int
    body: Activate
    repeated: bool = False


class Fence:
    """`epoch` and `peer` of the scheduler in office (0 and b"" before the first).

    `counters`: stale (not from the scheduler in office, or of another epoch), stranger (an Activate of a process that
    was not listed, or not yet)."""

    def __init__(self) -> None:
        self.epoch = 0
        self.peer = b""
        self.counters: Counter[str] = Counter()
        self._directory: Directory | None = None
        self._listed: frozenset[int] = frozenset()  # incarnations
        self._pending: dict[int, Activation] = {}  # the newest of each incarnation

    def claim(self, peer: bytes, header: Header, body: Activate) -> Activation | None:
        """Judges an Activate: what is to be obeyed now, or None."""
        activation = Activation(peer, header.epoch, header.incarnation, body)
        if header.incarnation in self._listed or not self._may_succeed(activation):
            return self._seat(activation)
        self.counters["stranger"] += 1
        held = self._pending.pop(activation.incarnation, activation)
        self._pending[activation.incarnation] = max(activation, held, key=lambda one: one.epoch)
        if len(self._pending) > MAX_PENDING:
            del self._pending[next(iter(self._pending))]
        return None

    def learn(self, directory: Directory | None) -> Activation | None:
        """Takes the newest Directory, also if it is known already: the kept Activate that is to be obeyed now."""
        if directory is None or directory is self._directory:
            return None
        self._directory = directory
        self._listed = frozenset(
            m.incarnation for m in directory.members
            if m.role is Role.SCHEDULER and m.incarnation and m.phase != "dead"
        )  # fmt: skip
        found = [self._pending.pop(one) for one in list(self._pending) if one in self._listed]
        obeyed = None
        for activation in sorted(found, key=lambda one: one.epoch):
            obeyed = self._seat(activation) or obeyed
        return obeyed

    def passes(self, peer: bytes, header: Header) -> bool:
        """Whether a message comes from the scheduler in office, in its epoch. Counts those that do not."""
        if peer == self.peer and header.epoch == self.epoch:
            return True
        self.counters["stale"] += 1
        return False

    def _may_succeed(self, activation: Activation) -> bool:
        return activation.epoch > self.epoch or self._is_repeated(activation)

    def _is_repeated(self, activation: Activation) -> bool:
        return activation.epoch == self.epoch and activation.peer == self.peer

    def _seat(self, activation: Activation) -> Activation | None:
        if not self._may_succeed(activation):
            self.counters["stale"] += 1
            return None
        repeated = self._is_repeated(activation)
        self.epoch, self.peer = activation.epoch, activation.peer
        return Activation(
            activation.peer, activation.epoch, activation.incarnation, activation.body, repeated
        )
