"""Hostile processes of the same user at every socket of a running server: they are counted, and nobody else notices.

A stream of known text runs all the while. What such a process may do all the same is what the command line does: ask
for the Directory or a dump, swap the policy, stop the server. Other users do not get into the folder of the sockets."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import httpx
import msgpack
import psutil
import pytest
import zmq

from accelgen.faults.wire_faults import counter
from accelgen.proto.epochs import epoch_of
from accelgen.proto.frame import (
    MAX_FRAME_BYTES,
    PROTOCOL_VERSION,
    TAG_OF,
    Codec,
    Header,
    Malformed,
    decode,
    encode,
    seal,
    unsealed,
)
from accelgen.proto.messages import (
    Abort,
    Activate,
    Admitted,
    Assume,
    Batch,
    Body,
    Directory,
    Dump,
    Dumped,
    End,
    Failure,
    Finished,
    Handoff,
    Heartbeat,
    Held,
    Hello,
    Inventory,
    KvReport,
    Lookup,
    Objective,
    Plan,
    Prepare,
    Prompt,
    Pulse,
    Query,
    Reason,
    Replayed,
    Resync,
    Role,
    StepResult,
    Stop,
    Submit,
    Swap,
    Swapped,
    Tokens,
    Yield,
)
from accelgen.proto.sockets import EndpointError, Router

sys.path.insert(0, str(Path(__file__).parents[1] / "proto"))
from hostile_frames import HOSTILE

TARGETS = ["supervisor-0", "frontend-0", "kvmanager-0", "worker-0"]
TOKENS = 200
FRAMES = 2500  # to each socket
GROWTH_BYTES = 64 * 2**20
NOBODY = 65534
DEADLINE_S = 30.0

PROMPT = Prompt(5, [1, 2, 3])
WORDS: list[Body] = [  # each is an order for somebody, if he believed it
    Submit(PROMPT, 9, [], Objective(), "chat", 0.0), Abort(list(range(100))), Admitted(5, 0, 0.1, 0),
    Tokens(0, [5], [1], [7]), Finished([End(5, Reason.FAILED)]), Lookup([PROMPT]),
    Plan(10**6, [5], [0], [3], [], [], [], [], list(range(100)), [], [], 0.1, 1.0),
    KvReport(0, 0, 0, 0, [5], [], [], []),
    Batch(10**6, [PROMPT], [5], [0], [3], [0], [1], [0], [], [], list(range(100)), 0.1, 1.0),
    StepResult(0, [5], [1], [7], [], [], [], 0.0, 0.0), Heartbeat(1, "dead", 1e-9, 0, {"accelgen:x": 1.0}),
    Failure("made up"), Directory([], False, True, {"policy": "made up"}), Activate(1000),
    Inventory(0, [Held(5, 3, [0])]), Replayed(0), Yield(), Assume(10**6), Swapped(True, "made up"),
    Resync("made up"), Pulse(), Prepare("vllm"), Handoff(b"\x81\xa1x\x01"), Dumped(b"", "made up"), Query(),
]  # fmt: skip
ALLOWED = (Stop, Swap, Dump)  # at the supervisor: those are the command line's


def path_of(server: Any, name: str) -> Path:
    return Path(server.run_dir) / f"{name.removesuffix('-0') if 'super' in name else name}.sock"


def counted(server: Any, kind: str) -> dict[str, float]:
    """What each target has counted of this kind."""
    return {name: counter(server.member(name), kind) for name in TARGETS}


def wait_for(condition: Callable[[], Any], what: Callable[[], str]) -> None:
    until_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until_s, what()
        time.sleep(0.05)


def expect(server: Any, kind: str, before: dict[str, float], more: dict[str, int]) -> None:
    """Waits until the heartbeats tell of exactly so many more."""
    wanted = {name: before[name] + more[name] for name in TARGETS}
    wait_for(
        lambda: counted(server, kind) == wanted,
        lambda: f"{kind}: {wanted} expected, counted {counted(server, kind)}",
    )


class Stranger:
    """A process of the same user, with as little respect as ZeroMQ allows."""

    def __init__(self, server: Any, name: str, identity: str, incarnation: int = 666) -> None:
        self._context: zmq.Context[Any] = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.setsockopt_string(zmq.IDENTITY, identity)
        self._socket.connect(f"ipc://{path_of(server, name)}")
        self._codec = Codec(incarnation)

    def say(self, body: Body, epoch: int = 0) -> list[bytes]:
        return self.send(self._codec.pack(b"", body, epoch))

    def send(self, frames: list[bytes]) -> list[bytes]:
        self._socket.send_multipart(frames)
        return frames

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=3000)


def stream(server: Any, begun: threading.Event) -> str:
    body = {
        "model": server.model, "prompt": [5 + 7 * j % 4000 for j in range(40)], "max_tokens": TOKENS,
        "temperature": 0.9, "seed": 11, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    text = ""
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        assert response.status_code == 200, response.read()
        for line in response.iter_lines():
            if line == "data: [DONE]":
                return text
            if line:
                chunk = httpx.Response(200, content=line[6:]).json()
                text += chunk["choices"][0]["text"]
                begun.set()
    raise AssertionError("the stream was cut off")


@pytest.fixture(scope="module")
def quiet(server: Any) -> str:
    """The text of the stream when nobody disturbs it."""
    return stream(server, threading.Event())


def lives(server: Any) -> dict[str, tuple[int, int]]:
    directory = server.directory()
    assert directory.ready
    serving = [m for m in directory.members if m.role is not Role.SCHEDULER or m.phase == "ready"]
    return {f"{m.role.name}-{m.index}": (m.pid, m.epoch) for m in serving}


@contextmanager
def nobody_notices(server: Any, quiet: str) -> Iterator[None]:
    """A stream runs beside the block and comes out as ever; the same processes serve after it, hardly larger."""
    before, resyncs = lives(server), counter(server.member("scheduler-0"), "resyncs")
    rss = {pid: psutil.Process(pid).memory_info().rss for pid, _ in before.values()}
    begun = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        heard = pool.submit(stream, server, begun)
        begun.wait(DEADLINE_S)
        yield
        assert heard.result() == quiet
    assert lives(server) == before
    assert counter(server.member("scheduler-0"), "resyncs") == resyncs
    grown = {pid: psutil.Process(pid).memory_info().rss - rss[pid] for pid in rss}
    assert max(grown.values()) < GROWTH_BYTES, grown


def test_nothing_is_unpickled(server: Any, quiet: str, tmp_path: Path) -> None:
    """Text of the pickle protocol 0 that would create a file, in every place where bytes can stand."""
    trap = tmp_path / "unpickled"
    payload = f"cos\nsystem\n(S'touch {trap}'\ntR.".encode()
    good = encode(Header(PROTOCOL_VERSION, TAG_OF[Activate], 1 << 40, 1, 0), Activate())
    head = unsealed(good[0])
    bad = [[payload], [payload, payload], [good[0], payload], [seal(head, payload), payload]]
    wrapped = msgpack.packb([b"client", payload, "", 0, payload])
    bad.append([seal(head, wrapped), wrapped])
    before = counted(server, "malformed")
    with nobody_notices(server, quiet):
        for name in TARGETS:
            with Stranger(server, name, "pickler") as stranger:
                for frames in bad:
                    stranger.send(frames)
                stranger.say(Handoff(payload))  # bytes where bytes may stand
        expect(server, "malformed", before, dict.fromkeys(TARGETS, len(bad)))
    assert not trap.exists()


def mutants(chance: Random, count: int) -> Iterator[list[bytes]]:
    """Hostile frames, random ones, and messages that were damaged, half of them with a checksum that fits again."""
    yield from (frames for frames in HOSTILE.values() if frames)
    for _ in range(count - len(HOSTILE)):
        body = chance.choice(WORDS)
        epoch = chance.choice([0, 1, 1 << 16, 2**62])
        head, tail = encode(Header(PROTOCOL_VERSION, TAG_OF[type(body)], epoch, 667, 0), body)
        match chance.randrange(5):
            case 0:
                yield [chance.randbytes(chance.randrange(99)) for _ in range(chance.randint(1, 5))]
            case 1:
                yield [head, tail[: chance.randrange(len(tail) + 1)]]
            case 2:
                yield chance.choice([[tail, head], [head], [head, tail, tail], [head, head]])
            case _:
                plain = bytearray(unsealed(head))
                damaged = chance.choice([plain, bytearray(tail)])
                which = plain if damaged is plain else damaged
                which[chance.randrange(len(which))] = chance.randrange(256)
                other = tail if damaged is plain else bytes(damaged)
                yield [seal(bytes(plain), other), other]


def understood(frames: list[bytes]) -> Body | None:
    try:
        return decode(frames)[1]
    except Malformed:
        return None


def test_random_and_damaged_frames(server: Any, quiet: str) -> None:
    chance, before = Random(2), counted(server, "malformed")
    bad = dict.fromkeys(TARGETS, 0)
    with nobody_notices(server, quiet):
        for name in TARGETS:
            with Stranger(server, name, "fuzzer") as stranger:
                for frames in mutants(chance, FRAMES):
                    body = understood(frames)
                    if not isinstance(body, ALLOWED):
                        stranger.send(frames)
                        bad[name] += body is None
        expect(server, "malformed", before, bad)
    assert min(bad.values()) > FRAMES / 2


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x04\x19\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"
READY = READY[:1] + bytes([len(READY) - 2]) + READY[2:]


def connect(path: Path, words: bytes = b"") -> socket.socket:
    """A connection, and what is said on it first."""
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(DEADLINE_S)
    until_s = time.monotonic() + DEADLINE_S
    while True:
        try:
            connection.connect(str(path))
            break
        except BlockingIOError:  # too many wait to be accepted
            assert time.monotonic() < until_s
            time.sleep(0.01)
    connection.sendall(words)
    return connection


def shake_hands(path: Path) -> socket.socket:
    """A connection as ZeroMQ would make it (ZMTP 3.0), by hand."""
    connection = connect(path, GREETING)
    heard = b""
    while len(heard) < len(GREETING):
        heard += connection.recv(len(GREETING) - len(heard))
    connection.sendall(READY)  # not before: libzmq hangs up on who does not wait for its greeting
    return connection


def is_closed(connection: socket.socket) -> bool:
    """Whether the other side hangs up; what it says before does not count."""
    try:
        while connection.recv(4096):
            pass
    except ConnectionError:
        pass
    except TimeoutError:
        return False
    return True


def frame_of(size: int) -> bytes:
    """The beginning of a long frame."""
    return b"\x02" + size.to_bytes(8, "big")


def test_connections_that_announce_too_much_or_nothing(server: Any, quiet: str) -> None:
    """Frames beyond the limit again and again, connections that are never used, and bytes that are not ZeroMQ's."""
    with nobody_notices(server, quiet):
        for name in TARGETS:
            before, path = counted(server, "malformed"), path_of(server, name)
            with shake_hands(path) as heard:
                heard.sendall(b"\x00\x03bad")
                expect(server, "malformed", before, {one: int(one == name) for one in TARGETS})
            idle = [connect(path, GREETING[:n]) for n in (0, 1, 11, 64) for _ in range(10)]
            for size in (MAX_FRAME_BYTES + 1, 2**40, 2**63 - 1, 2**64 - 1):
                for _ in range(10):
                    with shake_hands(path) as giant:
                        giant.sendall(frame_of(size) + b"x" * 1000)
                        assert is_closed(giant), f"{name} waits for {size} bytes"
            for noise in (b"GET / HTTP/1.1\r\n\r\n" * 9, b"\xff" * 200, bytes(200)):
                connect(path, noise).close()
            for one in idle:
                one.close()


