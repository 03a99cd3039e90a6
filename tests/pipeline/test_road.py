"""Requests through all five processes, driven by the official client and compared with transformers' generate."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

import accelgen.models

sys.path.insert(0, str(Path(__file__).parent))
from reference import Reference

GREEDY = {"temperature": 0.0, "extra_body": {"ignore_eos": True}}


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(Path(accelgen.models.__path__[0]) / "accelgen-demo")


@pytest.fixture(scope="module")
def client(server: Any) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


def gauges(server: Any) -> dict[str, float]:
    """All Prometheus samples of the server."""
    text = httpx.get(f"{server.url}/metrics").text
    lines = [line.rsplit(" ", 1) for line in text.splitlines() if line and line[0] != "#"]
    return {name: float(value) for name, value in lines}


def wait_until_idle(server: Any, timeout_s: float = 15.0) -> dict[str, float]:
    """Waits until no request is known anywhere and no block is used; returns the samples."""
    until_s = time.monotonic() + timeout_s
    while True:
        found = gauges(server)
        busy = {
            name: value for name, value in found.items()
            if value and name.startswith(
                ("accelgen:num_requests_", "accelgen:kv_blocks_used", "accelgen:num_tokens_waiting")
            )
        }  # fmt: skip
        if not busy:
            return found
        assert time.monotonic() < until_s, f"still busy: {busy}"
        time.sleep(0.1)


def copies(found: dict[str, float]) -> float:
    """Blocks copied on write so far."""
    return sum(v for name, v in found.items() if name.startswith("accelgen:kv_copies_total"))


def prompt_of(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(5, 4000) for _ in range(length)]


def test_chat_whole_and_streamed(server: Any, client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "What is AccelGen?"}]
    whole = client.chat.completions.create(
        model=server.model, messages=messages, temperature=0, max_tokens=40
    )
    stream = client.chat.completions.create(
        model=server.model, messages=messages, temperature=0, max_tokens=40,
        stream=True, stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert whole.choices[0].message.content == text
    assert chunks[-1].usage == whole.usage.model_copy(
        update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details}
    )
    assert whole.choices[0].finish_reason in ("stop", "length")


def test_completion_equals_generate(
    server: Any, client: openai.OpenAI, reference: Reference
) -> None:
    for length in (1, 15, 16, 17, 100):
        prompt = prompt_of(length, length)
        answer = client.completions.create(
            model=server.model, prompt=prompt, max_tokens=24, **GREEDY
        )
        assert reference.agrees(prompt, answer.choices[0].text, 24), length
        assert answer.usage is not None and answer.usage.completion_tokens == 24


def test_64_concurrent_requests_of_mixed_lengths(server: Any, reference: Reference) -> None:
    draw = random.Random(0)
    lengths = [1, 4000, 4000, *(int(2000 ** draw.random()) for _ in range(61))]
    jobs = [(prompt_of(n, 1000 + i), draw.randrange(1, 40)) for i, n in enumerate(lengths)]

    async def ask(client: openai.AsyncOpenAI, prompt: list[int], max_tokens: int, i: int) -> str:
        given: Any = {"model": server.model, "prompt": prompt, "max_tokens": max_tokens, **GREEDY}
        if i % 2:
            return (await client.completions.create(**given)).choices[0].text
        pieces = [c async for c in await client.completions.create(stream=True, **given)]
        assert pieces[-1].choices[0].finish_reason == "length"
        return "".join(c.choices[0].text for c in pieces if c.choices)

    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(
            base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=110
        ) as client:
            return await asyncio.gather(*(ask(client, *job, i) for i, job in enumerate(jobs)))

    texts = asyncio.run(ask_all())
    checked = [0, 1, *range(3, len(jobs), 3)]  # a long one costs the reference as much as the rest
    wrong = [i for i in checked if not reference.agrees(jobs[i][0], texts[i], jobs[i][1])]
    assert not wrong
    wait_until_idle(server)


def test_choices_share_the_prompt_and_differ_by_seed(server: Any, client: openai.OpenAI) -> None:
    before = wait_until_idle(server)
    for length in (17, 97, 100, 101):
        prompt = prompt_of(length, length)
        given: Any = {"model": server.model, "prompt": prompt, "max_tokens": 12, "temperature": 1.5}
        answer = client.completions.create(n=3, seed=11, **given)
        texts = [choice.text for choice in answer.choices]
        assert len(set(texts)) == 3
        for i in range(3):  # choice i samples with seed + i, whatever the batch
            alone = client.completions.create(n=1, seed=11 + i, **given)
            assert alone.choices[0].text == texts[i]
    until_s = time.monotonic() + 15  # the KV manager's gauges come with its next heartbeat
    while copies(wait_until_idle(server)) <= copies(before):
        assert time.monotonic() < until_s
        time.sleep(0.1)


def test_prefix_cache_is_used_and_salted(server: Any) -> None:
    wait_until_idle(server)

    def cached(salt: str) -> int:
        body = {
            "model": server.model, "prompt": prompt_of(64, 8), "max_tokens": 1,
            "accelgen": {"cache_salt": salt},
        }  # fmt: skip
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).json()
        found: int = answer["accelgen"]["cached_tokens"]
        return found

    assert cached("a") == 0
    assert cached("a") == 48
    assert cached("b") == 0


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_blocks(server: Any, stream: bool) -> None:
    body = {
        "model": server.model, "prompt": prompt_of(64, 9), "max_tokens": 2000,
        "ignore_eos": True, "stream": stream,
    }  # fmt: skip
    with httpx.Client(timeout=30) as http:
        request = http.build_request("POST", f"{server.url}/v1/completions", json=body)
        if stream:
            response = http.send(request, stream=True)
            next(response.iter_lines())
            response.close()
        else:
            with pytest.raises(httpx.ReadTimeout):
                http.post(f"{server.url}/v1/completions", json=body, timeout=0.5)
    wait_until_idle(server)


def test_objectives_are_reported(server: Any) -> None:
    body = {
        "model": server.model, "prompt": prompt_of(8, 1), "max_tokens": 4, "ignore_eos": True,
        "accelgen": {"slo_class": "chat", "slo": {"ttft_ms": 30_000}},
    }  # fmt: skip
    headers = {"x-slo-tpot-ms": "20000"}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, headers=headers, timeout=30)
    verdict = answer.json()["accelgen"]
    assert verdict["slo_class"] == "chat"
    assert verdict["slo_met"] == {"ttft": True, "tpot": True, "e2e": None}
    assert verdict["ttft_ms"] > 0 and verdict["tpot_ms"] > 0


def test_every_metric_says_what_it_is(server: Any, client: openai.OpenAI) -> None:
    client.completions.create(model=server.model, prompt="Once", max_tokens=2, temperature=0)
    reported = {"accelgen:worker_steps", "accelgen:kv_blocks", "accelgen:num_requests_running"}
    until_s = time.monotonic() + 15
    while True:
        text = httpx.get(f"{server.url}/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        if reported <= families.keys():
            break
        assert time.monotonic() < until_s, f"not reported: {reported - families.keys()}"
        time.sleep(0.1)
    assert [name for name, family in families.items() if not family.documentation] == []
