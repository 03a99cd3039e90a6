"""Requests whose workers die: how often each has lost one. No sockets, no clock.

The Directory says which workers live, Admitted which of them a request was given to. They come over different links, in
any order: a request may be admitted to a successor before the death of its worker is heard of, or to a worker that is
known to be dead by then. So a worker that had a request before, and is dead in the next Directory (one comes each
second), has been lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from accelgen.proto.messages import Directory, Role

MAX_DEAD = 1024  # incarnations remembered; the longest dead is forgotten


class Workers:
    """Incarnations that live, and those that have died: were listed once, and are no more."""

    def __init__(self) -> None:
        self._living: frozenset[int] = frozenset()
        self._dead: dict[int, None] = {}

    def learn(self, directory: Directory) -> bool:
        """Takes a new Directory: whether other workers live than before."""
        workers = [m for m in directory.members if m.role is Role.WORKER and m.incarnation]
        living = frozenset(m.incarnation for m in workers if m.phase != "dead")
        gone = self._living | {m.incarnation for m in workers}
        self._dead.update(dict.fromkeys(gone - living))
        changed, self._living = living != self._living, living
        while len(self._dead) > MAX_DEAD:
            del self._dead[next(iter(self._dead))]
        return changed

    def is_dead(self, worker: int) -> bool:
        return worker in self._dead


@dataclass(slots=True)
class Losses:
    """Of one request. `count` is how many workers have died under it."""

    count: int = 0
    _worker: int = 0  # has it now
    _before: set[int] = field(default_factory=set)  # have had it; may prove to be dead
    _lost: set[int] = field(default_factory=set)

    def admit(self, worker: int) -> bool:
        """It has been given to this worker (0: nobody knows): whether another one had it before."""
        moved = self._worker not in (0, worker)
        if moved:
            self._before.add(self._worker)
        self._worker = worker
        return moved

    def judge(self, workers: Workers) -> bool:
        """Call after `admit`, and with every new Directory: whether it has lost a worker since the last time."""
        dead = {one for one in (*self._before, self._worker) if workers.is_dead(one)} - self._lost
        self._lost |= dead
        self.count += len(dead)
        return bool(dead)

    def settle(self) -> None:
        """A Directory has been heard since: whoever had it before and lives on has merely handed it over."""
        self._before.clear()
