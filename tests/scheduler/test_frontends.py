"""Which frontends a new scheduler waits for before it gives back what nobody claims."""

from __future__ import annotations

from typing import Any

from world import World

from accelgen.proto.messages import Directory, Held, Inventory, Member, Role
from accelgen.scheduler.frontends import Frontends


class Links:
    """Connects to nobody."""

    def connect(self, *_: Any) -> None:
        pass

    def disconnect(self, *_: Any) -> None:
        pass


def directory(*alive: int) -> Directory:
    members = [
        Member(Role.FRONTEND, i, 1, "x", 7, 1, "ready", 1, 1.0, 0.0, 1, None, {}) for i in alive
    ]
    return Directory(members, True, False)


def inherited() -> tuple[World, Frontends]:
    """A scheduler that finds a request in the KV manager's hands."""
    world = World()
    world.core.inherit(Inventory(5, [Held(1, 9, [0, 1, 2])], 61), 0)
    assert world.core.resting
    return world, Frontends(Links(), world.core, 8)  # type: ignore[arg-type]


def test_it_waits_for_all_of_them() -> None:
    world, frontends = inherited()
    frontends.follow(directory(0, 1), 0.0)
    frontends.replayed(0)
    assert world.core.resting
    frontends.replayed(1)
    assert not world.core.resting


def test_one_that_dies_is_not_waited_for() -> None:
    world, frontends = inherited()
    frontends.follow(directory(0, 1), 0.0)
    frontends.replayed(1)
    frontends.follow(directory(1), 1.0)
    assert not world.core.resting


def test_with_none_alive_it_does_not_wait() -> None:
    """The only frontend died with the old scheduler: nobody is left who could claim anything."""
    world, frontends = inherited()
    frontends.follow(directory(), 0.0)
    assert not world.core.resting
