"""Frames that must not get through: one of each kind that the receiver has to survive."""

from __future__ import annotations

import msgpack

from accelgen.proto.frame import PROTOCOL_VERSION, TAG_OF, seal
from accelgen.proto.messages import MESSAGES, Abort, Directory, Heartbeat, Lookup, Query


def header_of(tag: int, version: int = PROTOCOL_VERSION, seq: int = 0) -> bytes:
    return msgpack.packb([version, tag, 0, 1, seq])


DIRECTORY_START = b"\x94\x90\xc3\xc2\x81\xa1a"  # [[], True, False, {"a": ...: anything may follow
_UNSEALED: dict[str, list[bytes]] = {
    "no frame": [],
    "one frame": [header_of(TAG_OF[Query])],
    "three frames": [header_of(TAG_OF[Query]), b"\x90", b"\x90"],
    "empty frames": [b"", b""],
    "empty body": [header_of(TAG_OF[Query]), b""],
    "empty header": [b"", b"\x90"],
    "truncated header": [header_of(TAG_OF[Query])[:-1], b"\x90"],
    "header with a field too many": [msgpack.packb([PROTOCOL_VERSION, 0, 0, 1, 0, 0]), b"\x90"],
    "header as a map": [msgpack.packb({"version": 1}), b"\x90"],
    "wrong version": [header_of(TAG_OF[Query], version=PROTOCOL_VERSION - 1), b"\x90"],
    "unknown tag": [header_of(len(MESSAGES)), b"\x90"],
    "huge tag": [header_of(2**31 - 1), b"\x90"],
    "negative tag": [header_of(-1), b"\x90"],
    "sequence number beyond 63 bits": [header_of(TAG_OF[Query], seq=2**63), b"\x90"],
    "body of another message": [header_of(TAG_OF[Abort]), b"\x90"],
    "something behind the body": [header_of(TAG_OF[Query]), b"\x90\x90"],
    "reserved byte": [header_of(TAG_OF[Query]), b"\xc1"],
    "id beyond 63 bits": [header_of(TAG_OF[Abort]), msgpack.packb([[2**64 - 1]])],
    "negative id": [header_of(TAG_OF[Abort]), msgpack.packb([[-1]])],
    "float for an id": [header_of(TAG_OF[Abort]), msgpack.packb([[1.0]])],
    "bool for an id": [header_of(TAG_OF[Abort]), msgpack.packb([[True]])],
    "nan for a duration": [header_of(TAG_OF[Heartbeat]), msgpack.packb([1, "p", float("nan"), 1])],
    "negative duration": [header_of(TAG_OF[Heartbeat]), msgpack.packb([1, "p", -0.1, 1])],
    "text that is not UTF-8": [header_of(TAG_OF[Heartbeat]), b"\x94\x01\xa2\xff\xfe\xcb" + bytes(8) + b"\x01"],
    "bytes for text": [header_of(TAG_OF[Heartbeat]), msgpack.packb([1, b"p", 1.0, 1])],
    "four billion ids announced": [header_of(TAG_OF[Abort]), b"\x91\xdd\xff\xff\xff\xff"],
    "four billion prompts announced": [header_of(TAG_OF[Lookup]), b"\x91\xdd\xff\xff\xff\xff"],
    "four gigabytes of text announced": [header_of(TAG_OF[Heartbeat]), b"\x94\x01\xdb\xff\xff\xff\xff"],
    "four billion of anything announced": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\xdd\xff\xff\xff\xff"],
    "a map of four billion announced": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\xdf\xff\xff\xff\xff"],
    "lists in lists": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\x91" * 1_000_000],
    "long lists in long lists": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\xdd\0\0\0\1" * 200_000],
    "maps in maps": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\x81\xa1a" * 300_000],
    "lists in a key": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\x81" + b"\x91" * 100_000],
    "a map as a key": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\x81\x80\x01"],
    "an impossible time": [header_of(TAG_OF[Directory]), DIRECTORY_START + b"\xc7\x0c" + b"\xff" * 12],
}  # fmt: skip
SEALED = {
    name: [seal(frames[0], frames[1]), frames[1]]
    for name, frames in _UNSEALED.items()
    if len(frames) == 2
}
GOOD = [seal(header_of(TAG_OF[Query]), b"\x90"), b"\x90"]
HOSTILE = {
    **{f"{name}, no checksum": frames for name, frames in _UNSEALED.items()},
    **SEALED,
    "three good frames": [*GOOD, b"\x90"],
    "a good header alone": GOOD[:1],
    "another checksum": [GOOD[0][:-1] + bytes([GOOD[0][-1] ^ 1]), GOOD[1]],
    "a checksum of another kind": [GOOD[0].replace(b"\xce", b"\xd2"), GOOD[1]],
}
