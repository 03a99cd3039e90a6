"""Speculative decoding through all processes: the same texts as without, greedy and seeded, also when the scheduler
dies under way; and a drafter that cannot be used is refused in one line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import accelgen.models

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
DEMO = str(Path(accelgen.models.__path__[0]) / "accelgen-demo")
STREAMS, TOKENS = 6, 60


async def answer(http: httpx.AsyncClient, server: Any, i: int) -> str:
    """One completion of TOKENS tokens, of a prompt that repeats itself; every second one is sampled with a seed."""
    body = {
        "model": server.model, "prompt": [5 + (i * 7 + j % 9) % 4000 for j in range(40)],
        "max_tokens": TOKENS, "temperature": 0.8 * (i % 2), "seed": i, "ignore_eos": True,
    }  # fmt: skip
    response = await http.post(f"{server.url}/v1/completions", json=body)
    found = response.json()
    assert response.status_code == 200 and found["usage"]["completion_tokens"] == TOKENS, found
    return str(found["choices"][0]["text"])


async def answers(server: Any, kill_after_s: float | None = None) -> list[str]:
    async with httpx.AsyncClient(timeout=60) as http:
        tasks = [asyncio.create_task(answer(http, server, i)) for i in range(STREAMS)]
        if kill_after_s is not None:
            await asyncio.sleep(kill_after_s)
            member = next(
                m
                for m in server.directory().members
                if m.role.name == "SCHEDULER" and m.phase == "ready"
            )
            os.kill(member.pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)


def settled(server: Any, *names: str) -> list[float]:
    """Metrics of one moment, at which the scheduler has said that nobody runs any more and that something was drafted:
    what it counts travels with its heartbeats, all of it at once."""
    until_s = time.monotonic() + 10
    wanted = ("num_requests_running", "spec_decode_num_draft_tokens_total", *names)
    while time.monotonic() < until_s:
        running, drafted, *found = server.gauges(*wanted)
        if not running and drafted:
            return [drafted, *found]
        time.sleep(0.1)
    raise AssertionError(f"not settled: {server.gauges(*wanted)}")


@pytest.mark.parametrize(
    "options",
    [
        ("--drafter", "ngram"),
        ("--drafter", DEMO, "--draft-tokens", "fixed", "--max-draft-tokens", "3"),
        pytest.param(
            ("--drafter", "ngram", "--pipeline-depth", "0", "--policy", "sarathi"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["ngram", "model", "no plan ahead"],
)
def test_the_same_texts_in_fewer_steps(
    server: Any, launch_server: Callable[..., Any], options: tuple[str, ...]
) -> None:
    plain = asyncio.run(answers(server))
    drafting = launch_server(*options)
    try:
        assert asyncio.run(answers(drafting)) == plain
        drafted, accepted, steps = settled(
            drafting, "spec_decode_num_accepted_tokens_total", "worker_steps_total"
        )
        assert accepted <= drafted
        if DEMO in options:  # the model itself drafts
            assert accepted > 0.9 * drafted
            assert steps < 0.8 * TOKENS
        drafting.wait_for_spare()
        assert asyncio.run(answers(drafting, kill_after_s=0.15)) == plain
    finally:
        drafting.down()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--drafter", "/nowhere"), "--drafter: model not found: there is no folder /nowhere"),
        (("--draft-tokens", "all"), "--draft-tokens: 'all' is not one of adaptive, fixed"),
        (("--max-draft-tokens", "0"), "--max-draft-tokens: expected int >= 1, got 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    tmp_path: Path, options: tuple[str, ...], words: str
) -> None:
    done = subprocess.run(
        [*CLI, "up", "--port", "0", *options],
        env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)},
        capture_output=True, text=True, timeout=90,
    )  # fmt: skip
    assert done.returncode != 0
    assert words in done.stderr + done.stdout
