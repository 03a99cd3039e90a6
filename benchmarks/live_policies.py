"""Policies against each other on this machine: tails, attainment and the highest rate, where KV is short.

    python benchmarks/live_policies.py [--policies cacheopt,vllm,sarathi] [--rounds 3] [--requests 60] [--blocks 96]

A model of random weights in the shape of 135 million parameters, a KV cache of some 1,500 tokens, lengths of ShareGPT
scaled down. Everything is scaled to the machine: a server of the last policy named serves some requests one by one,
whose mean TTFT and TPOT, times --ttft and --tpot, are the objectives of all; and all requests at once, whose requests
per second, times --loads, are the rates. Then rounds: in each the policies take turns, each with a server of its own
that serves every rate, so that what else the machine does falls on all of them; lengths are the round's, prompts and
arrivals the round's and the rate's, the same for each policy. Figures are medians over rounds; ratios are of the
first policy to the others, within this run.
`cacheopt` may swap (`--preemption swap`), by what `accelgen profile` measures of copies; the others recompute, as
the systems that they are named after do by default.

The highest rate is where attainment (cumulative rule) falls below --wanted, between two rates by a straight line. Every
request asks for exactly the tokens that it gets (`ignore_eos`), so that clients' limits tell all policies the same, and
more than in life.
"""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx

sys.path.insert(0, str(Path(__file__).parent))
from live_table import FIGURES, Figures, form, report
from truth_live import CLI, make_model
from truth_results import save

from accelgen.simulator.synthetic import STAND_INS
from accelgen.simulator.times import Rule

SEATS, TOKENS = 32, 512  # --max-num-seqs, --max-num-batched-tokens
LENGTHS = "lengths_sharegpt_val10k_llama2"
LONE = 8  # requests that are served one by one
SWAPPING = ("cacheopt",)
CHUNKED = ("cacheopt", "sarathi")
PERCENTILES = (50, 95, 99)


@dataclass(frozen=True)
class Place:
    """What every server here is started with, and the folder for its files."""

    model: Path
    profile: Path
    folder: Path
    blocks: int
    chunk: int


