"""What the supervisor's core wants done; its process does it."""

from __future__ import annotations

from dataclasses import dataclass

from accelgen.proto.messages import Body
from accelgen.supervisor.members import Seat


@dataclass(frozen=True)
class Spawn:
    """Start a process in this seat."""

    seat: Seat
    epoch: int


@dataclass(frozen=True)
class Send:
    """Send `body` to a peer of the supervisor's Router."""

    peer: bytes
    body: Body
    epoch: int = 0


@dataclass(frozen=True)
class Signal:
    """Send a signal to a process."""

    seat: Seat
    signum: int


@dataclass(frozen=True)
class Record:
    """Write the supervisor's own flight recorder down, for `client`."""

    client: bytes


@dataclass(frozen=True)
class Drain:
    """Stop listening: what comes in from now on would not be served."""


@dataclass(frozen=True)
class Finish:
    """All processes have ended: leave with `status`, after saying `line`."""

    status: int
    line: str


Action = Spawn | Send | Signal | Record | Drain | Finish