def test_orders_of_strangers(server: Any, quiet: str) -> None:
    """Every message there is, under names of others, of the past, the present and a far future; then all again."""
    scheduler, manager = server.member("scheduler-0"), server.member("kvmanager-0")
    names = [
        "stranger",
        f"scheduler:{scheduler.incarnation}:1",
        f"kvmanager-0:{manager.incarnation}:1",
    ]
    epochs = [0, epoch_of(scheduler.epoch), 1 << 60]
    hello = Hello(Role.WORKER, 0, server.member("worker-0").pid, "ipc:///nowhere", "ready")
    kinds = ("duplicate", "stranger", "stale")
    before = {kind: counted(server, kind) for kind in kinds}
    said = len(names) * len(epochs) * (len(WORDS) + 1)
    with nobody_notices(server, quiet):
        for name in TARGETS:
            for identity in names:
                with Stranger(server, name, identity) as stranger:
                    words = [stranger.say(word, at) for at in epochs for word in [*WORDS, hello]]
                    for frames in words:
                        stranger.send(frames)
        expect(server, "duplicate", before["duplicate"], dict.fromkeys(TARGETS, said))
    for kind, who in (("stranger", TARGETS[1:]), ("stale", TARGETS[1:])):
        after = counted(server, kind)
        assert all(after[name] > before[kind][name] for name in who), (kind, after, before[kind])
    directory = server.directory()
    assert directory.config["policy"] != "made up" and not directory.draining


