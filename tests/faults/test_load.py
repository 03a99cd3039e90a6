"""The client and the load against servers of a few lines: every ending is written down as what it was."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from accelgen.faults.client import Manner, send
from accelgen.faults.history import History, Kind, Request
from accelgen.faults.load import Load, pool_of

REQUEST = Request(key=0, prompt=(5, 6), max_tokens=2, seed=1)
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
END = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, count: int, reason: str | None = None, **more: object) -> bytes:
    choices = [{"text": text, "finish_reason": reason}]
    body = {"choices": choices, "usage": {"completion_tokens": count}, **more}
    return chunk(b"data: " + json.dumps(body).encode() + b"\n\n")


USAGE = chunk(
    b'data: {"choices": [], "usage": {"completion_tokens": 2}, "accelgen": {"slo_met": {"ttft": true}}}\n\n'
)
DONE = chunk(b"data: [DONE]\n\n")
GOOD = HEAD + event("a", 1) + event("b", 2) + event("", 2, "length") + USAGE + DONE + END
REFUSAL = b'{"error": {"message": "later", "code": "saturated"}}'
REFUSED = (
    b"HTTP/1.1 429 Too Many\r\nRetry-After: 1\r\nContent-Length: %d\r\n\r\n" % len(REFUSAL)
) + REFUSAL


@contextmanager
def serving(*pieces: bytes, hold: bool = False) -> Iterator[str]:
    """Answers every connection with these pieces, then closes it, or holds it."""
    ready, ports = threading.Event(), list[int]()
    loops: list[asyncio.AbstractEventLoop] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(65536)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)
        if hold:
            await asyncio.sleep(60)
        writer.close()

    async def serve() -> None:
        loops.append(asyncio.get_running_loop())
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await over.wait()
        server.close()

    over = asyncio.Event()
    # asyncio.run also ends the answers that are held
    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    assert ready.wait(5)
    yield f"http://127.0.0.1:{ports[0]}"
    loops[0].call_soon_threadsafe(over.set)
    thread.join()


def kinds(
    url: str, manner: Manner = Manner.GOOD, limit_s: float = 5.0
) -> tuple[list[str], History]:
    history = History(0, REQUEST)

    async def run() -> None:
        async with asyncio.timeout(limit_s):
            await send(url, history, manner)

    asyncio.run(run())
    return [str(one.kind) for one in history.events], history


def test_a_whole_stream() -> None:
    whole = ["submit", "admit", "tokens", "tokens", "finish", "usage", "done", "closed"]
    with serving(GOOD) as url:
        found, history = kinds(url)
    assert found == whole and history.complete and history.text == "ab" and history.kept
    assert history.port > 0
    with serving(*(GOOD[i : i + 7] for i in range(0, len(GOOD), 7))) as url:  # in small pieces
        assert kinds(url)[0] == whole


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        (HEAD + event("a", 1), "cut"),
        (HEAD + event("a", 1) + END, "closed"),  # silent: complete for HTTP, and yet not
        (b"", "cut"),
        (
            HEAD + event("a", 1) + chunk(b'data: {"error": {"code": "draining"}}\n\n') + END,
            "closed",
        ),
    ],
)
def test_other_endings(answer: bytes, last: str) -> None:
    with serving(answer) as url:
        found, history = kinds(url)
    assert found[-1] == last and not history.complete
    assert ("error" in found) == (b"draining" in answer)


def test_refusals() -> None:
    with serving(REFUSED) as url:
        found, history = kinds(url)
    assert found == ["submit", "refused", "closed"] and history.retry_after
    refusal = history.first(Kind.REFUSED)
    assert refusal is not None and (refusal.count, refusal.detail) == (429, "saturated")
    assert kinds("http://127.0.0.1:9")[0] == ["submit", "refused"]  # nobody listens


def test_manners() -> None:
    with serving(HEAD, *(event("a", n) for n in range(1, 9)), hold=True) as url:
        assert kinds(url, Manner.LEAVES_AT_ONCE)[0] == ["submit", "left"]
        midway, _ = kinds(url, Manner.LEAVES_MIDWAY)
        assert midway[-1] == "left" and 3 <= midway.count("tokens") < 8


def test_a_load_ends_and_says_what_was_stuck() -> None:
    with serving(HEAD, event("a", 1), hold=True) as url:
        load = Load(url, [REQUEST], seed=1, rate_per_s=1e-6)
        load.start()
        history = load.send(REQUEST)
        load.stop(0.3)
    assert [str(one.kind) for one in history.events][-1] == "stuck"
    assert load.open_requests() == []


def test_a_load_that_is_stopped_at_once_leaves_nothing_open() -> None:
    with serving(GOOD) as url:
        load = Load(url, [REQUEST], seed=1, rate_per_s=1e-6)
        histories = [load.send(REQUEST) for _ in range(5)]  # before its thread has begun
        load.start()
        load.stop(5.0)
    assert all(history.complete for history in histories)


def test_the_same_seed_asks_the_same() -> None:
    assert pool_of(3) == pool_of(3) != pool_of(4)
    assert sum(not one.streamed for one in pool_of(3)) == 3
    sent = []
    for _ in range(2):
        with serving(GOOD) as url:
            load = Load(url, pool_of(3), seed=5, rate_per_s=200.0)
            load.start()
            while len(load.histories) < 20:
                threading.Event().wait(0.005)
            load.stop(5.0)
        sent.append([history.request.key for history in load.histories[:20]])
    assert sent[0] == sent[1]
