"""Processes killed under load: what the clients see of it. Sampled with seeds: a replay must give the same text."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from accelgen.proto.messages import Role
from accelgen.supervisor.swap import PROBATION_S

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
STREAMS, TOKENS = 6, 200
ADMIN_KEY = "the-key-of-the-admin"


BROKEN = """
from accelgen.scheduler.policies.vllm import Vllm

class AtStart(Vllm):
    def __init__(self): raise ValueError("made to fail")

class AtFirstPlan(Vllm):
    def plan(self, view, state, start_s): raise ZeroDivisionError("made to fail")

class Idle(Vllm):
    def plan(self, view, state, start_s):
        from accelgen.scheduler.policy import Decision
        return Decision([], [], []), state

class TooMuch(Vllm):
    def plan(self, view, state, start_s):
        decision, state = super().plan(view, state, start_s)
        decision.counts = [count + 1000 for count in decision.counts]
        return decision, state

class Another(Vllm):
    pass
"""
NAMES = ["AtStart", "AtFirstPlan", "Idle", "TooMuch", "Another"]


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which the server finds packages that are installed while it runs."""
    folder = tmp_path_factory.mktemp("packages")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(folder))
        yield folder


@pytest.fixture(scope="module")
def server(launch_server: Callable[..., Any], packages: Path) -> Iterator[Any]:
    """One of our own: its processes die."""
    keys = packages / "admin-keys"
    keys.write_text(ADMIN_KEY)
    keys.chmod(0o600)
    started = launch_server("--frontends", "2", "--admin-key-file", str(keys))
    yield started
    started.down()


