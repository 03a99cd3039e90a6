"""The flight recorder of a real server: what became of a request, and whether its decisions can be replayed."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import msgpack
import pytest

from accelgen.proto.dumps import FOLDER
from accelgen.proto.messages import Role

TOKENS = 60
PROMPT = list(range(5, 205))


@pytest.fixture(scope="module")
def server(launch_server: Callable[..., Any]) -> Iterator[Any]:
    """One of our own: its scheduler dies."""
    started = launch_server("--kv-blocks", "1024")
    yield started
    started.down()


async def ask(http: httpx.AsyncClient, server: Any, name: str, **more: Any) -> str:
    """One completion under a name of ours; the id that the client sees."""
    body = {
        "model": server.model, "prompt": PROMPT, "max_tokens": TOKENS,
        "ignore_eos": True, **more,
    }  # fmt: skip
    url, headers = f"{server.url}/v1/completions", {"x-request-id": name}
    answer = await http.post(url, json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


async def load(server: Any, prefix: str) -> list[str]:
    async with httpx.AsyncClient(timeout=60) as http:
        calls = [ask(http, server, f"{prefix}-{i}", n=1 + i % 2) for i in range(4)]
        return list(await asyncio.gather(*calls))


def traced(server: Any, name: str) -> dict[str, Any]:
    done = server.call("trace", name, "--json")
    assert done.returncode == 0, done.stderr
    [one] = json.loads(done.stdout)
    return dict(one)


def steps(choice: dict[str, Any]) -> list[dict[str, Any]]:
    return [event for event in choice["history"] if event["what"] == "step"]


def delivered(choice: dict[str, Any]) -> int:
    return sum(step["tokens"] for step in steps(choice) if step["delivered_ms"] is not None)


def test_a_finished_request(server: Any) -> None:
    ids = asyncio.run(load(server, "first"))
    one = traced(server, ids[1])
    assert (one["request_id"], one["prompts"], one["n"]) == ("first-1", [200], 2)
    for choice in one["choices"]:
        assert delivered(choice) == TOKENS
        times = [event["at_ms"] for event in choice["history"]]
        assert times == sorted(times) and times[0] > 0
        assert choice["history"][-1]["reason"] == "length"
        assert all(
            step["planned_ms"] <= step["began_ms"] <= step["delivered_ms"] for step in steps(choice)
        )
    shown = server.call("trace", "first-1")
    assert shown.returncode == 0
    for what in (
        "received",
        "submitted",
        "looked up",
        "admitted",
        "first token",
        "forked",
        "ended",
    ):
        assert re.search(rf"^ +[\d,.]+  {what}", shown.stdout, re.MULTILINE), shown.stdout
    unknown = server.call("trace", "somebody-else")
    assert unknown.returncode == 1 and "no process remembers" in unknown.stderr


def test_nothing_that_was_written_is_in_a_dump(server: Any) -> None:
    async def secretly() -> None:
        async with httpx.AsyncClient(timeout=60) as http:
            secrets = {"cache_salt": "canary-salt", "slo_class": "chat"}
            await ask(http, server, "secret", stop=["canary-stop"], accelgen=secrets, user="canary")

    asyncio.run(secretly())
    traced(server, "secret")
    contents = [path.read_bytes() for path in (server.run_dir / FOLDER).iterdir()]
    assert len(contents) >= 5 and sum(b"secret" in content for content in contents) == 1
    some = b"".join(msgpack.packb(token) for token in PROMPT[150:156])
    for content in contents:
        assert b"canary" not in content and some not in content


def test_the_recorded_policy_decides_the_same(server: Any) -> None:
    asyncio.run(load(server, "second"))
    said = json.loads(server.call("replay", "--json").stdout)
    assert said["different"] == 0 and said["skipped"] == {} and said["compared"] > TOKENS
    assert said["recorded"] == {"policy": "accelgen-plus", "params": {}}
    other = server.call("replay", "--policy", "sarathi", "--param", "chunk_size=8", "--json")
    assert json.loads(other.stdout)["different"] > 0


def test_after_a_swap(server: Any) -> None:
    """The recording says which policy it was, and that one decides the same."""
    swapped = server.call("swap", "sarathi", "--param", "chunk_size=64")
    assert swapped.returncode == 0, swapped.stderr
    asyncio.run(load(server, "swapped"))
    said = json.loads(server.call("replay", "--json").stdout)
    assert said["recorded"] == {"policy": "sarathi", "params": {"chunk_size": 64}}
    assert said["different"] == 0 and said["skipped"] == {} and said["compared"] > TOKENS


def scheduler_pid(server: Any) -> int:
    members = server.directory().members
    ready = (m for m in members if m.role is Role.SCHEDULER and m.phase == "ready")
    return next(int(member.pid) for member in ready)


def test_across_the_death_of_the_scheduler(server: Any) -> None:
    """Both lives of it are in the history, and every token once."""
    body = {
        "model": server.model, "prompt": [5] * 40, "max_tokens": 150, "ignore_eos": True,
        "stream": True, "accelgen": {"slo_class": "batch"},
    }  # fmt: skip
    pid, heard = scheduler_pid(server), 0
    headers = {"x-request-id": "third"}
    with httpx.stream(
        "POST", f"{server.url}/v1/completions", json=body, headers=headers, timeout=60
    ) as answer:
        for line in answer.iter_lines():
            heard += line.startswith("data: {")
            if heard == 10:
                heard += 1
                os.kill(pid, signal.SIGKILL)
    one = traced(server, "third")
    [choice] = one["choices"]
    assert len({event["epoch"] for event in choice["history"]}) == 2
    submitted = [event for event in choice["history"] if event["what"] == "submitted"]
    assert [event["again"] for event in submitted] == [False, True]
    assert submitted[1]["generated"] >= 9 and delivered(choice) == 150
    around = [event["what"] for event in one["around"]]
    assert around.count("exit") == 1 and "epoch" in around
    shown = server.call("trace", "third").stdout
    assert (
        re.search(r"scheduler-\d died", shown) and "SIGKILL" in shown and "submitted again" in shown
    )
