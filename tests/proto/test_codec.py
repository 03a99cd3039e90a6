"""Framing without sockets: whatever arrives is decoded or counted, never raised, never executed."""

from __future__ import annotations

import resource
from pathlib import Path

import hypothesis.strategies as st
import msgpack
import pytest
from drawn_messages import values_of
from hostile_frames import DIRECTORY_START, HOSTILE, header_of
from hypothesis import example, given, settings

from accelgen.proto import frame
from accelgen.proto.frame import (
    PROTOCOL_VERSION,
    TAG_OF,
    Codec,
    Header,
    Malformed,
    decode,
    encode,
    seal,
)
from accelgen.proto.messages import MESSAGES, Abort, Directory, Query

PEER = b"peer"


@pytest.mark.parametrize("frames", HOSTILE.values(), ids=HOSTILE)
def test_hostile_frames_are_counted_and_dropped(frames: list[bytes]) -> None:
    told: list[tuple[str, int, str]] = []
    codec = Codec(1, lambda *what: told.append(what))
    assert codec.unpack(PEER, frames) is None
    assert codec.counters == {"malformed": 1}
    [(cause, length, digest)] = told
    assert length == sum(map(len, frames)) and len(digest) == 16
    assert not any(part in cause for part in ("\ufffd", "\\x"))  # never what it contained
    sender = Codec(2)
    assert codec.unpack(PEER, sender.pack(PEER, Abort([1]), 0)) is not None


def test_announced_sizes_allocate_nothing() -> None:
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name, frames in HOSTILE.items():
        if "announced" in name:
            with pytest.raises(Malformed):
                decode(frames)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 20_000


def test_a_pickle_is_not_executed(tmp_path: Path) -> None:
    """Text of the pickle protocol 0 that would create a file if anybody unpickled it."""
    trace = tmp_path / "was-executed"
    payload = f"cos\nsystem\n(S'touch {trace}'\ntR.".encode()
    for frames in (
        [payload],
        [payload, payload],
        [header_of(0), payload],
        [header_of(TAG_OF[Directory]), payload],
        [seal(header_of(TAG_OF[Directory]), payload), payload],
    ):
        with pytest.raises(Malformed):
            decode(frames)
    wrapped = DIRECTORY_START + msgpack.packb(payload)
    assert decode([seal(header_of(TAG_OF[Directory]), wrapped), wrapped])[1].config == {
        "a": payload
    }  # bytes are bytes
    assert not trace.exists()


@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.lists(st.binary(max_size=60), max_size=4))
@example([b"\x95\x01\x00\x00\x00\x00", b"\xdd"])
def test_random_frames_never_raise(frames: list[bytes]) -> None:
    codec = Codec(1)
    message = codec.unpack(PEER, frames)
    assert codec.counters["received" if message else "malformed"] == 1


@settings(max_examples=600, deadline=None, derandomize=True)
@given(data=st.data(), kind=st.sampled_from(MESSAGES), sealed=st.booleans())
def test_damaged_messages_never_raise(data: st.DataObject, kind: type, sealed: bool) -> None:
    """Good messages with bytes changed, cut off, put in: counted; whoever makes the checksum fit may be accepted."""
    good = encode(Header(PROTOCOL_VERSION, TAG_OF[kind], 1, 2, 0), data.draw(values_of(kind)))
    frames = [good[0][:-5], good[1]] if sealed else list(good)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, 1))
        cut = data.draw(st.integers(0, len(frames[at])))
        keep = data.draw(st.integers(cut, len(frames[at])))
        special = st.sampled_from(
            [b"\xdd", b"\xdf", b"\xc1", b"\xd6\xff", b"\xc7\x0c\xff", b"\x81", b"\xff"]
        )
        put = data.draw(st.one_of(special, st.binary(max_size=3)))
        frames[at] = frames[at][:cut] + put + frames[at][keep:]
    if sealed:
        frames[0] = seal(frames[0], frames[1])
    codec = Codec(1)
    message = codec.unpack(PEER, frames)
    assert codec.counters["received" if message else "malformed"] == 1
    assert sealed or frames == good or message is None
    skips = message is None or message[0].seq > 0
    assert codec.lost(PEER) == skips and not codec.lost(PEER)