def install(packages: Path) -> None:
    """Somebody's package with policies."""
    (packages / "somebodys.py").write_text(BROKEN)
    info = packages / "somebodys-1.dist-info"
    info.mkdir(exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: somebodys\nVersion: 1\n")
    lines = "".join(f"{name.lower()} = somebodys:{name}\n" for name in NAMES)
    (info / "entry_points.txt").write_text(f"[accelgen.policies]\n{lines}")


def swap(server: Any, policy: str, *options: str) -> subprocess.CompletedProcess[str]:
    """`accelgen swap`, finding what is installed now."""
    command = [*CLI, "swap", policy, *options, "--run-dir", str(server.run_dir)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


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
    """The process of this seat; "scheduler" is whoever is in office, or None for a moment."""
    return schedulers(server).get("ready") if name == "scheduler" else server.member(name)


def schedulers(server: Any) -> dict[str, Any]:
    """The scheduler processes by their phase: "ready" is in office, "standby" is the spare."""
    return {m.phase: m for m in server.directory().members if m.role is Role.SCHEDULER}


def kill(server: Any, name: str) -> None:
    """SIGKILL, then waits until another process is in its place."""
    pid = member(server, name).pid
    os.kill(pid, signal.SIGKILL)
    until_s = time.monotonic() + 60
    while (
        not server.directory().ready or (found := member(server, name)) is None or found.pid == pid
    ):
        assert time.monotonic() < until_s, f"{name} does not come back"
        time.sleep(0.02)


def test_scheduler_killed_under_streams(server: Any) -> None:
    """No request fails, every text is what it would have been, and the process that stood by is in office."""
    quiet = asyncio.run(streams(server, []))
    assert all(isinstance(text, str) for text in quiet), quiet
    server.wait_for_spare()
    spare, before = schedulers(server)["standby"], member(server, "scheduler")
    assert asyncio.run(streams(server, ["scheduler"])) == quiet
    after = member(server, "scheduler")
    assert (after.pid, after.epoch) == (spare.pid, before.epoch + 1)
    server.wait_for_spare()
    assert schedulers(server)["standby"].pid not in (spare.pid, before.pid)
    assert sum(m.role is Role.SCHEDULER for m in server.directory().members) == 2
    assert len(set(quiet)) == STREAMS


def test_the_scheduler_and_its_spare_killed_under_streams(server: Any) -> None:
    """Then a process is started."""
    quiet = asyncio.run(streams(server, []))
    server.wait_for_spare()
    spare, before = schedulers(server)["standby"], member(server, "scheduler")
    os.kill(spare.pid, signal.SIGKILL)
    assert asyncio.run(streams(server, ["scheduler"])) == quiet
    after = member(server, "scheduler")
    assert after.epoch == before.epoch + 1 and after.pid not in (spare.pid, before.pid)
    server.wait_for_spare()


@pytest.mark.parametrize("name", ["kvmanager-0", "worker-0"])
def test_kv_manager_or_worker_killed_under_streams(server: Any, name: str) -> None:
    """What was computed is lost, no request is: it is computed again from the frontends' journals."""
    quiet = asyncio.run(streams(server, []))
    assert all(isinstance(text, str) for text in quiet), quiet
    assert asyncio.run(streams(server, [name])) == quiet


@pytest.mark.slow  # test_routing.py: a worker killed while a replica beside it serves
def test_the_other_replica_goes_on(launch_server: Callable[..., Any]) -> None:
    """One worker of two dies: its requests move, nobody waits for its model to load again."""
    pair = launch_server("--replicas", "2", "--kv-blocks", "512")

    async def drive(victim: str) -> tuple[list[Any], list[int], list[int]]:
        heard, before, after = [0] * STREAMS, [0] * STREAMS, [0] * STREAMS
        async with httpx.AsyncClient(timeout=60) as http:
            tasks = [asyncio.create_task(stream(http, pair, i, heard)) for i in range(STREAMS)]
            while min(heard) < 20:
                await asyncio.sleep(0.01)
            if victim:
                os.kill(member(pair, victim).pid, signal.SIGKILL)
                while member(pair, victim).phase == "ready":
                    await asyncio.sleep(0.01)
                before = list(heard)
                while member(pair, victim).phase != "ready" and not all(t.done() for t in tasks):
                    after = list(heard)
                    await asyncio.sleep(0.01)
            return await asyncio.gather(*tasks, return_exceptions=True), before, after

    quiet, *_ = asyncio.run(drive(""))
    assert all(isinstance(text, str) for text in quiet), quiet
    texts, before, after = asyncio.run(drive("worker-1"))
    assert texts == quiet
    assert all(now > then for then, now in zip(before, after, strict=True)), (before, after)
    pair.down()


def test_frontend_killed_under_streams(server: Any) -> None:
    """Only its own connections end; the other frontend's go on, and nothing stays held."""
    quiet = asyncio.run(streams(server, []))
    assert all(isinstance(text, str) for text in quiet), quiet
    results = asyncio.run(streams(server, ["frontend-1"]))
    for text, undisturbed in zip(results, quiet, strict=True):
        assert text == undisturbed or isinstance(text, httpx.RemoteProtocolError)
    until_s = time.monotonic() + 15
    while (used := server.gauge("kv_blocks_used") + server.gauge("num_requests_running")) > 0:
        assert time.monotonic() < until_s, f"{used} still held"
        time.sleep(0.1)
    assert asyncio.run(streams(server, [])) == quiet


def settled_gauge(server: Any, name: str) -> float:
    """Its value when heartbeat and Directory have brought the last one: unchanged for three of their rounds."""
    value, since_s = server.gauge(name), time.monotonic()
    until_s = since_s + 60
    while time.monotonic() < since_s + 3.0:
        assert time.monotonic() < until_s, f"{name} keeps changing"
        if (now := server.gauge(name)) != value:
            value, since_s = now, time.monotonic()
        time.sleep(0.1)
    return value


async def swapped(server: Any, policies: list[str]) -> tuple[list[Any], list[Any]]:
    """All streams at once with swaps under them, one after another; and what each swap said."""
    heard, said = [0] * STREAMS, []
    async with httpx.AsyncClient(timeout=60) as http:
        tasks = [asyncio.create_task(stream(http, server, i, heard)) for i in range(STREAMS)]
        while sum(heard) < 2 * STREAMS:
            await asyncio.sleep(0.01)
        for policy in policies:
            said.append(await asyncio.to_thread(swap, server, policy))
        return await asyncio.gather(*tasks, return_exceptions=True), said


def active(server: Any) -> str:
    return str(server.directory().config["policy"])


def test_policies_are_swapped_under_streams(server: Any, packages: Path) -> None:
    quiet = asyncio.run(streams(server, []))
    install(packages)
    texts, said = asyncio.run(swapped(server, ["sarathi", "another", "vllm"]))
    assert [done.returncode for done in said] == [0, 0, 0], said
    assert texts == quiet and active(server) == "vllm"
    dry = swap(server, "accelgen", "--dry-run")
    assert dry.returncode == 0 and "could take over" in dry.stdout and active(server) == "vllm"
    listed = server.call("policies").stdout
    assert re.search(r"^\* vllm .*\n +active for", listed, re.MULTILINE) and "\n  another" in listed


def test_a_package_that_has_been_upgraded(server: Any, packages: Path) -> None:
    """The process that stands by has run the old version, and would not see the new one."""
    install(packages)
    assert swap(server, "another").returncode == 0
    assert swap(server, "vllm").returncode == 0
    newer = "\nclass Another(Vllm):\n    def __init__(self, version: int = 2): super().__init__()\n"
    (packages / "somebodys.py").write_text(BROKEN + newer)
    done = swap(server, "another", "--param", "version=2")
    assert done.returncode == 0, done
    assert server.directory().config["policy_params"] == {"version": 2}
    install(packages)
    assert swap(server, "vllm").returncode == 0


def test_what_has_been_learnt_is_handed_over(server: Any) -> None:
    """The cost model's correction is the same in the next process, as long as nothing has run there."""
    asyncio.run(streams(server, []))
    server.wait_for_spare()
    pid, scale = member(server, "scheduler").pid, settled_gauge(server, "cost_model_scale")
    assert scale != 1.0
    assert swap(server, "sarathi").returncode == 0
    until_s = time.monotonic() + 10
    while server.gauge("cost_model_scale") != scale:
        assert time.monotonic() < until_s, (scale, server.gauge("cost_model_scale"))
        time.sleep(0.1)
    assert member(server, "scheduler").pid != pid


async def swapped_over_http(server: Any) -> tuple[list[Any], list[httpx.Response]]:
    """All streams at once with swaps over HTTP under them: one asked for by a client that hangs up, one that is only
    tried, and two at the same time."""
    heard = [0] * STREAMS
    url = f"{server.url}/admin/v1/policy"
    headers = {"authorization": f"Bearer {ADMIN_KEY}"}
    async with httpx.AsyncClient(timeout=60) as http, httpx.AsyncClient(headers=headers) as admin:
        tasks = [asyncio.create_task(stream(http, server, i, heard)) for i in range(STREAMS)]
        while sum(heard) < 2 * STREAMS:
            await asyncio.sleep(0.01)
        body = {"policy": "accelgen", "params": {"gamma_s": 2.0}}
        with pytest.raises(httpx.ReadTimeout):
            await admin.post(url, json=body, timeout=0.1)
        while (found := (await admin.get(url)).json())["params"] != body["params"] or found["swap"]:
            await asyncio.sleep(0.05)
        assert found["policy"] == "accelgen" and "vllm" in found["installed"]
        trial = {"policy": "vllm", "dry_run": True}
        tried = await admin.post(url, json=trial, timeout=60)
        both = [admin.post(url, json={"policy": p}, timeout=60) for p in ("sarathi", "vllm")]
        replies = [tried, *await asyncio.gather(*both)]
        return await asyncio.gather(*tasks, return_exceptions=True), replies


def test_policies_are_swapped_over_http(server: Any) -> None:
    quiet = asyncio.run(streams(server, []))
    texts, (tried, *both) = asyncio.run(swapped_over_http(server))
    assert texts == quiet
    assert tried.status_code == 200 and "could take over" in tried.json()["detail"]
    assert sorted(reply.status_code for reply in both) == [200, 409]
    won = next(reply.json()["policy"] for reply in both if reply.status_code == 200)
    lost = next(reply.json()["error"] for reply in both if reply.status_code == 409)
    assert lost["message"] == "another swap is under way" and active(server) == won
    reply = httpx.get(f"{server.url}/admin/v1/policy")
    assert reply.status_code == 401


def test_two_swaps_at_once(server: Any) -> None:
    async def both() -> list[Any]:
        return await asyncio.gather(
            *(asyncio.to_thread(swap, server, name) for name in ("sarathi", "accelgen"))
        )

    done = asyncio.run(both())
    assert all(one.returncode == 0 or "another swap" in one.stderr for one in done)
    assert any(one.returncode == 0 for one in done)
    assert active(server) in ("sarathi", "accelgen")


def test_a_policy_that_cannot_start_is_refused(server: Any, packages: Path) -> None:
    install(packages)
    before = active(server)
    done = swap(server, "atstart")
    assert done.returncode == 1 and "made to fail" in done.stderr, done
    assert active(server) == before and server.directory().ready


@pytest.mark.parametrize(
    "policy",
    ["atfirstplan", *(pytest.param(name, marks=pytest.mark.slow) for name in ("toomuch", "idle"))],
)
def test_a_policy_that_fails_at_work_is_rolled_back(
    server: Any, packages: Path, policy: str
) -> None:
    """No request notices."""
    install(packages)
    wait_for_probation(server)
    quiet = asyncio.run(streams(server, []))
    before = active(server)
    texts, said = asyncio.run(swapped(server, [policy]))
    assert texts == quiet, said
    until_s = time.monotonic() + 60
    while active(server) != before or not server.directory().ready:
        assert time.monotonic() < until_s
        time.sleep(0.05)
    assert str(server.directory().config["rolled_back"]).startswith(policy)


def wait_for_probation(server: Any) -> None:
    """Until the scheduler in office is no longer on probation: a second failure would bring an older one back."""
    until_s = time.monotonic() + 2 * PROBATION_S
    while (
        min(m.uptime_s for m in server.directory().members if m.role is Role.SCHEDULER)
        < PROBATION_S
    ):
        assert time.monotonic() < until_s
        time.sleep(0.1)
