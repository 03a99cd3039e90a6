"""Other shapes of the server: two frontends and two replicas, the other policies, no plan ahead."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import accelgen.models

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference

SMALL = ("--kv-blocks", "256", "--max-model-len", "1024")


def ask_many(server: Any, count: int, max_tokens: int = 16) -> list[str]:
    """Answers to `count` requests at once, each over a connection of its own."""

    async def ask(i: int) -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60
        ) as client:
            answer = await client.completions.create(
                model=server.model, prompt=[5 + i] * (10 + 7 * i), max_tokens=max_tokens,
                temperature=0, extra_body={"ignore_eos": True},
            )  # fmt: skip
            return answer.choices[0].text

    async def ask_all() -> list[str]:
        return await asyncio.gather(*(ask(i) for i in range(count)))

    return asyncio.run(ask_all())


def counted(server: Any, name: str, most: int) -> list[float]:
    """The samples of a counter once `most` of them have risen above 0; they travel with the heartbeats."""
    until_s = time.monotonic() + 10
    while sum(value > 0 for value in samples(server, name).values()) < most:
        assert time.monotonic() < until_s, samples(server, name)
        time.sleep(0.1)
    return list(samples(server, name).values())


def samples(server: Any, name: str) -> dict[str, float]:
    """Samples of one metric by their labels."""
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1])
        for line in lines
        if line.startswith(name + "{")
    }


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(Path(accelgen.models.__path__[0]) / "accelgen-demo")


def agree(reference: Reference, texts: list[str]) -> bool:
    return all(reference.agrees([5 + i] * (10 + 7 * i), text, 16) for i, text in enumerate(texts))


@pytest.mark.slow  # test_recovery.py has two frontends, test_routing.py two replicas
def test_two_frontends_and_two_replicas(
    launch_server: Callable[..., Any], reference: Reference
) -> None:
    server = launch_server("--frontends", "2", "--replicas", "2", "--policy", "sarathi", *SMALL)
    assert len(server.pids) == 8
    assert agree(reference, ask_many(server, 16))
    assert len(counted(server, "accelgen:scheduler_steps_total", 2)) == 2
    server.down()


@pytest.mark.parametrize("policy", ["sarathi", pytest.param("vllm", marks=pytest.mark.slow)])
def test_other_policies_without_plans_ahead(
    launch_server: Callable[..., Any], reference: Reference, policy: str
) -> None:
    server = launch_server("--policy", policy, "--pipeline-depth", "0", *SMALL)
    assert agree(reference, ask_many(server, 8))
    counted(server, "accelgen:scheduler_policy_info", 1)
    assert f'accelgen:scheduler_policy_info{{policy="{policy}"}}' in str(
        samples(server, "accelgen:scheduler_policy_info")
    )
    server.down()


def test_memory_pressure_preempts_and_nobody_notices(
    launch_server: Callable[..., Any], reference: Reference
) -> None:
    """40 blocks of 16 tokens for 8 growing requests."""
    server = launch_server("--kv-blocks", "40", "--max-model-len", "512", "--policy", "sarathi")
    texts = ask_many(server, 8, max_tokens=120)
    prompts = [[5 + i] * (10 + 7 * i) for i in range(8)]
    assert all(reference.agrees(p, t, 120) for p, t in zip(prompts, texts, strict=True))
    assert counted(server, "accelgen:num_preemptions_total", 1)
    server.down()


@pytest.mark.parametrize(
    "drafts",
    [
        pytest.param((), marks=pytest.mark.slow),
        ("--drafter", "ngram", "--draft-tokens", "fixed"),
    ],
)
def test_what_is_preempted_can_go_to_the_host_and_come_back(
    launch_server: Callable[..., Any], reference: Reference, drafts: tuple[str, ...]
) -> None:
    """The same, by real copies, through a change of schedulers once something has gone there; also amid drafts."""
    server = launch_server(
        "--kv-blocks", "40", "--max-model-len", "512", "--policy", "sarathi",
        "--preemption", "swap", "--swap-gb", "0.5", *drafts,
    )  # fmt: skip
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(ask_many, server, 8, 120)
        counted(server, "accelgen:kv_swapped_out_total", 1)
        assert server.call("swap", "vllm").returncode == 0
        texts = asked.result()
    prompts = [[5 + i] * (10 + 7 * i) for i in range(8)]
    assert all(reference.agrees(p, t, 120) for p, t in zip(prompts, texts, strict=True))
    assert counted(server, "accelgen:kv_swapped_in_total", 1)
    until_s = time.monotonic() + 10
    while server.gauge("kv_host_blocks_used") or server.gauge("kv_blocks_used"):
        assert time.monotonic() < until_s
        time.sleep(0.1)
    assert server.gauge("kv_host_blocks") > 40 and server.gauge("kv_unswapped_total") == 0
    if drafts:
        assert counted(server, "accelgen:worker_accepted_tokens_total", 1)
    server.down()
