"""Processes killed under load: what the clients see of it. Sampled with seeds: a replay must give the same text."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

STREAMS, TOKENS = 6, 200


@pytest.fixture(scope="module")
def server(launch_server: Callable[..., Any]) -> Iterator[Any]:
    """One of our own: its processes die."""
    started = launch_server("--frontends", "2")
    yield started
    started.down()


async def stream(http: httpx.AsyncClient, server: Any, i: int, heard: list[int]) -> str:
    """One completion; `heard[i]` counts its chunks as they come."""
    body = {
        "model": server.model, "prompt": [5 + (i * 7 + j) % 4000 for j in range(40)],
        "max_tokens": TOKENS, "temperature": 0.9, "seed": i, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    text, usage, done = "", None, False
    url = f"{server.url}/v1/completions"
    async with http.stream("POST", url, json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            done |= line == "data: [DONE]"
            if line.startswith("data: {"):
                chunk = httpx.Response(200, content=line[6:]).json()
                assert "error" not in chunk, chunk
                text += "".join(choice["text"] for choice in chunk["choices"])
                usage, heard[i] = chunk["usage"] or usage, heard[i] + 1
    assert done and usage["completion_tokens"] == TOKENS
    return text


async def streams(server: Any, kills: list[str]) -> list[Any]:
    """All streams at once, while the named process is killed again and again under them."""
    heard = [0] * STREAMS
    async with httpx.AsyncClient(timeout=60) as http:
        tasks = [asyncio.create_task(stream(http, server, i, heard)) for i in range(STREAMS)]
        for name in kills:
            enough = sum(heard) + 3 * STREAMS
            while sum(heard) < enough and not all(task.done() for task in tasks):
                await asyncio.sleep(0.01)
            await asyncio.to_thread(kill, server, name)
        return await asyncio.gather(*tasks, return_exceptions=True)


def member(server: Any, name: str) -> Any:
    return next(m for m in server.directory().members if f"{m.role.name.lower()}-{m.index}" == name)


def kill(server: Any, name: str) -> None:
    """SIGKILL, then waits until another process is in its place."""
    pid = member(server, name).pid
    os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + 20
    while member(server, name).pid == pid or not server.directory().ready:
        assert time.monotonic() < until_s, f"{name} does not come back"
        time.sleep(0.02)


def test_scheduler_killed_under_streams(server: Any) -> None:
    """No request fails, and every text is what it would have been."""
    quiet = asyncio.run(streams(server, []))
    assert all(isinstance(text, str) for text in quiet), quiet
    epoch = member(server, "scheduler-0").epoch
    assert asyncio.run(streams(server, ["scheduler-0"] * 2)) == quiet
    assert member(server, "scheduler-0").epoch == epoch + 2
    assert len(set(quiet)) == STREAMS


def test_frontend_killed_under_streams(server: Any) -> None:
    """Only its own connections end; the other frontend's go on, and nothing stays held."""
    quiet = asyncio.run(streams(server, []))
    assert all(isinstance(text, str) for text in quiet), quiet
    results = asyncio.run(streams(server, ["frontend-1"]))
    for text, undisturbed in zip(results, quiet, strict=True):
        assert text == undisturbed or isinstance(text, httpx.RemoteProtocolError)
    until_s = time.monotonic() + 15
    while (used := gauge(server, "kv_blocks_used") + gauge(server, "num_requests_running")) > 0:
        assert time.monotonic() < until_s, f"{used} still held"
        time.sleep(0.1)
    assert asyncio.run(streams(server, [])) == quiet


def gauge(server: Any, name: str) -> float:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(f"accelgen:{name}"))
