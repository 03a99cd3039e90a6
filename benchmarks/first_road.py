"""Throughput and latency of the whole road beside transformers' static batch, same weights, one run.

    python benchmarks/first_road.py [--shape smollm2-135m] [--dtype bfloat16] [--rounds 3]

In turns: (a) transformers `generate`, one static batch of 32 prompts of 256 tokens, 64 tokens each; (b) the same load
as 32 requests at once over HTTP to a running `accelgen up`. Printed: output tokens/s of both and their ratio; then
TTFT and TPOT at one request per second.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from typing import Any

import click

sys.path.insert(0, str(Path(__file__).parent))
from iteration import WORKER_ENV

from accelgen.faults.machine import machine

REQUESTS, PROMPT, OUTPUT = 32, 256, 64
CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]

STATIC = f"""
import sys, time, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=getattr(torch, sys.argv[2])).eval()
prompts = torch.randint(5, 1000, ({REQUESTS}, {PROMPT}), generator=torch.Generator().manual_seed(0))
def run(batch, tokens):
    begin = time.perf_counter()
    with torch.inference_mode():
        out = model.generate(batch, attention_mask=torch.ones_like(batch), max_new_tokens=tokens,
                             min_new_tokens=tokens, do_sample=False, pad_token_id=0)
    assert out.shape[1] == batch.shape[1] + tokens
    return time.perf_counter() - begin
run(prompts[:2], 4)
for line in sys.stdin:
    print(run(prompts, {OUTPUT}), flush=True)
"""


class Static:
    """transformers in a process of its own, with the worker's settings; waits, without computing, for its turn."""

    def __init__(self, model: Path, dtype: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", STATIC, str(model), dtype],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, **WORKER_ENV, "TOKENIZERS_PARALLELISM": "false"},
        )  # fmt: skip

    def run(self) -> float:
        """Output tokens per second of one static batch."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return REQUESTS * OUTPUT / float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class Server:
    """`accelgen up` with defaults but for model and dtype."""

    def __init__(self, model: Path, dtype: str, folder: Path, options: list[str]) -> None:
        self._environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self._run = str(folder / "run")
        self._folder = folder
        command = [
            *CLI,
            "up",
            "--model",
            str(model),
            "--dtype",
            dtype,
            "--port",
            "0",
            "--run-dir",
            self._run,
        ]
        subprocess.run([*command, "--detach", *options], env=self._environment, check=True)
        found = subprocess.run(
            [*CLI, "status", "--json", "--run-dir", self._run],
            env=self._environment, check=True, capture_output=True,
        )  # fmt: skip
        self.url = str(json.loads(found.stdout)["url"])

    def bench(self, *options: str) -> dict[str, Any]:
        """One `accelgen bench serve` run; its JSON result."""
        result = self._folder / "result.json"
        subprocess.run(
            [
                *CLI, "bench", "serve", "--base-url", self.url, "--random-input-len", str(PROMPT),
                "--random-output-len", str(OUTPUT), "--vocab-size", "1000", "--save-result",
                "--result-dir", str(self._folder), "--result-filename", result.name,
                "--metric-percentiles", "50,99", *options,
            ],
            env=self._environment, check=True, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(result.read_text())
        assert found["failed"] == 0, found
        return found

    def close(self) -> None:
        command = [*CLI, "down", "--run-dir", self._run]
        subprocess.run(command, env=self._environment, check=True, stdout=subprocess.DEVNULL)


def make_model(shape: str, dtype: str, folder: Path) -> Path:
    """Random weights of a real shape."""
    command = [sys.executable, "-P", "-m", "accelgen.scripts.make_random_model"]
    subprocess.run([*command, "--shape", shape, "--dtype", dtype, str(folder)], check=True)
    return folder


@click.command()
@click.option("--shape", default="smollm2-135m")
@click.option("--dtype", default="bfloat16")
@click.option("--rounds", default=3)
@click.option("--rate-requests", default=40, help="requests of the run at 1 request/s; 0 for none")
@click.argument("options", nargs=-1)
def main(shape: str, dtype: str, rounds: int, rate_requests: int, options: tuple[str, ...]) -> None:
    """See the head of this file. OPTIONS are passed to `accelgen up`."""
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        folder = Path(name)
        folder.chmod(0o700)
        model = make_model(shape, dtype, folder / shape)
        static, server = Static(model, dtype), Server(model, dtype, folder, list(options))
        try:
            measure(shape, dtype, static, server, rounds, rate_requests)
        finally:
            static.close()
            server.close()


def measure(
    shape: str, dtype: str, static: Static, server: Server, rounds: int, rate_requests: int
) -> None:
    """Prints the comparison."""
    print(f"{date.today()}  {machine()}  load {os.getloadavg()[0]:.1f} at the start")
    print(f"{shape}, {dtype}, {REQUESTS} x ({PROMPT} in, {OUTPUT} out)", flush=True)
    burst = ("--num-prompts", str(REQUESTS), "--request-rate", "inf")
    server.bench(*burst, "--seed", "99")  # the cost model has seen this machine before we measure
    ratios = []
    for i in range(rounds):
        ours = server.bench(*burst, "--seed", str(i))
        theirs = static.run()
        ratios.append(ours["output_throughput"] / theirs)
        print(
            f"  AccelGen {ours['output_throughput']:7.1f} tok/s (TTFT p50 {ours['p50_ttft_ms']:6.0f} ms, "
            f"TPOT p50 {ours['p50_tpot_ms']:5.1f} ms)   transformers {theirs:7.1f} tok/s   ratio {ratios[-1]:.2f}",
            flush=True,
        )
    print(f"median ratio {statistics.median(ratios):.2f} (wanted: at least 0.9)")
    if rate_requests:
        time.sleep(1)
        found = server.bench(
            "--num-prompts", str(rate_requests), "--request-rate", "1", "--seed", "7"
        )
        print(
            f"1 request/s, {rate_requests} requests: "
            f"TTFT p50 {found['p50_ttft_ms']:.0f} p99 {found['p99_ttft_ms']:.0f} ms, "
            f"TPOT p50 {found['p50_tpot_ms']:.1f} p99 {found['p99_tpot_ms']:.1f} ms (wanted: p50 at most 35)"
        )


if __name__ == "__main__":
    main()
