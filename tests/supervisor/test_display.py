"""What people see while a server starts."""

from __future__ import annotations

import io
import os
from pathlib import Path

import msgspec
import pytest

from accelgen.proto.messages import Directory, Facts, Member, Role
from accelgen.supervisor.display import LOAD_GAUGE, BarDisplay, LineDisplay, ready_block

FACTS = Facts("/m", "MForCausalLM", "cpu", "float32", "torch", 4096, 1000, 16, 64, 2**20, 2**21)
ABOUT = {"url": "http://127.0.0.1:8000", "model": "m", "policy": "vllm", "run_dir": "/run/x"}


def directory(phase: str, facts: Facts | None = None, **gauges: float) -> Directory:
    own = Member(Role.SUPERVISOR, 0, 1, "", 0, 1, "starting", 0, 2.0, 0.0, 0, None, {})
    worker = Member(Role.WORKER, 0, 2, "", 0, 1, phase, 0, 2.0, 0.0, 2**29, facts, gauges)
    return Directory([own, worker], phase == "ready", False, ABOUT)


def test_lines_appear_at_changes_only() -> None:
    out = io.StringIO()
    display = LineDisplay(out)
    for phase in ("starting", "starting", "loading weights", "loading weights", "ready"):
        display.show(directory(phase))
    assert out.getvalue().splitlines() == [
        "   2.0 s  worker-0     starting",
        "   2.0 s  worker-0     loading weights",
        "   2.0 s  worker-0     ready",
    ]
    display.end(1, "the cause", Path("/run/x/logs"))
    assert out.getvalue().endswith("accelgen: the cause\naccelgen: the logs are in /run/x/logs\n")


def test_the_block_names_what_one_needs() -> None:
    block = ready_block(directory("ready", FACTS), 3.21)
    for part in (
        "ready after 3.2 s", "http://127.0.0.1:8000/v1", "MForCausalLM, float32, torch on cpu",
        "context 4,096 tokens", "1 MiB weights + 2 MiB KV cache (64 blocks of 16 tokens)",
        "512 MiB resident", "curl http://127.0.0.1:8000/v1/chat/completions", " chat",
    ):  # fmt: skip
        assert part in block
    assert "swap space" not in block
    swapping = ready_block(directory("ready", msgspec.structs.replace(FACTS, host_blocks=96)), 1.0)
    assert "2 MiB KV cache (64 blocks of 16 tokens) + 3 MiB swap space (96 blocks);" in swapping
    assert "WARNING" not in block and "Bearer" not in block and "Stop it with Ctrl-C or `" in block
    ABOUT_OPEN = {**ABOUT, "open_to_others": True, "needs_key": True}
    block = ready_block(Directory([], True, False, ABOUT_OPEN), 1.0)
    assert "--api-key-file" in block and "Bearer $KEY" in block


def test_a_small_cache_is_warned_of() -> None:
    ready = directory("ready", msgspec.structs.replace(FACTS, max_model_len=1024, kv_bytes=3000))
    about = {**ABOUT, "context_tokens": 4096}
    block = ready_block(msgspec.structs.replace(ready, config=about), 1.0)
    assert "WARNING  requests are limited to 1,024 tokens by the KV cache" in block
    assert "the model allows 4,096" in block and "3 KiB KV cache" in block
    block = ready_block(msgspec.structs.replace(ready, config={**about, "context_tokens": 1024}), 1)
    assert "WARNING" not in block


def test_ctrl_c_does_not_stop_a_detached_server() -> None:
    block = ready_block(directory("ready", FACTS), 1.0, detached=True)
    assert "Ctrl-C" not in block and "Stop it with `" in block and "down`." in block


def test_bars_move_and_leave_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = io.StringIO()
    out.isatty = lambda: True  # type: ignore[method-assign]
    display = BarDisplay(out)
    display.show(directory("loading weights", **{LOAD_GAUGE: 0.5}))
    (task,) = display._bars.tasks
    assert task.percentage == 50 and task.description == "loading weights"
    display.show(directory("ready"))
    assert task.percentage == 100
    display.ready(directory("ready", FACTS), 1.0)
    assert "AccelGen is ready" in out.getvalue()
    display.end(0, "stopped", None)
    assert out.getvalue().endswith("accelgen: stopped\n")


def test_a_reader_that_leaves_does_no_harm() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with os.fdopen(write_fd, "w") as out:
        display = LineDisplay(out)
        display.end(0, "stopped", None)
        display.end(0, "stopped", None)