def test_an_impostor_with_the_name_of_the_scheduler(server: Any, quiet: str) -> None:
    """ZeroMQ does not let a second peer of the same name speak. What it says cannot even make a gap."""
    scheduler = server.member("scheduler-0")
    resyncs = int(counter(scheduler, "resyncs"))
    epoch = epoch_of(scheduler.epoch, resyncs)
    identity = f"scheduler:{scheduler.incarnation}:{epoch}"
    before = counted(server, "malformed")
    with nobody_notices(server, quiet):
        for name in TARGETS[1:]:
            with Stranger(server, name, identity, scheduler.incarnation) as impostor:
                for word in WORDS:
                    impostor.say(word, epoch)
                    impostor.send([b"\xc1", b"\xc1"])
    time.sleep(1.0)  # two heartbeats
    assert counted(server, "malformed") == before


@pytest.mark.parametrize(
    "policy, params",
    [
        (None, {}),
        ("a\0b", {}),
        ("x" * 201, {}),
        ("vllm", {"x": "y" * 501}),
        ("vllm", {"x": [1]}),
        ("vllm", {"x": msgpack.ExtType(5, b"z")}),
        ("vllm", {str(i): i for i in range(33)}),
        ("vllm", {1: 2}),
    ],
)
def test_swaps_that_no_command_line_could_carry(server: Any, policy: str, params: Any) -> None:
    """They would end the supervisor when it starts the process."""
    before = counted(server, "malformed")
    body = msgpack.packb([policy, params, True, 0])
    head = unsealed(encode(Header(PROTOCOL_VERSION, TAG_OF[Swap], 0, 1, 0), Query())[0])
    with Stranger(server, "supervisor-0", "swapper") as stranger:
        stranger.send([seal(head, body), body])
    expect(server, "malformed", before, {name: int("super" in name) for name in TARGETS})
    assert not server.directory().config.get("swap")


def test_sockets_are_private(server: Any) -> None:
    run_dir = Path(server.run_dir)
    for path in (run_dir.parent, run_dir, *run_dir.glob("*.sock")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700, path
    assert len(list(run_dir.glob("*.sock"))) == len(TARGETS)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_is_not_let_in(server: Any) -> None:
    folder = Path(server.folder)
    for opened in ([folder], [folder, folder / "accelgen"]):  # each lock holds by itself
        for path in opened:
            path.chmod(0o755)
        try:
            for name in TARGETS:
                with pytest.raises(PermissionError), as_nobody():
                    connect(path_of(server, name))
        finally:
            for path in opened:
                path.chmod(0o700)
    for name in TARGETS:
        connect(path_of(server, name)).close()


@contextmanager
def as_nobody() -> Iterator[None]:
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_socket_in_use_is_not_taken_over(server: Any, quiet: str) -> None:
    with nobody_notices(server, quiet):
        for name in TARGETS:
            with pytest.raises(EndpointError, match="another process has bound"):
                Router(f"ipc://{path_of(server, name)}", 5)
        second = server.call("up", "--port", "0")
        assert second.returncode == 1 and "in use by the server with pid" in second.stderr, second
