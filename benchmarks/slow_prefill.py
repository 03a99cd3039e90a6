"""A prompt that legitimately takes longer than any usual bound: nobody may take the worker for dead.

    python benchmarks/slow_prefill.py [--shape smollm2-135m] [--prompt 7000] [--rows FILE]

Starts a server with a random model and room for the whole prompt in one iteration, lets it see a short prompt first (so
that its cost model knows the machine), then sends the long one beside a stream. Printed: the longest iteration, and
whether any process was started again. On a fast machine make the prompt longer or the model larger.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import click
import httpx

from accelgen.faults.machine import machine
from accelgen.faults.rows import SlowRow, append
from accelgen.faults.server import Server, Shape, name_of

LONG_S = 10.0


def completion(url: str, model: str, prompt: int, tokens: int) -> float:
    """Seconds that a greedy completion takes; raises unless it is whole."""
    begun_s = time.monotonic()
    body = {
        "model": model, "prompt": [5 + i % 4000 for i in range(prompt)], "max_tokens": tokens,
        "temperature": 0, "ignore_eos": True,
    }  # fmt: skip
    reply = httpx.post(f"{url}/v1/completions", json=body, timeout=600)
    reply.raise_for_status()
    assert reply.json()["usage"]["completion_tokens"] == tokens
    return time.monotonic() - begun_s


def pids(server: Server) -> dict[str, int]:
    return {name_of(member): member.pid for member in server.see().members}


def longest_step_s(url: str, at_least_s: float) -> float:
    """What the metrics say, as soon as they know of an iteration of `at_least_s`; after 5 s whatever they say."""
    end_s = time.monotonic() + 5
    while True:
        text = httpx.get(f"{url}/metrics").text
        found = re.findall(r"^accelgen:worker_step_max_seconds\{.*\} (\S+)$", text, re.M)
        longest = max(map(float, found), default=0.0)
        if longest >= at_least_s or time.monotonic() > end_s:
            return longest
        time.sleep(0.25)


def measure(folder: Path, shape: str, prompt: int) -> SlowRow:
    model = str(folder / "model")
    make = [sys.executable, "-P", "-m", "accelgen.scripts.make_random_model", model]
    subprocess.run([*make, "--shape", shape], check=True, stdout=subprocess.DEVNULL)
    options = ("--model", model, "--max-num-batched-tokens", "65536", "--max-step-s", "300")
    with Server(Shape(frontends=1, policy="vllm"), *options) as server:
        server.await_pid("spare", 60)  # it starts a moment after the others
        before, url = pids(server), server.url
        for tokens in (64, 512, 1024):
            completion(url, "model", tokens, 2)
        took_s = completion(url, "model", prompt, 2)
        longest_s = longest_step_s(url, LONG_S)
        after = pids(server)
    return SlowRow(
        when=date.today().isoformat(),
        machine=machine(),
        what=f"prefill of {prompt:,} tokens in one iteration, {shape} shape, float32",
        took_s=took_s,
        longest_step_s=longest_s,
        restarted=[name for name, pid in before.items() if after.get(name) != pid],
    )


@click.command()
@click.option("--shape", default="smollm2-135m")
@click.option("--prompt", default=7000, help="tokens")
@click.option("--rows", type=click.Path(path_type=Path), help="append the row to this file")
def main(shape: str, prompt: int, rows: Path | None) -> None:
    """One long prefill; exit status 1 if it was not long, or if anybody was killed for it."""
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        row = measure(Path(name), shape, prompt)
    print(
        f"{row.what}: longest iteration {row.longest_step_s:.1f} s, answer after {row.took_s:.1f} s"
    )
    print(f"started again: {', '.join(row.restarted) or 'nobody'}")
    if rows is not None:
        append(rows, row)
    if row.longest_step_s < LONG_S:
        print("not long enough to show anything")
    sys.exit(1 if row.restarted or row.longest_step_s < LONG_S else 0)


if __name__ == "__main__":
    main()
