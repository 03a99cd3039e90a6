"""The flight recorder: every process keeps its last events in memory, always, and writes them down when asked.

An event is a message that was sent or received, kept as the bytes that travelled, or a *fact*: a name with values,
noted by whoever knows it. The ring is bounded in events and in bytes, what is oldest goes first. Messages that only
say again what the one before said (`Body.periodic`) are left out: in an idle server they would soon be all there is.

What is noted here leaves the process only through `accelgen.proto.dumps`, without what people have written.
"""

from __future__ import annotations

from collections import deque
from typing import Any

from msgspec.msgpack import Encoder

from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Body

SEND, RECV, FACT, STANDING = "send", "recv", "fact", "standing"
EVENT_BYTES = 230
"""What an event takes in memory besides its body, measured: a tuple of five (80), a float (24), the header (about 60),
the `bytes` object of the body (33), the allocator's rounding, the place in the ring."""

Event = tuple[float, str, bytes, bytes, bytes]
"""Moment (s), direction, peer, header, body; of a fact: moment, FACT, name, b"", its values in msgpack."""

_encode = Encoder().encode


class Ring:
    """The last events: at most `most_events`, and at most about `most_bytes` of memory."""

    def __init__(self, most_events: int, most_bytes: int) -> None:
        self.most_events, self.most_bytes = most_events, most_bytes
        self.bytes = 0  # of what is held, by EVENT_BYTES and the length of the bodies
        self._events: deque[Event] = deque()
        self._standing: dict[bytes, Event] = {}

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event, standing: bool = False) -> None:
        """Takes an event in; the oldest ones make room. A `standing` fact stays true until one of the same name
        follows: the newest is kept, too, when its time in the ring is over."""
        self._events.append(event)
        self.bytes += EVENT_BYTES + len(event[4])
        if standing:
            self._standing[event[2]] = event
        while self.bytes > self.most_bytes or len(self._events) > self.most_events:
            self.bytes -= EVENT_BYTES + len(self._events.popleft()[4])

    def snapshot(self) -> tuple[list[Event], list[Event]]:
        """What is held now: the standing facts that the ring itself no longer has, and the ring, both in order."""
        events = list(self._events)
        begins_s = events[0][0] if events else float("inf")
        return [fact for fact in self._standing.values() if fact[0] < begins_s], events


_ring: Ring | None = None


def start_recorder(most_events: int, most_bytes: int) -> Ring | None:
    """Begins to record, from nothing; 0 for either bound turns the recorder off (None)."""
    global _ring
    _ring = Ring(most_events, most_bytes) if most_events and most_bytes else None
    return _ring


def current_ring() -> Ring | None:
    """What this process records into; None: nothing is recorded."""
    return _ring


def note(direction: str, peer: bytes, body: Body, frames: list[bytes]) -> None:
    """Records a message by its last two frames, header and body."""
    if _ring is not None and not body.periodic:
        _ring.add((now_s(), direction, peer, frames[-2], frames[-1]))


def fact(name: str, /, **values: Any) -> None:
    """Records a fact. Values are of msgpack's types; never a prompt, a completion, a token or a key."""
    if _ring is not None:
        _ring.add((now_s(), FACT, name.encode(), b"", _encode(values)))


def standing_fact(name: str, /, **values: Any) -> None:
    """Records a fact that is true until another of that name is recorded."""
    if _ring is not None:
        _ring.add((now_s(), FACT, name.encode(), b"", _encode(values)), standing=True)
