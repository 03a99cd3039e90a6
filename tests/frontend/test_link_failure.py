"""A message that could only be half taken ends the frontend: to go on would skip tokens without a word."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from accelgen.frontend.journal import Turn
from accelgen.frontend.link import Link
from accelgen.frontend.metrics import Metrics
from accelgen.proto.frame import PROTOCOL_VERSION, Header
from accelgen.proto.messages import Body, Tokens


class Inbox:
    """In the place of a Router: the scheduler's words, one after another."""

    def __init__(self, *bodies: Body) -> None:
        self.codec = SimpleNamespace(lost=lambda peer: False)
        self._bodies = deque(bodies)

    pending = False

    def messages(self) -> Iterator[tuple[bytes, Header, Body]]:
        while self._bodies:
            yield b"scheduler", Header(PROTOCOL_VERSION, 0, 1, 1, 0), self._bodies.popleft()


class BrokenJournal:
    """Fails at the second message."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def take(self, body: Any, now_s: float) -> Any:
        self.taken.append(body.step)
        if len(self.taken) == 2:
            raise ZeroDivisionError("made to fail")
        return Turn()


def test_an_exception_while_taking_a_message_is_kept_and_nothing_is_taken_after_it() -> None:
    inbox, journal = Inbox(*(Tokens(step, [], [], []) for step in range(4))), BrokenJournal()
    link = Link(inbox, journal, Metrics(), {})  # type: ignore[arg-type]
    link.fence.peer, link.fence.epoch = b"scheduler", 1
    link.drain()
    assert journal.taken == [0, 1]
    assert isinstance(link.failure, ZeroDivisionError)
    link.drain()
    assert journal.taken == [0, 1]
