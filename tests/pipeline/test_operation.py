"""The operator's view of a real server: status, memory, logs, death of the launcher."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import psutil

from accelgen.proto.messages import Role

LEAN_BYTES = 150 * 2**20  # frontend, scheduler, KV manager: resident, each
OVERHEAD_BYTES = 600 * 2**20  # worker: on top of weights and KV cache


def test_status_shows_every_process(server: Any) -> None:
    server.wait_for_spare()
    done = server.call("status")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert server.url in lines[0] and "ready" in lines[0] and "accelgen-demo" in lines[0]
    names = ["supervisor-0", "worker-0", "kvmanager-0", "scheduler-0", "scheduler-1", "frontend-0"]
    assert [line.split()[0] for line in lines[3:]] == names
    for line in lines[3:]:
        name, pid, epoch, phase = line.split()[:4]
        if name == "scheduler-1":
            assert (epoch, phase) == ("0", "standby")
        else:
            assert (int(pid), epoch, phase) == (server.pids[name], "1", "ready")


def test_progress_goes_on_without_requests(server: Any) -> None:
    server.wait_for_spare()
    before = json.loads(server.call("status", "--json").stdout)
    after = before
    for _ in range(20):
        after = json.loads(server.call("status", "--json").stdout)
        if all(
            new["progress"] > old["progress"]
            for new, old in zip(after["members"], before["members"], strict=True)
        ):
            return
    raise AssertionError(f"no progress: {before} {after}")


def test_memory_of_each_process(launch_server: Callable[..., Any]) -> None:
    """Of a server of its own: what others have served leaves memory with the C allocator."""
    server = launch_server()
    body = {"model": server.model, "prompt": "Once upon a time", "max_tokens": 16}
    assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).status_code == 200
    members = {member.role.name: member for member in server.wait_for_spare().members}
    for member in server.directory().members:
        assert member.role is Role.WORKER or member.rss_bytes < LEAN_BYTES, member
    worker = members["WORKER"]
    allowed = worker.facts.weights_bytes + worker.facts.kv_bytes + OVERHEAD_BYTES
    assert worker.rss_bytes < allowed
    for name in ("frontend-0", "scheduler-0", "kvmanager-0"):
        maps = {mapped.path for mapped in psutil.Process(server.pids[name]).memory_maps()}
        assert not any("libtorch" in path for path in maps), name
    server.down()


def test_logs_of_every_process(server: Any) -> None:
    done = server.call("logs", "-n", "1000")
    assert done.returncode == 0
    for name in server.pids:
        assert name.removesuffix("-0") in done.stdout, name
    term = max(
        member.epoch for member in server.directory().members if member.role is Role.SCHEDULER
    )
    assert f"activated epoch={term}\n" in done.stdout  # the number that `accelgen status` shows


def test_killing_the_launcher_leaves_nothing(launch_server: Callable[..., Any]) -> None:
    server = launch_server("--kv-blocks", "64", "--max-model-len", "512")
    server.wait_for_spare()
    processes = server.processes()
    assert len(processes) == 6
    server.process.kill()
    server.process.wait()
    _, left = psutil.wait_procs(processes[1:], timeout=2)
    assert not left
