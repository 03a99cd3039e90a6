"""Every message: round trip, the view of an independent msgpack implementation, tags and bytes that must not change."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import hypothesis.strategies as st
import msgpack
import pytest
from drawn_messages import as_lists, values_of
from hypothesis import given, settings

from accelgen.proto.frame import PROTOCOL_VERSION, TAG_OF, Header, Malformed, decode, encode, seal
from accelgen.proto.messages import (
    MESSAGES,
    Abort,
    Activate,
    Body,
    End,
    Finished,
    Lookup,
    Plan,
    Prompt,
    Query,
    Reason,
    Sampling,
    Tokens,
)

every_message = pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
IDS = st.integers(0, 2**63 - 1)


def sealed(header: bytes, fields: Any) -> list[bytes]:
    body = msgpack.packb(fields)
    return [seal(header, body), body]


@every_message
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data(), epoch=IDS, incarnation=IDS, seq=IDS)
def test_round_trip(
    kind: type[Body], data: st.DataObject, epoch: int, incarnation: int, seq: int
) -> None:
    body = data.draw(values_of(kind))
    header = Header(PROTOCOL_VERSION, TAG_OF[kind], epoch, incarnation, seq)
    assert decode(encode(header, body)) == (header, body)


@every_message
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_an_independent_implementation_reads_and_writes_it(
    kind: type[Body], data: st.DataObject
) -> None:
    body = data.draw(values_of(kind))
    header = Header(PROTOCOL_VERSION, TAG_OF[kind], 1, 2, 3)
    frames = encode(header, body)
    unpacker = msgpack.Unpacker()
    unpacker.feed(frames[0])
    fields = [PROTOCOL_VERSION, TAG_OF[kind], 1, 2, 3]
    head = msgpack.packb(fields)
    assert list(unpacker) == [fields, crc32(frames[1], crc32(head))]
    assert msgpack.unpackb(frames[1]) == as_lists(body)
    theirs = msgpack.packb(as_lists(body))
    assert decode([seal(head, theirs), theirs]) == (header, body)


@every_message
@settings(max_examples=20, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_field_too_many_or_too_few_is_refused(kind: type[Body], data: st.DataObject) -> None:
    fields = as_lists(data.draw(values_of(kind)))
    header = msgpack.packb([PROTOCOL_VERSION, TAG_OF[kind], 0, 0, 0])
    with pytest.raises(Malformed):
        decode(sealed(header, [*fields, 0]))
    required = len(kind.__struct_fields__) - len(kind.__struct_defaults__)
    if required:
        with pytest.raises(Malformed):
            decode(sealed(header, fields[: required - 1]))
    decode(sealed(header, fields[:required]))  # fields with a default may be left out


@every_message
def test_fields_of_another_type_are_refused(kind: type[Body]) -> None:
    header = msgpack.packb([PROTOCOL_VERSION, TAG_OF[kind], 0, 0, 0])
    for body in ({}, None, 1, "text", b"bytes", [{}], [[[]] * 40], {"step": 1}):
        if not (kind in (Activate, Query) and body == []):
            with pytest.raises(Malformed):
                decode(sealed(header, body))


def test_tags_are_stable() -> None:
    """Append new messages at the end; a tag that changes its meaning breaks a running server's successor."""
    assert [kind.__name__ for kind in MESSAGES][:27] == [
        "Submit", "Abort", "Admitted", "Tokens", "Finished",
        "Lookup", "Plan", "KvReport", "Batch", "StepResult",
        "Hello", "Heartbeat", "Failure", "Query", "Directory", "Activate", "Inventory", "Stop",
        "Replayed", "Yield", "Assume", "Swap", "Swapped", "Resync", "Pulse", "Prepare", "Handoff",
    ]  # fmt: skip
    assert list(TAG_OF.values()) == list(range(len(MESSAGES)))


ZERO, ONE, HALF, TWO = (
    "cb0000000000000000", "cb3ff0000000000000", "cb3fe0000000000000", "cb4000000000000000",
)  # fmt: skip
GOLDEN: list[tuple[Body, str]] = [
    (Abort([1, 300]), "91" "9201cd012c"),
    (Query(), "90"),
    (Activate(8), "91" "08"),
    (Tokens(3, [1], [2], [7, 128]), "96" "03" "9101" "9102" "9207cc80" "90" "90"),
    (
        Finished([End(5, Reason.STOP, "ok")]),
        "91" "91" "98" "05" "00" "a26f6b" + ZERO + ZERO + "00" "00" "c2",
    ),
    (
        Lookup([Prompt(9, [1, 2], Sampling(temperature=0.0), salt=b"t")]),
        "92" "91" "96" "09" "920102" "98" + ZERO + ONE + "00" + ZERO * 3 + ONE + "00" "00" "c40174" "00" "c2",
    ),
    (
        Plan(7, [1, 2**62], [0, 9], [16, 1], [2**62], [1], [50256], [], [5], [], [], 0.5, 2.0),
        "dc0016" "07" "9201cf4000000000000000" "920009" "921001" "91cf4000000000000000" "9101" "91cdc450"
        "90" "9105" "90" "90" + HALF + TWO + "90" + "90" * 8,
    ),
]  # fmt: skip


@pytest.mark.parametrize("body, wire", GOLDEN, ids=lambda value: type(value).__name__)
def test_golden_bytes(body: Body, wire: str) -> None:
    """The wire format itself, byte by byte: these change only together with PROTOCOL_VERSION."""
    header = Header(PROTOCOL_VERSION, TAG_OF[type(body)], 2, 1000, 40)
    frames = encode(header, body)
    head = f"95{PROTOCOL_VERSION:02x}{TAG_OF[type(body)]:02x}02cd03e828"
    checksum = crc32(bytes.fromhex(head + wire))
    assert frames[0].hex() == f"{head}ce{checksum:08x}"
    assert frames[1].hex() == wire
    assert decode(frames) == (header, body)
