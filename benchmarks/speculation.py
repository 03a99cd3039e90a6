"""Tokens per iteration and time per token, with and without drafts, of prompts that repeat themselves and of others.

    python benchmarks/speculation.py [--model FOLDER] [--drafter FOLDER] [--streams 1] [--tokens 200] [--rule fixed]

Starts a server for each drafter (none, prompt lookup, those given), alone on the machine, and sends it the same greedy
requests, `--streams` at a time. An ordinary prompt consists of random tokens; one that repeats itself says the same few
again and again, and its answer mostly goes on like that. Tokens per iteration count the forward passes that decoded, so
that without drafts it is the number of streams.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import click
import httpx

from accelgen.faults.machine import machine
from accelgen.faults.server import Server, Shape

KINDS: dict[str, Callable[[random.Random], list[int]]] = {
    "ordinary": lambda draw: [draw.randrange(5, 4000) for _ in range(96)],
    "repetitive": lambda draw: [draw.randrange(5, 4000) for _ in range(12)] * 8,
}
ROUNDS = 3
SETTLE_S = 1.5  # gauges travel with the heartbeats


@dataclass(frozen=True)
class Figures:
    """Of one drafter and kind of prompt; times in seconds."""

    tpot_s: float
    tokens_per_step: float
    drafted: float
    accepted: float

    def row(self, drafter: str, kind: str) -> str:
        share = f"{self.accepted / self.drafted:6.0%}" if self.drafted else "     -"
        return (
            f"{drafter[-24:]:24} {kind:10} {1000 * self.tpot_s:8.2f} ms/token"
            f" {self.tokens_per_step:6.2f} tokens/step  accepted {share}"
        )


async def tpot_s(http: httpx.AsyncClient, url: str, prompt: list[int], tokens: int) -> float:
    """Mean time per output token after the first of one greedy stream."""
    body = {
        "model": "model", "prompt": prompt, "max_tokens": tokens, "temperature": 0,
        "ignore_eos": True, "stream": True,
    }  # fmt: skip
    moments_s: list[float] = []
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        assert response.status_code == 200, await response.aread()
        async for line in response.aiter_lines():
            if line.startswith("data: {"):
                moments_s.append(time.monotonic())
    return (moments_s[-1] - moments_s[0]) / (tokens - 1)


async def round_of(url: str, prompts: list[list[int]], tokens: int) -> list[float]:
    async with httpx.AsyncClient(timeout=600) as http:
        return await asyncio.gather(*(tpot_s(http, url, prompt, tokens) for prompt in prompts))


def gauges(url: str) -> dict[str, float]:
    """Metrics summed over their labels, by name without prefix, once they have come in."""
    time.sleep(SETTLE_S)
    found: dict[str, float] = {}
    for line in httpx.get(f"{url}/metrics").text.splitlines():
        if line.startswith("accelgen:"):
            name, _, value = line.removeprefix("accelgen:").rpartition(" ")
            name = name.partition("{")[0]
            found[name] = found.get(name, 0.0) + float(value)
    return found


def measure(url: str, kind: str, streams: int, tokens: int) -> Figures:
    draw = random.Random(kind)
    times_s: list[float] = []
    before = gauges(url)
    for _ in range(ROUNDS):
        prompts = [KINDS[kind](draw) for _ in range(streams)]
        times_s += asyncio.run(round_of(url, prompts, tokens))
    after = gauges(url)

    def grown(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    overhead = 2 * ROUNDS  # the prompts of a round, and the iteration in which its end is told
    steps = max(1.0, grown("worker_steps_total") - overhead)
    return Figures(
        statistics.mean(times_s),
        ROUNDS * streams * (tokens - 1) / steps,
        grown("spec_decode_num_draft_tokens_total"),
        grown("spec_decode_num_accepted_tokens_total"),
    )


@click.command()
@click.option("--model", default="", help="folder; the bundled model if not given")
@click.option("--drafter", multiple=True, help="folder of a drafter model; repeatable")
@click.option("--streams", default=1, help="requests at a time")
@click.option("--tokens", default=200, help="of each answer")
@click.option("--most", default=4, help="drafts per request and iteration")
@click.option("--rule", default="adaptive", help="adaptive or fixed")
@click.option("--dtype", default="auto")
def main(
    model: str,
    drafter: tuple[str, ...],
    streams: int,
    tokens: int,
    most: int,
    rule: str,
    dtype: str,
) -> None:
    """One row for each drafter and kind of prompt."""
    print(f"{machine()}: {streams} streams of {tokens} tokens, at most {most} drafts, {rule}")
    for name in ("", "ngram", *drafter):
        options = ["--served-model-name", "model", "--dtype", dtype]
        options += ["--model", model] if model else []
        if name:
            options += ["--drafter", name, "--max-draft-tokens", str(most), "--draft-tokens", rule]
        with Server(Shape(frontends=1, policy="sarathi"), *options) as server:
            measure(server.url, "ordinary", 1, 20)  # warms up
            for kind in KINDS:
                print(measure(server.url, kind, streams, tokens).row(name or "none", kind))


if __name__ == "__main__":
    main()
