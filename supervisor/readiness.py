"""When is a server ready? Sans I/O."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from accelgen.proto.messages import Role
from accelgen.supervisor.members import Occupant, Seat

Occupants = Mapping[Seat, Occupant]


def is_ready(seat: Seat, occupants: Occupants) -> bool:
    """Whether the process of this seat says so."""
    occupant = occupants.get(seat)
    return occupant is not None and occupant.alive and occupant.phase == "ready"


def has_started(seats: Iterable[Seat], occupants: Occupants) -> bool:
    """For the first time: everybody is ready."""
    return all(is_ready(seat, occupants) for seat in seats)


def can_serve(seats: Iterable[Seat], occupants: Occupants) -> bool:
    """After that, besides a scheduler in office: one frontend, and one replica that is whole."""
    ready = {seat for seat in seats if is_ready(seat, occupants)}
    roles = {seat.role for seat in ready}
    workers = {seat.index for seat in ready if seat.role is Role.WORKER}
    managers = {seat.index for seat in ready if seat.role is Role.KVMANAGER}
    return Role.FRONTEND in roles and bool(workers & managers)
