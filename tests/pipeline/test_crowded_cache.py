"""A burst of streams on a real server whose KV cache is far too small for them: KV is swapped out and in, requests live
in blocks of others, and every answer is what a large cache gives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import httpx
import pytest

BURST = 16
TINY = ["--kv-blocks", "44", "--max-model-len", "640", "--preemption", "swap", "--swap-gb", "0.05"]
HOST_BLOCKS = 508  # 0.05 GB of 98,304 bytes each
WORDS = [
    "server",
    "request",
    "token",
    "cache",
    "block",
    "batch",
    "plan",
    "slow",
    "fast",
    "memory",
    "queue",
]


def bodies() -> list[dict[str, Any]]:
    """Prompts of all lengths, a few of them with the same beginning; short answers and long ones."""
    draw = Random(4)
    shared = " ".join(draw.choices(WORDS, k=40))
    found = []
    for at in range(BURST):
        prompt = " ".join(draw.choices(WORDS, k=draw.randint(3, 60)))
        tokens = draw.choice([12, 16, 100, 140])
        found.append(
            {
                "prompt": f"{shared} {prompt}" if at % 4 == 0 else prompt,
                "max_tokens": tokens,
                "temperature": 0.0,
                "ignore_eos": True,
                "stream": True,
            }
        )
    return found


def answer(server: Any, body: dict[str, Any]) -> tuple[int, str]:
    """Status and all that was streamed, without ids and times."""
    text = ""
    url = f"{server.url}/v1/completions"
    with httpx.stream("POST", url, json={"model": server.model, **body}, timeout=240) as reply:
        for line in reply.iter_lines():
            if line.startswith("data: {"):
                chunk = json.loads(line.removeprefix("data: "))
                assert "error" not in chunk, chunk
                text += "".join(choice["text"] for choice in chunk["choices"])
        return reply.status_code, text


def burst(server: Any) -> list[tuple[int, str]]:
    """All at once."""
    with ThreadPoolExecutor(BURST) as pool:
        return list(pool.map(lambda body: answer(server, body), bodies()))


@pytest.fixture(scope="module")
def expected(server: Any) -> list[tuple[int, str]]:
    """With room for all of them."""
    before = server.gauge("num_preemptions_total")
    found = burst(server)
    assert all(status == 200 and text for status, text in found)
    assert server.gauge("num_preemptions_total") == before
    return found


@pytest.fixture(scope="module")
def crowded(launch_server: Callable[..., Any]) -> Iterator[Any]:
    """At first with the memory policy that `cacheopt` brings along."""
    server = launch_server(*TINY, "--policy", "cacheopt")
    assert "memory cacheopt" in server.call("status").stdout.splitlines()[0]
    yield server
    server.down()


def settled(server: Any) -> dict[str, float]:
    """Metrics once nothing is held any more."""
    until_s = time.monotonic() + 20
    while time.monotonic() < until_s:
        if server.gauge("kv_requests") == server.gauge("kv_blocks_used") == 0:
            break
        time.sleep(0.2)
    names = (
        "kv_requests", "kv_blocks_used", "kv_host_blocks", "kv_host_blocks_used", "kv_guests",
        "kv_guests_total", "kv_blocks_lent_total", "kv_swapped_out_total", "kv_swapped_in_total",
        "kv_unswapped_total", "kv_blocks_never_used_total", "kv_blocks_unused",
        "num_preemptions_total", "num_swapped_out_total", "num_swapped_in_total",
    )  # fmt: skip
    return {name: server.gauge(name) for name in names}


def test_swapped_and_back(crowded: Any, expected: list[tuple[int, str]]) -> None:
    """Memory on demand, so that many have to give way."""
    take_office(crowded, "--memory", "on-demand")
    assert burst(crowded) == expected
    found = settled(crowded)
    assert found["kv_host_blocks"] == HOST_BLOCKS
    # Who goes out with its last token in flight does not come back (tests/scheduler/test_swapped_last.py).
    assert found["num_swapped_out_total"] >= found["num_swapped_in_total"] > 0
    assert found["kv_swapped_out_total"] >= found["kv_swapped_in_total"] > 0
    assert found["kv_requests"] == found["kv_blocks_used"] == found["kv_host_blocks_used"] == 0
    told = crowded.call("status").stdout
    assert "memory on-demand" in told.splitlines()[0]
    assert f"swap space of replica 0: 0 of {HOST_BLOCKS} blocks in use" in told


def test_blocks_given_ahead_lent_and_taken(crowded: Any, expected: list[tuple[int, str]]) -> None:
    """CacheOPT's own memory policy, then the same without padding, so that somebody is preempted, too: swapped live,
    in the middle of a burst."""
    take_office(crowded, "--memory", "cacheopt")
    assert burst(crowded) == expected
    found = settled(crowded)
    assert found["kv_guests_total"] > 0 and found["kv_blocks_lent_total"] > 0
    assert found["kv_guests"] == found["kv_requests"] == found["kv_blocks_unused"] == 0
    assert "memory cacheopt" in crowded.call("status").stdout.splitlines()[0]
    with ThreadPoolExecutor(1) as pool:
        second = pool.submit(burst, crowded)
        params = ["--memory-param", "pad=false", "--memory-param", "crossover=false"]
        take_office(crowded, "--memory", "cacheopt", *params)
        assert second.result() == expected
    listed = crowded.call("policies").stdout
    assert "crossover=False pad=False" in listed or "pad=False crossover=False" in listed
    found = settled(crowded)
    assert found["kv_host_blocks_used"] == found["kv_blocks_used"] == 0


def take_office(server: Any, *options: str) -> None:
    """A successor of the same policy."""
    done = server.call("swap", "cacheopt", *options)
    assert done.returncode == 0, done.stderr
