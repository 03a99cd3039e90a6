"""The supervisor's picture of one process: what was started, what it said last, how it ended."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from accelgen.proto.messages import Facts, Heartbeat, Hello, Member, Role


@dataclass(frozen=True)
class Seat:
    """A place in the system that one process at a time fills: replica 0's worker, the second frontend."""

    role: Role
    index: int

    @property
    def name(self) -> str:
        """`worker-0`: in logs, in file names, and in what people read."""
        return f"{self.role.name.lower()}-{self.index}"


@dataclass(frozen=True)
class Assignment:
    """What a scheduler is to run. `memory` "": the policy's own memory policy; `routing` "": its own choice of
    replicas."""

    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    memory: str = ""
    memory_params: dict[str, Any] = field(default_factory=dict)
    routing: str = ""


@dataclass
class Occupant:
    """One life of a process in its seat. Times are seconds of the supervisor's clock.

    `epoch`: the term in which it was started; of a scheduler the last one in which it took office, 0 for none."""

    seat: Seat
    epoch: int
    pid: int
    started_s: float
    heard_s: float
    bound_s: float  # how long it may be silent, as it announced itself
    peer: bytes | None = None  # its address on the supervisor's Router, known from its Hello
    incarnation: int = 0
    endpoint: str = ""
    phase: str = "starting"
    progress: int = 0
    rss_bytes: int = 0
    facts: Facts | None = None
    gauges: dict[str, float] = field(default_factory=dict)
    assignment: Assignment | None = None  # of a scheduler: what it was told to prepare
    failure: str = ""  # its own last line, if it could still say one
    told: bool = False  # to stop
    killed_for: str = ""  # why we killed it ourselves
    exit_status: int | None = None  # as in subprocess: negative is a signal
    exited_s: float = 0.0
    last_words: str = ""  # last line of its log, read when it had ended
    judged: bool = False  # its end has had its consequences

    @property
    def alive(self) -> bool:
        return self.exit_status is None

    def greet(self, peer: bytes, incarnation: int, hello: Hello) -> None:
        """It has said who it is, at its start or when it knows more."""
        self.peer, self.incarnation = peer, incarnation
        self.endpoint, self.phase = hello.endpoint, hello.phase
        self.facts = hello.facts or self.facts

    def note(self, beat: Heartbeat) -> bool:
        """Takes its word; whether that is about another phase."""
        changed = self.phase != beat.phase
        self.phase, self.progress, self.bound_s = beat.phase, beat.progress, beat.bound_s
        self.rss_bytes, self.gauges = beat.rss_bytes, beat.gauges
        return changed

    def member(self, now_s: float) -> Member:
        """What the Directory says of it."""
        return Member(
            role=self.seat.role,
            index=self.seat.index,
            pid=self.pid,
            endpoint=self.endpoint,
            incarnation=self.incarnation,
            epoch=self.epoch,
            phase=self.phase if self.alive else "dead",
            progress=self.progress,
            uptime_s=max(0.0, (now_s if self.alive else self.exited_s) - self.started_s),
            heard_s=max(0.0, now_s - self.heard_s),
            rss_bytes=self.rss_bytes,
            facts=self.facts,
            gauges=self.gauges,
        )


def own_member(
    pid: int,
    epoch: int,
    phase: str,
    progress: int,
    uptime_s: float,
    rss_bytes: int,
    gauges: dict[str, float],
) -> Member:
    """The supervisor itself: it has no supervisor, and is heard at once."""
    return Member(
        role=Role.SUPERVISOR,
        index=0,
        pid=pid,
        endpoint="",
        incarnation=0,
        epoch=epoch,
        phase=phase,
        progress=progress,
        uptime_s=uptime_s,
        heard_s=0.0,
        rss_bytes=rss_bytes,
        facts=None,
        gauges=gauges,
    )


def all_seats(frontends: int, replicas: int) -> list[Seat]:
    """Every seat of a server, in the order in which they get ready."""
    assert frontends >= 1 and replicas >= 1
    return [
        *(Seat(Role.WORKER, index) for index in range(replicas)),
        *(Seat(Role.KVMANAGER, index) for index in range(replicas)),
        Seat(Role.SCHEDULER, 0),
        *(Seat(Role.FRONTEND, index) for index in range(frontends)),
    ]
