"""What a scheduler reads in the Directory about other schedulers."""

from __future__ import annotations

import pytest

from accelgen.proto.messages import Directory, Member, Role
from accelgen.scheduler.members import has_successor


def directory(role: Role, epoch: int, phase: str) -> Directory:
    member = Member(role, 1, 9, "", 7, epoch, phase, 1, 1.0, 0.0, 1, None, {})
    return Directory([member], True, False)


@pytest.mark.parametrize(
    ("role", "epoch", "phase", "succeeded"),
    [
        (Role.SCHEDULER, 4, "ready", True),
        (Role.SCHEDULER, 4, "assuming", False),  # it may fail yet
        (Role.SCHEDULER, 4, "dead", False),
        (Role.SCHEDULER, 3, "ready", False),  # ourselves
        (Role.SCHEDULER, 0, "standby", False),
        (Role.SUPERVISOR, 4, "ready", False),
    ],
)
def test_a_successor_is_one_that_serves(
    role: Role, epoch: int, phase: str, succeeded: bool
) -> None:
    assert has_successor(directory(role, epoch, phase), 3) == succeeded


def test_without_a_directory_there_is_none() -> None:
    assert not has_successor(None, 3)
