"""The flight recorder: what is kept, what a dump says, and above all what it does not say."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import msgpack
import msgspec
import pytest
from drawn_messages import as_lists, values_of
from hypothesis import given, settings

from accelgen.proto import dumps, recorder
from accelgen.proto.config import Config, save_config
from accelgen.proto.dumps import KEPT, Dumps, events_of, head_of, write_dump
from accelgen.proto.frame import PROTOCOL_VERSION, Codec, Header
from accelgen.proto.messages import (
    MESSAGES,
    PRIVATE,
    Abort,
    Batch,
    Body,
    Directory,
    Dumped,
    Heartbeat,
    Lookup,
    Objective,
    Plan,
    Prompt,
    Pulse,
    StepResult,
    Submit,
    Tokens,
)
from accelgen.proto.recorder import EVENT_BYTES, FACT, RECV, SEND, Ring, fact, note, standing_fact
from accelgen.proto.recording import Fact, Message, RecordingError, read_recording
from accelgen.proto.scrub import scrubbed

DEADLINE_S = 20.0
TAGS = {kind.__name__: tag for tag, kind in enumerate(MESSAGES)}


@pytest.fixture
def ring() -> Iterator[Ring]:
    made = recorder.start_recorder(1000, 1 << 20)
    assert made is not None
    yield made
    recorder.start_recorder(0, 0)


def send(body: Body, peer: bytes = b"kvmanager-0", epoch: int = 1) -> None:
    note(SEND, peer, body, CODEC.pack(peer, body, epoch))


CODEC = Codec(77)


def dump(ring: Ring, folder: Path) -> Path:
    path = folder / "scheduler-0-1.msgpack"
    write_dump(path, head_of("scheduler-0", 77, ring), events_of(ring))
    return path


# --- the ring ------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    most_events=st.integers(1, 20),
    most_bytes=st.integers(1, 3000),
    sizes=st.lists(st.integers(0, 900), max_size=60),
)
def test_the_ring_keeps_the_newest_within_both_bounds(
    most_events: int, most_bytes: int, sizes: list[int]
) -> None:
    ring = Ring(most_events, most_bytes)
    events = [(float(i), SEND, b"p", b"h", bytes(size)) for i, size in enumerate(sizes)]
    for event in events:
        ring.add(event)
        assert len(ring) <= most_events and ring.bytes <= most_bytes
    _, held = ring.snapshot()
    assert held == events[len(events) - len(held) :]
    assert ring.bytes == sum(EVENT_BYTES + len(event[4]) for event in held)
    if len(held) < min(len(events), most_events):  # one more would have been too much
        more = events[len(events) - len(held) - 1]
        assert ring.bytes + EVENT_BYTES + len(more[4]) > most_bytes


def test_a_standing_fact_outlives_its_place(ring: Ring, tmp_path: Path) -> None:
    standing_fact("core made", number=1)
    standing_fact("core made", number=2)
    for i in range(2000):
        send(Abort([i]))
    first, *rest = read_recording(dump(ring, tmp_path)).events
    assert isinstance(first, Fact) and first.standing and first.values == {"number": 2}
    assert len(rest) == 1000 and all(isinstance(event, Message) for event in rest)


def test_what_says_the_same_again_is_left_out(ring: Ring) -> None:
    send(Heartbeat(1, "ready", 1.0, 2))
    send(Directory([], True, False))
    send(Pulse())
    assert len(ring) == 0
    send(Abort([1]))
    assert len(ring) == 1


@pytest.mark.parametrize("bounds", [(0, 1 << 20), (1000, 0)])
def test_it_can_be_turned_off(bounds: tuple[int, int], tmp_path: Path) -> None:
    assert recorder.start_recorder(*bounds) is None
    send(Abort([1]))
    fact("something")
    writer = Dumps(tmp_path / "recorder", "worker-0", 1)
    assert finished(writer) == Dumped(b"me", "worker-0", fault="the flight recorder is off")
    assert not (tmp_path / "recorder").exists()


# --- what leaves the process -----------------------------------------------------------------------------------------

CANARY = [1_234_567_000 + i for i in range(40)]
SALT = b"a secret of somebody"
PROMPT = Prompt(9, CANARY, salt=SALT)
WITH_TOKENS: list[Body] = [
    Submit(PROMPT, 7, CANARY[:3], Objective(), "chat", 0.0, [10, 11]),
    Lookup([PROMPT, PROMPT]),
    Tokens(3, [9], [2], CANARY[:2]),
    Plan(3, [9], [0], [40], [9], [2], CANARY[:2], [], [], [], [], 0.1, 1.0),
    Batch(3, [PROMPT], [9], [0], [40], [0], [3], [1, 2, 3], [], [], [], 0.1, 1.0),
    StepResult(3, [9], [2], CANARY[:2], [], [], [], 0.0, 0.1),
]


def test_no_token_of_a_prompt_and_no_salt_is_in_a_dump(ring: Ring, tmp_path: Path) -> None:
    for body in WITH_TOKENS:
        send(body)
    content = dump(ring, tmp_path).read_bytes()
    for token in CANARY:
        for wire in (msgpack.packb(token), token.to_bytes(4, "big"), token.to_bytes(4, "little")):
            assert wire not in content
        assert str(token).encode() not in content
    assert SALT not in content
    held = ring.snapshot()[1]
    assert all(msgpack.packb(CANARY[0]) in event[4] for event in held)  # it would have been seen


def test_everything_else_stays(ring: Ring, tmp_path: Path) -> None:
    for body in WITH_TOKENS:
        send(body)
    messages = [e for e in read_recording(dump(ring, tmp_path)).events if isinstance(e, Message)]
    for message, body in zip(messages, WITH_TOKENS, strict=True):
        assert as_lists(message.body) == blanked(body)
        assert (message.kind, message.peer) == (type(body).__name__, "kvmanager-0")
        assert (message.header.epoch, message.header.incarnation) == (1, 77)


def blanked(body: Body) -> Any:
    """The message as lists, with what is private emptied by hand: the oracle of `scrubbed`."""

    def clean(value: Any) -> Any:
        if not isinstance(value, list):
            return b"" if value == SALT else value
        if value[:1] == CANARY[:1]:
            return [0] * len(value)
        return [clean(item) for item in value]

    return clean(as_lists(body))


@pytest.mark.parametrize("kind", MESSAGES, ids=lambda kind: kind.__name__)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_scrubbed_messages_have_the_same_shape(kind: type[Body], data: st.DataObject) -> None:
    body = data.draw(values_of(kind))
    wire = scrubbed(TAGS[kind.__name__], msgpack.packb(as_lists(body)))
    assert shape(msgpack.unpackb(wire)) == shape(as_lists(body))
    if kind.__name__ not in {type(one).__name__ for one in WITH_TOKENS}:
        assert wire == msgpack.packb(as_lists(body)) or msgpack.unpackb(wire) == as_lists(body)


def shape(value: Any) -> Any:
    """Lists with their lengths, of what types."""
    return [shape(item) for item in value] if isinstance(value, list) else type(value)


def test_fields_that_may_be_left_out_may_be_left_out() -> None:
    """Another implementation of the wire may omit trailing defaults."""
    prompt = [9, CANARY]
    wire = scrubbed(TAGS["Lookup"], msgpack.packb([[prompt]]))
    [[[id, tokens, *rest]], adopt] = msgpack.unpackb(wire)
    assert (id, tokens, adopt) == (9, [0] * 40, False) and rest[2] == b""


def test_every_list_of_tokens_is_known_to_be_private() -> None:
    """A field that is called tokens, or a salt, in any message, says so in its type."""

    def fields_of(kind: type[msgspec.Struct], seen: set[type]) -> Iterator[tuple[str, Any]]:
        if kind not in seen:
            seen.add(kind)
            hints = typing.get_type_hints(kind, include_extras=True)
            for name in kind.__struct_fields__:
                yield f"{kind.__name__}.{name}", hints[name]
                for part in parts(hints[name]):
                    yield from fields_of(part, seen)

    def parts(hint: Any) -> Iterator[type[msgspec.Struct]]:
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            yield hint
        for argument in typing.get_args(hint):
            yield from parts(argument)

    def is_private(hint: Any) -> bool:
        return any(getattr(part, "extra", None) == PRIVATE for part in typing.get_args(hint))

    seen: set[type] = set()
    found = [pair for kind in MESSAGES for pair in fields_of(kind, seen)]
    private = {name for name, hint in found if is_private(hint)}
    counts = {"cached_tokens", "hit_tokens", "max_tokens", "prefill_tokens"}  # not ids
    named = {name for name, _ in found if "token" in name.split(".")[1] or "salt" in name}
    assert private == {name for name in named if name.split(".")[1] not in counts}
    assert "Prompt.tokens" in private and "Prompt.salt" in private


# --- files -----------------------------------------------------------------------------------------------------------


def test_any_msgpack_library_reads_it(ring: Ring, tmp_path: Path) -> None:
    send(Abort([5, 6]), epoch=3)
    note(RECV, b"frontend-1:\xff:2", Abort([7]), CODEC.pack(b"x", Abort([7]), 3))
    fact("plan begun", now_s=1.5, due=[0])
    before_s = time.time()
    path = dump(ring, tmp_path)
    head, sent, received, noted, end = msgpack.Unpacker(path.open("rb"))
    assert (head["accelgen recorder"], head["process"], head["pid"]) == (
        1, "scheduler-0", os.getpid(),
    )  # fmt: skip
    assert head["incarnation"] == 77 and head["messages"] == [kind.__name__ for kind in MESSAGES]
    assert abs(head["wall_s"] - before_s) < 5 and abs(head["monotonic_s"] - time.monotonic()) < 5
    assert sent[1:3] == [SEND, "kvmanager-0"] and sent[4] == [[5, 6]]
    assert sent[3][:4] == [PROTOCOL_VERSION, TAGS["Abort"], 3, 77]
    assert received[1:3] == [RECV, "frontend-1:\\xff:2"] and received[4] == [[7]]
    assert noted[1:] == [FACT, "plan begun", {"now_s": 1.5, "due": [0]}]
    assert end[1:] == ["end", 3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_was_written_is_what_is_read(ring: Ring, tmp_path: Path) -> None:
    fact("phase", phase="ready")
    send(Abort([5]))
    recording = read_recording(dump(ring, tmp_path))
    noted, sent = recording.events
    assert isinstance(noted, Fact) and (noted.name, noted.values) == ("phase", {"phase": "ready"})
    assert isinstance(sent, Message) and sent.body == Abort([5]) and sent.field("ids") == [5]
    assert isinstance(sent.header, Header) and sent.header.tag == TAGS["Abort"]
    assert (recording.process, recording.incarnation, recording.damage) == ("scheduler-0", 77, "")
    assert recording.begins_s == noted.moment_s <= sent.moment_s <= recording.monotonic_s


def test_damage_is_told(ring: Ring, tmp_path: Path) -> None:
    for i in range(20):
        send(Abort([i]))
    path = dump(ring, tmp_path)
    whole = path.read_bytes()
    records = list(msgpack.Unpacker(path.open("rb")))
    faults = {
        "cut off after 20 records": b"".join(map(msgpack.packb, records[:-1])),
        "cut off after 19 records": whole[:-40],
        "some of its records are missing": b"".join(map(msgpack.packb, records[:3] + records[4:])),
        "record 2 is none of a dump": b"".join(map(msgpack.packb, [*records[:2], [1], *records])),
        "damaged after 20 records": b"".join(map(msgpack.packb, records[:-1])) + b"\xc1",
    }
    for fault, content in faults.items():
        path.write_bytes(content)
        with pytest.raises(RecordingError, match=fault):
            read_recording(path)
        assert fault in read_recording(path, whole=False).damage
    heads = {
        "not a dump": [b"", b"\xc1\xc1", b"hello there", msgpack.packb([1, 2]), msgpack.packb({1: 2})],
        "version 9, this accelgen reads version 1": [msgpack.packb({"accelgen recorder": 9})],
        "protocol version 0": [msgpack.packb({**records[0], "protocol": 0})],
        "first record is damaged": [msgpack.packb({**records[0], "pid": "x"})],
    }  # fmt: skip
    for fault, contents in heads.items():
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(RecordingError, match=fault):
                read_recording(path, whole=False)
    with pytest.raises(RecordingError, match="No such file"):
        read_recording(tmp_path / "nothing")


def finished(writer: Dumps) -> Dumped:
    """The answer to a client that asks now."""
    writer.ask(b"me")
    until_s = time.monotonic() + DEADLINE_S
    while not (answers := writer.answers()):
        assert time.monotonic() < until_s
        time.sleep(0.001)
    assert not writer.busy
    [answer] = answers
    return answer


def test_a_dump_beside_the_loop(ring: Ring, tmp_path: Path) -> None:
    for i in range(5):
        send(Abort([i]))
    folder = tmp_path / "recorder"
    answer = finished(Dumps(folder, "worker-0", 1))
    assert answer == Dumped(b"me", "worker-0", f"worker-0-{os.getpid()}.msgpack", 5)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [path.name for path in folder.iterdir()] == [answer.file]
    assert len(read_recording(folder / answer.file).events) == 5


def test_everybody_who_asks_meanwhile_gets_the_answer(ring: Ring, tmp_path: Path) -> None:
    for i in range(1000):
        send(Abort([i]))
    writer = Dumps(tmp_path / "recorder", "worker-0", 1)
    writer.ask(b"first")
    writer.ask(b"second")
    until_s, answers = time.monotonic() + DEADLINE_S, []
    while len(answers) < 2:
        assert time.monotonic() < until_s
        answers += writer.answers()
    assert [answer.client for answer in answers] == [b"first", b"second"]


def test_old_lives_make_room(ring: Ring, tmp_path: Path) -> None:
    folder = tmp_path / "recorder"
    folder.mkdir()
    for age in range(6):
        old = folder / f"worker-0-{9_000_000 + age}.msgpack"
        old.write_bytes(b"")
        os.utime(old, (1000 - age, 1000 - age))
    (folder / ".worker-0-1.part").write_bytes(b"left by a life that was cut off")
    (folder / "worker-01-5.msgpack").write_bytes(b"somebody else's")
    answer = finished(Dumps(folder, "worker-0", 1))
    kept = [f"worker-0-{9_000_000 + age}.msgpack" for age in range(KEPT)]
    assert {p.name for p in folder.iterdir()} == {answer.file, "worker-01-5.msgpack", *kept}


def test_a_full_disk_is_said_and_survived(
    ring: Ring, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/dev/full refuses every write as a full disk does."""
    send(Abort([1]))
    real = os.open
    monkeypatch.setattr(
        dumps.os, "open", lambda path, *rest: real("/dev/full", os.O_WRONLY) if
        str(path).endswith(".part") else real(path, *rest),
    )  # fmt: skip
    writer = Dumps(tmp_path / "recorder", "worker-0", 1)
    answer = finished(writer)
    assert answer.fault == f"OSError: {os.strerror(errno.ENOSPC)}" and not answer.file
    writer.write_last()  # nor does it keep a process from dying in its own way
    monkeypatch.undo()
    assert list((tmp_path / "recorder").iterdir()) == []
    assert finished(writer).events == 1


def test_a_folder_that_cannot_be_is_said(ring: Ring, tmp_path: Path) -> None:
    (tmp_path / "recorder").write_text("a file in its place")
    assert "Error" in finished(Dumps(tmp_path / "recorder", "worker-0", 1)).fault


DYING = """
import sys
from accelgen.proto.child import Child
from accelgen.proto.messages import Role
child = Child.from_command_line(Role.KVMANAGER)
child.phase("working")
if child.config.seed:
    child.fail("a fault that is known")
raise ZeroDivisionError("a fault that is not")
"""


@pytest.mark.parametrize("seed, status", [(0, 1), (1, 1)])
def test_whoever_dies_by_a_fault_of_its_own_leaves_a_dump(
    run_dir: Path, seed: int, status: int
) -> None:
    save_config(Config(seed=seed), run_dir / "config.json")
    command = [sys.executable, "-P", "-c", DYING, "--run-dir", str(run_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == status and ("ZeroDivisionError" in done.stderr) == (not seed)
    [path] = (run_dir / "recorder").iterdir()
    facts = [e for e in read_recording(path).events if isinstance(e, Fact)]
    assert path.name.startswith("kvmanager-0-") and facts[0].values == {"phase": "working"}
