"""Framing, sans I/O: a message is two frames, header and body, both msgpack; every oddity is counted, not raised.

The header frame ends with a second msgpack object, the CRC-32 of header and body. ZeroMQ's own transports lose no bit;
but memory, a proxy or a defect may, and a number that is wrong and well-formed would be believed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Any
from zlib import crc32

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder, Encoder

from accelgen.proto.messages import MESSAGES, Body, Count, Id

PROTOCOL_VERSION = 4
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_PEERS = 4096

TAG_OF: dict[type[Body], int] = {kind: tag for tag, kind in enumerate(MESSAGES)}
_BODY_DECODERS = [Decoder(kind) for kind in MESSAGES]
_ENCODER = Encoder()


class Header(Struct, frozen=True, array_like=True, forbid_unknown_fields=True, gc=False):
    """First frame. `epoch` is the scheduler epoch whose decision caused the message (0: none yet), `incarnation`
    names this life of the sender, `seq` counts the sender's messages on this link from 0."""

    version: Count
    tag: Count
    epoch: Id
    incarnation: Id
    seq: Id


_HEADER_DECODER = Decoder(Header)


class Malformed(ValueError):
    """A message that could not be decoded; the text says in which way, never what it contained."""


_SEAL_BYTES = 5  # a msgpack uint32
_SEAL_CODE = b"\xce"


def seal(header: bytes, body: bytes) -> bytes:
    """The header frame: the encoded header and the checksum of both."""
    return header + _SEAL_CODE + crc32(body, crc32(header)).to_bytes(4, "big")


def unsealed(frame: bytes) -> bytes:
    """The encoded header of a header frame, without the checksum."""
    return frame[:-_SEAL_BYTES]


def encode(header: Header, body: Body) -> list[bytes]:
    """Two frames of a message."""
    encoded = _ENCODER.encode(body)
    return [seal(_ENCODER.encode(header), encoded), encoded]


def decode(frames: Sequence[bytes]) -> tuple[Header, Body]:
    """Header and body of two frames. Raises Malformed for anything else."""
    if len(frames) != 2:
        raise Malformed("frame count")
    head = unsealed(frames[0])
    if seal(head, frames[1]) != frames[0]:
        raise Malformed("checksum")
    try:
        header = _HEADER_DECODER.decode(head)
        if header.version != PROTOCOL_VERSION:
            raise Malformed("protocol version")
        if header.tag >= len(MESSAGES):
            raise Malformed("unknown tag")
        return header, _BODY_DECODERS[header.tag].decode(frames[1])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, OverflowError) as error:
        raise Malformed(type(error).__name__) from error


LogMalformed = Callable[[str, int, str], None]


def _ignore(cause: str, length: int, digest: str) -> None:
    pass


class Codec:
    """Both directions of one socket: numbers what is sent, judges what is received.

    `counters` has: sent, received, unsent, malformed, duplicate, gap (a first message that is not number 0 is one,
    too). `on_malformed(cause, length, hash)` is called for logging; the content is never passed on. `lost` tells of
    which link messages are missing.
    """

    def __init__(self, incarnation: int, on_malformed: LogMalformed = _ignore) -> None:
        self.incarnation = incarnation
        self.counters: Counter[str] = Counter()
        self._on_malformed = on_malformed
        self._next_out: dict[bytes, int] = {}
        self._next_in: dict[bytes, tuple[int, int]] = {}  # incarnation, number
        self._lossy: dict[bytes, None] = {}  # peers, the longest known first

    def pack(self, peer: bytes, body: Body, epoch: int) -> list[bytes]:
        """Frames of `body` for `peer`, with the next sequence number of that link."""
        seq = self._next_out.pop(peer, 0)  # put back behind all others
        self._next_out[peer] = seq + 1
        _forget_one(self._next_out)
        self.counters["sent"] += 1
        header = Header(PROTOCOL_VERSION, TAG_OF[type(body)], epoch, self.incarnation, seq)
        return encode(header, body)

    def unpack(self, peer: bytes, frames: Sequence[bytes]) -> tuple[Header, Body] | None:
        """The message, or None when it is malformed or a duplicate (both counted)."""
        try:
            header, body = decode(frames)
        except Malformed as cause:
            self.counters["malformed"] += 1
            digest = blake2b(b"".join(frames), digest_size=8).hexdigest()
            self._on_malformed(str(cause), sum(map(len, frames)), digest)
            self._note_loss(peer)
            return None
        incarnation, expected = self._next_in.pop(peer, (0, 0))  # put back behind all others
        if incarnation != header.incarnation:
            expected = 0
        self._next_in[peer] = header.incarnation, max(expected, header.seq + 1)
        _forget_one(self._next_in)
        if header.seq < expected:
            self.counters["duplicate"] += 1
            return None
        if header.seq > expected:
            self.counters["gap"] += 1
            self._note_loss(peer)
        self.counters["received"] += 1
        return header, body

    def lost(self, peer: bytes) -> bool:
        """Whether something from `peer` was missing or unreadable since this was asked last."""
        if not self._lossy:
            return False
        return self._lossy.pop(peer, True) is None

    def _note_loss(self, peer: bytes) -> None:
        self._lossy[peer] = None
        _forget_one(self._lossy)

    def take_back(self, peer: bytes) -> None:
        """The message packed last for `peer` shall not be sent: its number is free again."""
        self._next_out[peer] -= 1
        self.note_unsent()

    def note_unsent(self) -> None:
        """The message packed last could not be sent. Its number is used up: what comes next shows that it is missing,
        if `peer` is only away for a moment."""
        self.counters["sent"] -= 1
        self.counters["unsent"] += 1


def _forget_one(by_peer: dict[bytes, Any]) -> None:
    """Peers come and go: the longest silent is forgotten when there are too many."""
    if len(by_peer) > MAX_PEERS:
        del by_peer[next(iter(by_peer))]
