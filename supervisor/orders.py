"""What the supervisor tells schedulers, and what it remembers about them when it does."""

from __future__ import annotations

from accelgen.proto.messages import Assume, Prepare, Yield
from accelgen.supervisor.actions import Send
from accelgen.supervisor.members import Assignment, Occupant


def prepare(one: Occupant, assignment: Assignment) -> Send:
    """To make this policy."""
    assert one.peer is not None
    one.assignment = assignment
    order = Prepare(
        assignment.policy,
        assignment.params,
        assignment.memory,
        assignment.memory_params,
        assignment.routing,
    )
    return Send(one.peer, order, one.epoch)


def yield_to_another(one: Occupant) -> Send:
    """To plan nothing more."""
    assert one.peer is not None
    return Send(one.peer, Yield(), one.epoch)


def assume(one: Occupant, term: int, snapshot: bytes) -> Send:
    """To take office in this term; a process may do so more than once."""
    assert one.peer is not None and one.assignment is not None and term > one.epoch
    one.epoch, one.phase = term, "assuming"  # until it says something itself
    return Send(one.peer, Assume(term, snapshot), term)
