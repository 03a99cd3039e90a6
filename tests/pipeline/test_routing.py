"""Two replicas of real processes under each routing: where a burst goes, swaps of the routing, a worker killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
ADMIN_KEY = "the-key-of-the-admin"
BURST, TOKENS = 12, 12
ROUTINGS = ["round-robin", "least-load", "prefix-affinity", "planned"]


@pytest.fixture(scope="module")
def pair(
    launch_server: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    keys = tmp_path_factory.mktemp("keys") / "admin-keys"
    keys.write_text(ADMIN_KEY)
    keys.chmod(0o600)
    started = launch_server(
        "--replicas", "2", "--kv-blocks", "1024", "--routing", "round-robin",
        "--admin-key-file", str(keys),
    )  # fmt: skip
    yield started
    started.down()


def prompt_of(name: int, tokens: int = 40) -> list[int]:
    return [5 + (name * 131 + j * 7) % 4000 for j in range(tokens)]


async def complete(
    http: httpx.AsyncClient, server: Any, prompt: list[int], tokens: int = TOKENS
) -> tuple[str, int]:
    """The text, and how many tokens of the prompt were in the cache."""
    body = {
        "model": server.model, "prompt": prompt, "max_tokens": tokens, "temperature": 0.9,
        "seed": sum(prompt), "ignore_eos": True,
    }  # fmt: skip
    reply = await http.post(f"{server.url}/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert answer["usage"]["completion_tokens"] == tokens
    return answer["choices"][0]["text"], answer["accelgen"]["cached_tokens"]


async def burst(server: Any, prompts: list[list[int]], tokens: int = TOKENS) -> list[str]:
    """The texts of requests that are sent together."""
    async with httpx.AsyncClient(timeout=90) as http:
        done = await asyncio.gather(*(complete(http, server, p, tokens) for p in prompts))
        return [text for text, _ in done]


def routed(server: Any) -> dict[int, int]:
    """By replica, how many requests the scheduler in office has given it."""
    text = httpx.get(f"{server.url}/metrics").text
    found = re.findall(r'^accelgen:requests_routed_total\{replica="(\d+)"\} (\S+)', text, re.M)
    return {int(index): int(float(value)) for index, value in found}


def routed_after(server: Any, before: dict[int, int], requests: int) -> dict[int, int]:
    """Where so many requests have gone since: what heartbeat and Directory say within a moment. Nothing if a scheduler
    has taken over meanwhile, which counts from the beginning."""
    until_s = time.monotonic() + 20
    while True:
        now = routed(server)
        if any(now.get(index, 0) < value for index, value in before.items()):
            return {}
        gone = {index: value - before.get(index, 0) for index, value in now.items()}
        if sum(gone.values()) >= requests:
            assert sum(gone.values()) == requests, (before, now)
            return gone
        assert time.monotonic() < until_s, (before, now)
        time.sleep(0.1)


def have_grown(server: Any, before: dict[int, int], least: int) -> bool:
    """Whether both replicas have got `least` requests since, as heartbeats say within a moment."""
    until_s = time.monotonic() + 3
    while time.monotonic() < until_s:
        now = routed(server)
        if all(now.get(index, 0) >= before.get(index, 0) + least for index in (0, 1)):
            return True
        time.sleep(0.1)
    return False


def choose(server: Any, routing: str, *arguments: str) -> None:
    """`accelgen swap --routing`; returns when the metrics are those of the scheduler that has taken over."""
    done = subprocess.run(
        [*CLI, "swap", *arguments, "--routing", routing, "--run-dir", str(server.run_dir)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert server.directory().config["routing"] == routing
    name, until_s = routing.partition(":")[0], time.monotonic() + 20
    shown = f'accelgen:scheduler_routing_info{{routing="{name}"}} 1'
    while shown not in httpx.get(f"{server.url}/metrics").text or sum(routed(server).values()):
        assert time.monotonic() < until_s, f"{name} is not in office"
        time.sleep(0.1)


def test_the_one_that_was_named_at_the_start(pair: Any) -> None:
    assert pair.directory().config["routing"] == "round-robin"
    before = routed(pair)
    asyncio.run(burst(pair, [prompt_of(i) for i in range(BURST)]))
    assert routed_after(pair, before, BURST) == {0: BURST // 2, 1: BURST // 2}
    listed = pair.call("policies").stdout
    assert re.search(r"^\* round-robin ", listed, re.M)


@pytest.mark.parametrize("policy", ["accelgen", "slos-serve"])
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_burst_under_each_routing(pair: Any, routing: str, policy: str) -> None:
    """Prompts that have nothing in common, all at once: half goes to either replica, or nearly so."""
    choose(pair, routing, policy)
    offset = 100 * (1 + ROUTINGS.index(routing)) + 50 * (policy == "accelgen")
    asyncio.run(burst(pair, [prompt_of(offset + i) for i in range(BURST)]))
    gone = routed_after(pair, {}, BURST)
    if routing == "round-robin":
        assert gone == {0: BURST // 2, 1: BURST // 2}
    else:  # who is faster gets more
        assert min(gone.values()) >= BURST // 4, gone


def test_affinity_brings_conversations_home(pair: Any) -> None:
    """Two conversations, call after call: each stays where its history is, of which nothing is computed again."""
    choose(pair, "prefix-affinity", "vllm")

    async def talk() -> list[int]:
        cached = []
        histories = [prompt_of(900, 64), prompt_of(901, 64)]
        async with httpx.AsyncClient(timeout=60) as http:
            for call in range(4):
                for history in histories:
                    _, hit = await complete(http, pair, history)
                    if call:
                        cached.append(hit / (len(history) - 16))
                    history.extend(prompt_of(950 + call, 16))
        return cached

    shares = asyncio.run(talk())
    assert min(shares) > 0.9, shares
    assert routed_after(pair, {}, 8) == {0: 4, 1: 4}


def test_the_routing_is_swapped_under_load(pair: Any) -> None:
    """No request notices: not over the command line, and not over HTTP."""
    prompts = [prompt_of(700 + i) for i in range(6)]
    quiet = asyncio.run(burst(pair, prompts, 150))
    url, headers = f"{pair.url}/admin/v1/policy", {"authorization": f"Bearer {ADMIN_KEY}"}

    async def disturbed() -> tuple[list[str], httpx.Response]:
        texts = asyncio.create_task(burst(pair, prompts, 150))
        await asyncio.sleep(0.3)
        await asyncio.to_thread(choose_only, pair, "least-load")
        async with httpx.AsyncClient(headers=headers, timeout=60) as admin:
            reply = await admin.post(url, json={"routing": "prefix-affinity:share=0.5"})
        return await texts, reply

    texts, reply = asyncio.run(disturbed())
    assert texts == quiet
    assert reply.status_code == 200 and reply.json()["routing"] == "prefix-affinity:share=0.5"
    found = httpx.get(url, headers=headers).json()
    assert found["routing"] == "prefix-affinity:share=0.5" and found["policy"] == "vllm"
    assert found["installed_routings"] == sorted(ROUTINGS)
    refused = httpx.post(url, headers=headers, json={"routing": "prefix-afinity"})
    assert refused.status_code == 400 and "did you mean prefix-affinity" in refused.text


def choose_only(server: Any, routing: str) -> None:
    """Without a policy: that one stays."""
    before = server.directory().config["policy"]
    done = subprocess.run(
        [*CLI, "swap", "--routing", routing, "--run-dir", str(server.run_dir)],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done
    assert server.directory().config["policy"] == before


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--routing", "roundrobin"], "there is no routing 'roundrobin'; did you mean round-robin?"),
        (["--routing", "prefix-affinity:ratio=0"], "ratio: 0, must be at least 1"),
        ([], "which policy?"),
        (["--routing", "planned", "--param", "x=1"], "of which policy?"),
    ],
)  # fmt: skip
def test_what_cannot_be_swapped(pair: Any, arguments: list[str], says: str) -> None:
    before = pair.directory().config
    done = pair.call("swap", *arguments)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1, done
    assert pair.directory().config["routing"] == before["routing"]


@pytest.mark.parametrize(
    "routing", ["round-robin", pytest.param("prefix-affinity", marks=pytest.mark.slow)]
)
def test_a_worker_killed_under_each_routing(pair: Any, routing: str) -> None:
    """All requests end with the same text; those that come meanwhile go to the other replica, and when the worker is
    back, it gets its part again."""
    choose(pair, routing, "vllm")
    prompts = [prompt_of(500 + i) for i in range(6)]
    quiet = asyncio.run(burst(pair, prompts, 60))

    async def disturbed() -> list[str]:
        texts = asyncio.create_task(burst(pair, prompts, 60))
        await asyncio.sleep(0.1)
        os.kill(pair.member("worker-0").pid, signal.SIGKILL)
        return await texts

    assert asyncio.run(disturbed()) == quiet
    if pair.member("worker-0").phase != "ready":  # it takes a while to load
        asyncio.run(burst(pair, [prompt_of(600 + i) for i in range(2)]))
    until_s = time.monotonic() + 90
    while not pair.directory().ready or set(routed(pair)) != {0, 1}:
        assert time.monotonic() < until_s, "worker-0 does not come back"
        time.sleep(0.1)
    until_s = time.monotonic() + 90
    for attempt in count():  # a scheduler that takes over for the worker that is back counts anew
        first, before = 650 + BURST * attempt, routed(pair)
        asyncio.run(burst(pair, [prompt_of(first + i) for i in range(BURST)]))
        if have_grown(pair, before, BURST // 4):
            break
        assert time.monotonic() < until_s, before


def test_while_one_is_down_all_goes_to_the_other(pair: Any) -> None:
    os.kill(pair.member("worker-1").pid, signal.SIGKILL)
    until_s = time.monotonic() + 20
    while set(routed(pair)) != {0}:
        assert time.monotonic() < until_s, routed(pair)
        time.sleep(0.02)
    asyncio.run(burst(pair, [prompt_of(800 + i) for i in range(4)]))
    assert routed_after(pair, {}, 4) == {0: 4}
    until_s = time.monotonic() + 90
    while set(routed(pair)) != {0, 1}:
        assert time.monotonic() < until_s, "worker-1 does not come back"
        time.sleep(0.1)


def test_more_replicas_than_memory_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [*CLI, "up", "--port", "0", "--device", "cpu", "--replicas", "64", "--kv-blocks", "1000000"],
        capture_output=True, text=True, timeout=60, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert re.search(
        r"not enough memory: [\d,]+ MiB needed \(384 MiB for processes \+ \d+ MiB for weights \(auto\)"
        r" \+ [\d,]+ MiB for 1000000 KV blocks of 16 tokens in each of 64 replicas\), [\d,]+ MiB available",
        line,
    ), line
