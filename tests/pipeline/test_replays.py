"""A worker that is killed again and again under a request: after the limit it ends with one error, the others go on."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from accelgen.proto.messages import Role

LONG, SHORT = 3000, 150  # tokens


@pytest.fixture(scope="module")
def server(launch_server: Callable[..., Any]) -> Iterator[Any]:
    started = launch_server("--max-replays", "1")
    yield started
    started.down()


class Stream:
    """A seeded completion whose chunks are kept as they come."""

    def __init__(self, http: httpx.AsyncClient, server: Any, seed: int, tokens: int) -> None:
        self.chunks: list[dict[str, Any]] = []
        body = {
            "model": server.model, "prompt": [5 + (seed * 7 + j) % 4000 for j in range(40)], "stream": True,
            "max_tokens": tokens, "temperature": 0.9, "seed": seed, "ignore_eos": True,
        }  # fmt: skip
        self.task = asyncio.create_task(self._read(http, f"{server.url}/v1/completions", body))

    async def more(self) -> None:
        """Waits for some more of it."""
        enough = len(self.chunks) + 5
        async with asyncio.timeout(60):
            while len(self.chunks) < enough:
                assert not self.task.done(), self.chunks[-1:]
                await asyncio.sleep(0.01)

    @property
    def text(self) -> str:
        return "".join(chunk["choices"][0]["text"] for chunk in self.chunks)

    async def _read(self, http: httpx.AsyncClient, url: str, body: dict[str, Any]) -> bool:
        """Whether it came to its end."""
        async with http.stream("POST", url, json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    return True
                if line:
                    self.chunks.append(json.loads(line.removeprefix("data: ")))
        return False


def worker_pid(server: Any) -> int:
    return next(m.pid for m in server.directory().members if m.role is Role.WORKER)


def kill_worker(server: Any) -> None:
    """SIGKILL, then waits until another worker is in its place: what comes now is not given to the dead one."""
    pid = worker_pid(server)
    os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + 60
    while worker_pid(server) == pid:
        assert time.monotonic() < until_s, "the worker does not come back"
        time.sleep(0.02)


async def with_two_deaths(server: Any) -> tuple[Stream, Stream]:
    """A stream that sees both, and one that sees only the second."""
    async with httpx.AsyncClient(timeout=60) as http:
        first = Stream(http, server, 1, LONG)
        await first.more()
        await asyncio.to_thread(kill_worker, server)
        await first.more()
        second = Stream(http, server, 2, SHORT)
        await second.more()
        await asyncio.to_thread(kill_worker, server)
        assert not await first.task
        assert await second.task
    return first, second


async def undisturbed(server: Any) -> str:
    async with httpx.AsyncClient(timeout=60) as http:
        stream = Stream(http, server, 2, SHORT)
        assert await stream.task
    return stream.text


def test_after_the_limit_a_request_ends_and_the_others_go_on(server: Any) -> None:
    first, second = asyncio.run(with_two_deaths(server))
    *chunks, last = first.chunks
    assert last["error"]["message"].startswith("2 workers have died while this request ran")
    assert not any("error" in chunk for chunk in chunks) and len(chunks) < LONG
    assert second.text == asyncio.run(undisturbed(server))
    assert server.gauge("requests_given_up_total") == 1
    assert server.gauge("request_replays_total") == 2  # each of them once
