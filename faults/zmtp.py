"""Just enough of ZMTP 3 (rfc.zeromq.org/spec/23) to see messages in the bytes of a connection, sans I/O.

A connection begins with a greeting of 64 bytes; then come frames: a byte of flags, a size of 1 or 8 bytes, the data.
Command frames (the handshake, ping and pong) belong to ZeroMQ itself; the others are messages, of one frame or more.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

GREETING_BYTES = 64
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY = b"\x05READY"


@dataclass(frozen=True)
class Raw:
    """Bytes between the two ZeroMQ libraries: greeting or command."""

    data: bytes


@dataclass(frozen=True)
class Message:
    """The frames of one message."""

    frames: tuple[bytes, ...]


@dataclass
class Splitter:
    """One direction of a connection. `ready` once the peer has said READY, and with it its `identity`."""

    identity: bytes = b""
    ready: bool = False
    _buffer: bytearray = field(default_factory=bytearray)
    _greeting_left: int = GREETING_BYTES
    _frames: list[bytes] = field(default_factory=list)

    def feed(self, data: bytes) -> Iterator[Raw | Message]:
        """What has become complete with `data`."""
        greeting = data[: self._greeting_left]
        if greeting:  # either side waits for a part of the other's before it sends the rest: pass it on at once
            self._greeting_left -= len(greeting)
            yield Raw(greeting)
        self._buffer += data[len(greeting) :]
        while (unit := self._next()) is not None:
            yield unit

    def _next(self) -> Raw | Message | None:
        while (found := self._frame()) is not None:
            flags, head, body = found
            if flags & _COMMAND:
                self._obey(body)
                return Raw(head + body)
            self._frames.append(body)
            if not flags & _MORE:
                frames, self._frames = tuple(self._frames), []
                return Message(frames)
        return None

    def _frame(self) -> tuple[int, bytes, bytes] | None:
        """Flags, the bytes before the data, and the data of the next frame, once it is all there."""
        head = 9 if self._buffer[:1] and self._buffer[0] & _LONG else 2
        if len(self._buffer) < head:
            return None
        size = int.from_bytes(self._buffer[1:head], "big")
        if len(self._buffer) < head + size:
            return None
        return self._buffer[0], self._take(head), self._take(size)

    def _obey(self, command: bytes) -> None:
        if command.startswith(_READY):
            self.ready, self.identity = True, _identity(command)

    def _take(self, size: int) -> bytes:
        taken = bytes(self._buffer[:size])
        del self._buffer[:size]
        return taken


def pack(frames: Sequence[bytes]) -> bytes:
    """The bytes of a message on the connection."""
    return b"".join(
        _framed(frame, _MORE if at < len(frames) - 1 else 0) for at, frame in enumerate(frames)
    )


def _framed(data: bytes, flags: int) -> bytes:
    if len(data) > 255:
        return bytes([flags | _LONG]) + len(data).to_bytes(8, "big") + data
    return bytes([flags, len(data)]) + data


def _identity(command: bytes) -> bytes:
    """The property Identity of a READY command."""
    at = len(_READY)
    while at < len(command):
        name_end = at + 1 + command[at]
        value_at = name_end + 4
        value_end = value_at + int.from_bytes(command[name_end:value_at], "big")
        if command[at + 1 : name_end].lower() == b"identity":
            return command[value_at:value_end]
        at = value_end
    return b""