@dataclass(frozen=True)
class Goals:
    """Objectives in milliseconds, and the rate that the machine gets through when all come at once."""

    ttft_ms: float
    tpot_ms: float
    full_rate: float
    lone_ttft_ms: float
    lone_tpot_ms: float

    def words(self) -> str:
        """As `accelgen bench serve --slo` has them."""
        return f"ttft={self.ttft_ms:g},tpot={self.tpot_ms:g}"


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Model folder [default: random weights, shape smollm2-135m].")  # fmt: skip
@click.option("--profile", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Samples of `accelgen profile` [default: measured now].")  # fmt: skip
@click.option("--policies", default="cacheopt,vllm,sarathi", show_default=True)
@click.option("--requests", default=60, show_default=True, help="Per policy, rate and round.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--loads", default="0.4,0.6,0.8,1,1.2", show_default=True,
              help="Rates, as parts of what gets through when all come at once.")  # fmt: skip
@click.option("--blocks", default=96, show_default=True, help="Of KV, 16 tokens each.")
@click.option(
    "--chunk",
    default=128,
    show_default=True,
    help="Tokens of an iteration, where a policy has chunks.",
)
@click.option("--scale", default=0.2, show_default=True, help="Of the lengths of ShareGPT.")
@click.option(
    "--ttft", default=5.0, show_default=True, help="Objective, times that of a lone request."
)
@click.option(
    "--tpot", default=4.0, show_default=True, help="Objective, times that of a lone request."
)
@click.option("--wanted", default=0.9, show_default=True, help="Attainment at the highest rate.")
@click.option("--profile-s", default=120, show_default=True, help="Seconds of measuring.")
def main(
    model: Path | None, profile: Path | None, policies: str, requests: int, rounds: int, loads: str, blocks: int,
    chunk: int, scale: float, ttft: float, tpot: float, wanted: float, profile_s: int,
) -> None:  # fmt: skip
    """See the head of this file."""
    names, parts = policies.split(","), sorted(float(one) for one in loads.split(","))
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        folder = Path(name)
        model = model or make_model(folder / "model")
        profile = profile or measure(model, folder / "profile.json", profile_s, blocks)
        place = Place(model, profile, folder, blocks, chunk)
        traces = [draw(requests, scale, blocks, seed, folder) for seed in range(rounds)]
        goals = look(place, names[-1], traces[0], ttft, tpot)
        rates = [part * goals.full_rate for part in parts]
        click.echo(
            f"alone: TTFT {goals.lone_ttft_ms:.0f} ms, TPOT {goals.lone_tpot_ms:.0f} ms; objectives {goals.words()};"
            f" all at once {goals.full_rate:.2f} req/s under {names[-1]}"
        )
        rows = []
        for number, trace in enumerate(traces):
            turn = number % len(names)
            for policy in [*names[turn:], *names[:turn]]:
                rows += run(place, policy, trace, goals, rates, number)
    content = report(rows, names, rates, wanted)
    options = {
        "requests": requests, "rounds": rounds, "loads": parts, "blocks": blocks, "chunk": chunk, "scale": scale,
        "ttft": ttft, "tpot": tpot, "wanted": wanted, "goals": vars(goals), "load_average": os.getloadavg()[0],
    }  # fmt: skip
    save("live-policies", {**options, "rows": rows, **content})


# --- what is served ----------------------------------------------------------------------------------------------


def draw(requests: int, scale: float, blocks: int, seed: int, folder: Path) -> Path:
    """A trace of lengths as the benchmark reads it; no request has more tokens than half of the KV cache."""
    rows = STAND_INS[LENGTHS].rows(LENGTHS, requests, seed)
    most = blocks * 16 // 2
    path = folder / f"lengths-{seed}.csv"
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["prompt_tokens", "output_tokens"])
        for prompt, output in zip(rows.prompt.tolist(), rows.output.tolist(), strict=True):
            tokens_out = min(max(2, round(scale * output)), most // 2)
            writer.writerow([min(max(1, round(scale * prompt)), most - tokens_out), tokens_out])
    return path


def measure(model: Path, path: Path, seconds: int, blocks: int) -> Path:
    """`accelgen profile`, with the limits that servers will have."""
    limits = ["--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(TOKENS)]
    words = ["profile", "--model", str(model), "--kv-blocks", str(max(blocks, 512)), *limits]
    subprocess.run([*CLI, *words, "--budget-s", str(seconds), "--output", str(path)], check=True)
    return path


# --- live --------------------------------------------------------------------------------------------------------


@contextmanager
def serving(place: Place, policy: str) -> Iterator[str]:
    """A server of this policy; its address."""
    run_dir = Path(tempfile.mkdtemp(prefix="live-", dir=place.folder)) / "run"
    up = [
        *CLI, "up", "--model", str(place.model), "--port", "0", "--policy", policy, "--kv-blocks", str(place.blocks),
        "--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(TOKENS), "--profile-file", str(place.profile),
        "--run-dir", str(run_dir), "--detach",
    ]  # fmt: skip
    if policy in SWAPPING:
        memory = ["--memory", policy, "--memory-param", f"chunk_size={place.chunk}"]
        up += ["--preemption", "swap", "--swap-gb", "1", *memory]
    if policy in CHUNKED:
        up += ["--policy-param", f"chunk_size={place.chunk}"]
    subprocess.run(up, check=True, stdout=subprocess.DEVNULL)
    try:
        status = [*CLI, "status", "--json", "--run-dir", str(run_dir)]
        yield json.loads(subprocess.run(status, check=True, capture_output=True).stdout)["url"]
    finally:
        subprocess.run([*CLI, "down", "--run-dir", str(run_dir)], stdout=subprocess.DEVNULL)


def bench(place: Place, url: str, trace: Path, *words: str) -> dict[str, Any]:
    """What `accelgen bench serve` finds."""
    name = "bench.json"
    command = [
        *CLI, "bench", "serve", "--url", url, "--trace", str(trace), "--save-result", "--result-dir",
        str(place.folder), "--result-filename", name, "--disable-tqdm", "--num-warmups", "2",
        "--metric-percentiles", ",".join(map(str, PERCENTILES)), *words,
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((place.folder / name).read_text())
    if found["failed"]:
        raise click.ClickException(f"requests failed: {found['failures']}")
    return found


def look(place: Place, policy: str, trace: Path, ttft: float, tpot: float) -> Goals:
    """What the machine can do: a request alone, and all at once."""
    with serving(place, policy) as url:
        one_by_one = ("--request-rate", "inf", "--max-concurrency", "1", "--num-prompts", str(LONE))
        lone = bench(place, url, trace, *one_by_one)
        full = bench(place, url, trace, "--request-rate", "inf")
    ttft_ms, tpot_ms = lone["mean_ttft_ms"], lone["mean_tpot_ms"]
    # One by one, a request's wait for those before it is the client's and in none of these.
    return Goals(ttft * ttft_ms, tpot * tpot_ms, full["request_throughput"], ttft_ms, tpot_ms)


def run(
    place: Place, policy: str, trace: Path, goals: Goals, rates: list[float], number: int
) -> list[dict[str, Any]]:
    """A policy's turn in a round: every rate, one after the other, on one server."""
    rows = []
    with serving(place, policy) as url:
        for at, rate in enumerate(rates):
            before = preempted(url)
            # Prompts of their own at each rate: those of the one before are in the prefix cache.
            seed = str(number * len(rates) + at)
            words = ("--request-rate", f"{rate:.6g}", "--seed", seed, "--slo", goals.words())
            figures = read(bench(place, url, trace, *words))
            figures["preemptions"] = float(preempted(url) - before)
            rows.append({"round": number, "policy": policy, "rate": rate, **figures})
            shown = ", ".join(
                f"{FIGURES[k][0]} {form(k, v)}" for k, v in figures.items() if k in FIGURES
            )
            click.echo(f"round {number}, {policy} at {rate:.2f} req/s: {shown}", err=True)
    return rows


def preempted(url: str) -> int:
    """How often requests have given way so far, as the metrics say."""
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r"^accelgen:num_preemptions_total(?:\{.*\})? (\S+)$", text, re.M)
    if not found:
        raise click.ClickException(f"{url}/metrics has no accelgen:num_preemptions_total")
    return int(sum(map(float, found)))


def read(result: dict[str, Any]) -> Figures:
    """Of a run: tails, shares of the requests sent, goodput."""
    kept = result["slo_attainment"]
    return {
        **{
            f"{name}_p{at}_ms": result[f"p{at}_{name}_ms"]
            for name in ("ttft", "itl")
            for at in PERCENTILES
        },
        "ttft_kept": kept["ttft"],
        "tbt_kept": kept["tpot"][Rule.EVERY_GAP],
        "attained": kept["all"][Rule.CUMULATIVE],
        "goodput": result["goodput_by_rule"][Rule.CUMULATIVE],
    }


if __name__ == "__main__":
    main()
