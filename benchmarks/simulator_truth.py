"""Is the simulator true? Against measurements of others, and against this machine.

    python benchmarks/simulator_truth.py measured PROFILES    300 requests measured on vLLM 0.19, RTX PRO 6000
    python benchmarks/simulator_truth.py distserve PROFILES   OPT-13B on A100 against DistServe's own fits (--devices 2)
    python benchmarks/simulator_truth.py live                 a server on this machine against its simulation

PROFILES is the folder with `measured_vllm0.19_llama3.1-8b_RTXPRO6000_requests.csv.gz` and
`profile_distserve_a100-80g_distserve.json`. Each prints a table and writes benchmarks/results/simulator-truth-*.json.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent))
from truth_live import live
from truth_results import save

from accelgen.proto.config import Config, SloClass
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.device import Device, Iteration, find_device
from accelgen.simulator.run import Simulation
from accelgen.simulator.tensor_parallel import split
from accelgen.simulator.times import Times
from accelgen.simulator.workload import Arrival, Workload

Floats = NDArray[np.float64]
FIGURES = ("TTFT", "TPOT", "E2E")
LIMIT = 0.05
FITTED = 150  # requests whose TPOT the host's time is fitted on; the others judge
DECODE_LIMIT, PREFILL_LIMIT = 0.10, 0.25


@click.group()
def main() -> None:
    """See the head of this file."""


# --- (a) measured requests ---------------------------------------------------------------------------------------


@main.command()
@click.argument("profiles", type=click.Path(exists=True, file_okay=False, path_type=Path))
def measured(profiles: Path) -> None:
    """vLLM 0.19 (V1: decodes first, chunked prefill, first come first served, 2,048 tokens, 128 requests) is what the
    policy `sarathi` does with chunk_size=2048, as long as memory is not short, which it is not here."""
    arrivals, seen = read_measured(
        profiles / "measured_vllm0.19_llama3.1-8b_RTXPRO6000_requests.csv.gz"
    )
    host_s = fit_host(arrivals, seen)
    rows = []
    print(f"host time fitted on the TPOT of the first {FITTED} requests: {1e3 * host_s:.3f} ms")
    print(
        "| host ms | requests | figure | mean measured | simulated | error | p99 measured | simulated | error |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for host in (host_s, 0.0):
        found = replay(arrivals, host)
        for name, part in (("last 150", slice(FITTED, None)), ("all 300", slice(None))):
            rows += compare(host, name, seen[part], found[part])
    kept = all(
        max(abs(row["mean_error"]), abs(row["p99_error"])) <= LIMIT
        for row in rows
        if row["host_s"] and row["requests"] == "last 150"
    )
    print(f"with the fitted host time, last 150 requests, all within {LIMIT:.0%}: {kept}")
    save("simulator-truth-measured", {"host_s": host_s, "kept": kept, "limit": LIMIT, "rows": rows})


def read_measured(path: Path) -> tuple[list[Arrival], Floats]:
    """The requests, and what was measured of each: TTFT, TPOT, E2E in seconds, [n, 3]."""
    with gzip.open(path, "rt") as lines:
        rows = [{key: float(cell) for key, cell in row.items()} for row in csv.DictReader(lines)]
    arrivals = [
        Arrival(row["arrived_at"], int(row["prompt_tokens"]), int(row["output_tokens"]))
        for row in rows
    ]
    seen = [
        (row["ttft_s"], (row["e2e_s"] - row["ttft_s"]) / (row["output_tokens"] - 1), row["e2e_s"])
        for row in rows
    ]
    return arrivals, np.array(seen)


def replay(arrivals: list[Arrival], host_s: float) -> Floats:
    """TTFT, TPOT, E2E in the simulator, [n, 3]."""
    device = find_device("llama-3.1-8b", "rtxpro6000", host_s=host_s)
    config = Config(
        policy="sarathi", pipeline_depth=0, max_num_seqs=128, max_num_batched_tokens=2048,
        slo_classes={"standard": SloClass(max_queue_ms=86_400_000)},
    )  # fmt: skip
    policy = load_policy("sarathi", {"chunk_size": 2048})
    times = Times.of(Simulation(policy, Workload("measured", arrivals), device, config).go().fates)
    return np.column_stack([times.ttft_s, times.tpot_s, times.jct_s])


def fit_host(arrivals: list[Arrival], seen: Floats) -> float:
    """The time of the host per iteration with which the mean TPOT of the first requests comes out; by bisection."""
    wanted_s = float(seen[:FITTED, 1].mean())
    low_s, high_s = 0.0, 0.01
    while high_s - low_s > 2e-6:
        middle_s = (low_s + high_s) / 2
        if replay(arrivals, middle_s)[:FITTED, 1].mean() < wanted_s:
            low_s = middle_s
        else:
            high_s = middle_s
    return (low_s + high_s) / 2


def compare(host_s: float, name: str, seen: Floats, found: Floats) -> list[dict[str, Any]]:
    """One row per figure, printed, too."""
    rows = []
    for column, figure in enumerate(FIGURES):
        row: dict[str, Any] = {"host_s": host_s, "requests": name, "figure": figure}
        cells = []
        for what, reduce in (("mean", np.mean), ("p99", lambda x: np.percentile(x, 99))):
            real_s, simulated_s = float(reduce(seen[:, column])), float(reduce(found[:, column]))
            error = simulated_s / real_s - 1
            row |= {
                f"{what}_measured_s": real_s,
                f"{what}_simulated_s": simulated_s,
                f"{what}_error": error,
            }
            cells += [f"{real_s:.4f} s", f"{simulated_s:.4f} s", f"{error:+.1%}"]
        print(f"| {1e3 * host_s:.2f} | {name} | {figure} | {' | '.join(cells)} |")
        rows.append(row)
    return rows


# --- (b) DistServe's fits ----------------------------------------------------------------------------------------


@main.command()
@click.argument("profiles", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--devices", type=click.Choice(["1", "2", "4"]), default="1", show_default=True)
def distserve(profiles: Path, devices: str) -> None:
    """Iteration times of the device model beside DistServe's fits of its own measurements, over their range; on
    several devices by tensor parallelism."""
    path = profiles / "profile_distserve_a100-80g_distserve.json"
    fits = json.loads(path.read_text())["facebook/opt-13b"][devices]
    device = split(find_device("opt-13b", "a100"), int(devices))
    rows, kept = [], {}
    print("| what | host ms | points | mean error | largest | within limit | limit | kept |")
    print("|---|---|---|---|---|---|---|---|")
    for host_s in (device.host_s, 0.0):
        one = replace(device, host_s=host_s)
        found = decode_rows(one, fits) + prefill_rows(one, fits)
        rows += [{"host_s": host_s, **row} for row in found]
        for kind in dict.fromkeys(row["kind"] for row in found):
            limit = PREFILL_LIMIT if kind == "prefill" else DECODE_LIMIT
            errors = np.array([row["error"] for row in found if row["kind"] == kind])
            worst = errors[np.abs(errors).argmax()]
            within = int((np.abs(errors) <= limit).sum())
            kept[f"{kind}, host {1e3 * host_s:g} ms"] = within == len(errors)
            cells = [
                kind,
                f"{1e3 * host_s:g}",
                len(errors),
                f"{errors.mean():+.1%}",
                f"{worst:+.1%}",
            ]
            print(
                "|",
                " | ".join(map(str, [*cells, within, f"{limit:.0%}", within == len(errors)])),
                "|",
            )
    several = f"-tp{devices}" if devices != "1" else ""
    save(f"simulator-truth-distserve{several}", {"kept": kept, "rows": rows})


def decode_rows(device: Device, fits: dict[str, Any]) -> list[dict[str, Any]]:
    """Batches of 1 to 128 requests with contexts of 128 to 1,024 tokens, as far as DistServe's 66,144 tokens of KV go.
    Its fit has two pieces, below and from 95 requests on, and falls by 5 % where they meet: they are shown apart."""
    rows = []
    for batch in (1, 4, 8, 16, 32, 64, 94, 96, 128):
        for each in (128, 256, 512, 1024):
            context = batch * each
            if context > 66_144:
                continue
            large = batch >= fits["decoding_large_small_bs_threshold"]
            a, b, c = fits["decoding_largebs" if large else "decoding_smallbs"]
            work = Work(decode_seqs=batch, decode_context=context)
            kind = "decode, batch >= 95" if large else "decode, batch < 95"
            shape = {"kind": kind, "batch": batch, "context": each}
            theirs_s = 1e-3 * (a + b * context + c * batch)
            rows.append(shape | _pair(theirs_s, device.seconds(Iteration(work, 0, batch))))
    return rows


def prefill_rows(device: Device, fits: dict[str, Any]) -> list[dict[str, Any]]:
    """One or several prompts of 128 to 2,048 tokens, at most 2,048 together."""
    rows = []
    a, b, c = fits["prefill"]
    for each in (128, 256, 512, 1024, 2048):
        for prompts in (1, 2, 4):
            tokens, squares = prompts * each, prompts * each**2
            if tokens > 2048:
                continue
            work = Work(prefill_tokens=tokens, prefill_work=squares / 2)
            shape = {"kind": "prefill", "prompts": prompts, "tokens": each}
            theirs_s = 1e-3 * (a + b * tokens + c * squares)
            rows.append(shape | _pair(theirs_s, device.seconds(Iteration(work, 0, prompts))))
    return rows


def _pair(theirs_s: float, ours_s: float) -> dict[str, float]:
    return {"distserve_s": theirs_s, "ours_s": ours_s, "error": ours_s / theirs_s - 1}


main.add_command(live)

if __name__ == "__main__":
    main()
