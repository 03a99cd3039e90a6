"""The HTTP server by itself: slow heads, errors of the application, bodies held."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from accelgen.frontend import http_server
from accelgen.frontend.body import BodyBudget
from accelgen.frontend.edge import Edge
from accelgen.frontend.errors import ApiError
from accelgen.frontend.keys import Gate
from accelgen.frontend.metrics import Metrics

GET = b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"


async def app_that_fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("CANARY")


async def app_that_fails_late(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"half", "more_body": True})
    raise RuntimeError("CANARY")


async def app_that_answers(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"whole", "more_body": False})


def served(app: Any, talk: Callable[[int], Awaitable[bytes]]) -> bytes:
    """Runs the server for one conversation."""

    async def run() -> bytes:
        listener = socket.create_server(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        server = http_server.make_server(Edge(app, Gate((), ()), Metrics()))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            return await asyncio.wait_for(talk(port), 10)
        finally:
            server.should_exit = True
            await serving

    return asyncio.run(run())


def says(*pieces: bytes, pause_s: float = 0.0) -> Callable[[int], Awaitable[bytes]]:
    async def talk(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause_s)
        received = await reader.read(-1)
        writer.close()
        return received

    return talk


def test_failure_before_the_answer(capfd: Any) -> None:
    reply = served(app_that_fails, says(GET))
    assert reply.startswith(b"HTTP/1.1 500 ") and b'"code":"internal_error"' in reply
    assert b"x-request-id: req-" in reply and b"CANARY" not in reply
    captured = capfd.readouterr()
    assert "RuntimeError" in captured.out + captured.err
    assert "CANARY" not in captured.out + captured.err


def test_failure_in_the_middle_is_not_taken_for_the_end() -> None:
    reply = served(app_that_fails_late, says(GET))
    assert b"half" in reply and not reply.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("pieces", [(), (b"GET / HTTP/1.1\r\n",), (b"GET / HTTP/1.1\r\na: b\r\n",)])
def test_head_that_does_not_end(pieces: tuple[bytes, ...], monkeypatch: Any) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.1)
    assert served(app_that_answers, says(*pieces)) == b""


def test_second_request_of_a_connection_is_bounded_too(monkeypatch: Any) -> None:
    monkeypatch.setattr(http_server, "HEAD_TIMEOUT_S", 0.1)
    first = GET.replace(b"connection: close\r\n", b"")
    reply = served(app_that_answers, says(first, b"GET / HTTP/1.1\r\n", pause_s=0.05))
    assert reply.count(b"200 OK") == 1


def test_other_protocols_are_not_spoken_and_not_logged(caplog: Any) -> None:
    upgrade = GET.replace(b"connection: close", b"connection: upgrade, close\r\nupgrade: websocket")
    assert b"whole" in served(app_that_answers, says(upgrade))
    assert caplog.records == []


def test_slow_but_steady_head_is_fine() -> None:
    reply = served(app_that_answers, says(GET[:10], GET[10:], pause_s=0.02))
    assert b"whole" in reply


def test_bodies_held_are_bounded() -> None:
    budget = BodyBudget(100)
    budget.take(60)
    with pytest.raises(ApiError) as refused:
        budget.take(41)
    assert refused.value.status == 429
    budget.take(40)
    budget.give(100)
    assert budget.held_bytes == 0