def test_numbers_of_a_link() -> None:
    """Duplicates are dropped, gaps counted; every peer and every incarnation counts from 0."""
    sender, receiver = Codec(7), Codec(8)
    frames = [sender.pack(PEER, Abort([i]), epoch=3) for i in range(5)]
    header, body = receiver.unpack(PEER, frames[0]) or (None, None)
    assert (header, body) == (Header(PROTOCOL_VERSION, 1, 3, 7, 0), Abort([0]))
    assert receiver.unpack(PEER, frames[1]) and not receiver.unpack(PEER, frames[1])
    assert not receiver.unpack(PEER, frames[0])
    assert receiver.unpack(PEER, frames[4])  # two are missing: it arrives, and is counted
    assert not receiver.unpack(PEER, frames[2])  # too late
    assert receiver.unpack(b"another", frames[0])
    assert receiver.unpack(PEER, Codec(9).pack(PEER, Abort([0]), 3))
    assert receiver.counters == {"received": 5, "duplicate": 3, "gap": 1}
    late = Codec(8)
    assert late.unpack(PEER, frames[3]) and late.counters["gap"] == 1
    assert late.lost(PEER) and not late.lost(PEER) and not late.lost(b"another")


def test_a_number_taken_back_leaves_no_gap() -> None:
    sender, receiver = Codec(7), Codec(8)
    sender.pack(PEER, Abort([1]), 0)
    sender.take_back(PEER)
    receiver.unpack(PEER, sender.pack(PEER, Abort([2]), 0))
    assert receiver.counters == {"received": 1}
    assert sender.counters == {"sent": 1, "unsent": 1}


def test_what_could_not_be_sent_is_missing() -> None:
    sender, receiver = Codec(7), Codec(8)
    receiver.unpack(PEER, sender.pack(PEER, Abort([1]), 0))
    sender.pack(PEER, Abort([2]), 0)
    sender.note_unsent()
    assert not receiver.lost(PEER)
    receiver.unpack(PEER, sender.pack(PEER, Abort([3]), 0))
    assert receiver.lost(PEER) and sender.counters == {"sent": 2, "unsent": 1}


def test_the_longest_silent_peer_is_forgotten_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "MAX_PEERS", 3)
    receiver, steady = Codec(1), Codec(2)
    for i in range(20):
        assert receiver.unpack(b"steady", steady.pack(b"", Abort([i]), 0))
        receiver.unpack(b"guest %d" % i, Codec(3).pack(b"", Query(), 0))
    assert "gap" not in receiver.counters and len(receiver._next_in) == 3


def test_one_peer_with_many_names_has_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another incarnation in each message: nobody else is forgotten for it."""
    monkeypatch.setattr(frame, "MAX_PEERS", 3)
    receiver, steady = Codec(1), Codec(2)
    assert receiver.unpack(b"steady", steady.pack(b"", Query(), 0))
    for i in range(20):
        assert receiver.unpack(b"stranger", Codec(100 + i).pack(b"", Query(), 0))
    assert receiver.unpack(b"steady", steady.pack(b"", Query(), 0))
    assert "gap" not in receiver.counters and not receiver.lost(b"steady")


def test_answers_to_many_are_not_remembered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame, "MAX_PEERS", 3)
    sender, steady = Codec(1), Codec(2)
    for i in range(20):
        assert steady.unpack(b"", sender.pack(b"steady", Abort([i]), 0))
        sender.pack(b"guest %d" % i, Query(), 0)
    assert steady.counters == {"received": 20} and len(sender._next_out) == 3
