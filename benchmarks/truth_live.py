"""A server on this machine against its simulation: the same requests through both (see simulator_truth.py).

Objectives are scaled to the machine. Policies take turns within a round, so that what else the machine does falls on
all of them; each figure is compared as the median of its rounds. The simulation knows the iterations that `accelgen
profile` has measured, and one number more, `host_s`: what an iteration takes beyond the forward pass, fitted on the
TPOT of the first half of the requests of the first run. It is shown with and without.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from truth_results import save

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.local_device import profiled_device
from accelgen.simulator.run import Run, Simulation
from accelgen.simulator.synthetic import STAND_INS, poisson
from accelgen.simulator.times import Rule, Times
from accelgen.simulator.workload import Arrival, Workload

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
FIGURES = ("ttft", "tpot", "e2el")
LIMIT = 0.10
SEATS, TOKENS, BLOCKS = 32, 512, 2048  # --max-num-seqs, --max-num-batched-tokens, --kv-blocks
Figures = dict[str, float]


@click.command()
@click.option("--model", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="Model folder [default: random weights, shape smollm2-135m].")  # fmt: skip
@click.option("--profile", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Samples of `accelgen profile` [default: measured now].")  # fmt: skip
@click.option("--policies", default="accelgen,sarathi,vllm", show_default=True)
@click.option("--requests", default=500, show_default=True)
@click.option("--rate", default=1.0, show_default=True, help="Requests per second, Poisson.")
@click.option("--rounds", default=3, show_default=True)
@click.option("--scale", default=0.1, show_default=True, help="Of the lengths of Azure's chat.")
@click.option("--ttft", default=1.5, show_default=True, help="Objective in seconds.")
@click.option("--tpot", default=0.15, show_default=True, help="Objective in seconds.")
@click.option("--profile-s", default=120, show_default=True, help="Seconds of measuring.")
def live(
    model: Path | None, profile: Path | None, policies: str, requests: int, rate: float, rounds: int, scale: float,
    ttft: float, tpot: float, profile_s: int,
) -> None:  # fmt: skip
    """A 135M-shape model on this processor, through `accelgen up` and through the simulator."""
    names = policies.split(",")
    arrivals = draw(requests, rate, scale, Objective(ttft_s=ttft, tpot_s=tpot))
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        folder = Path(name)
        model = model or make_model(folder / "model")
        profile = profile or measure(model, folder / "profile.json", profile_s)
        trace = write_trace(arrivals, folder / "trace.csv")
        seen = [
            {policy: serve(model, profile, trace, policy, ttft, tpot, folder) for policy in names}
            for _ in range(rounds)
        ]
        host_s = fit_host(profile, arrivals, names[0], seen[0][names[0]])
        content = report(profile, arrivals, names, seen, host_s)
    options = {"requests": requests, "rate": rate, "rounds": rounds, "scale": scale}
    save(
        "simulator-truth-live",
        {**options, "host_s": host_s, "load_average": os.getloadavg()[0], **content},
    )


def draw(requests: int, rate: float, scale: float, objective: Objective) -> list[Arrival]:
    """Poisson arrivals with the lengths of Azure's conversations, scaled."""
    source = np.random.default_rng(0)
    rows = STAND_INS["azure2023_conv"].rows("azure2023_conv", requests, 0)
    at_s = poisson(requests, rate, source)
    return [
        Arrival(float(at), max(1, round(prompt * scale)), max(2, round(output * scale)), objective)
        for at, prompt, output in zip(at_s, rows.prompt, rows.output, strict=True)
    ]


# --- live --------------------------------------------------------------------------------------------------------


def make_model(folder: Path) -> Path:
    """Random weights in the shape of a model of 135 million parameters."""
    maker = [sys.executable, "-P", "-m", "accelgen.scripts.make_random_model"]
    subprocess.run([*maker, "--shape", "smollm2-135m", str(folder)], check=True)
    return folder


def measure(model: Path, path: Path, seconds: int) -> Path:
    """`accelgen profile`, with the limits that the server will have."""
    limits = ["--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(TOKENS)]
    words = ["profile", "--model", str(model), "--kv-blocks", str(BLOCKS), *limits]
    subprocess.run([*CLI, *words, "--budget-s", str(seconds), "--output", str(path)], check=True)
    return path


def write_trace(arrivals: list[Arrival], path: Path) -> Path:
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["arrived_at", "prompt_tokens", "output_tokens"])
        writer.writerows((a.at_s, a.prompt_tokens, a.output_tokens) for a in arrivals)
    return path


def serve(
    model: Path, profile: Path, trace: Path, policy: str, ttft: float, tpot: float, folder: Path
) -> dict[str, Any]:
    """One live run: the result of `accelgen bench serve`."""
    place = Path(tempfile.mkdtemp(prefix="live-", dir=folder))
    run_dir = place / "run"  # goes with the server
    up = [
        *CLI, "up", "--model", str(model), "--port", "0", "--policy", policy, "--kv-blocks", str(BLOCKS),
        "--max-num-seqs", str(SEATS), "--max-num-batched-tokens", str(TOKENS), "--profile-file", str(profile),
        "--run-dir", str(run_dir), "--detach",
    ]  # fmt: skip
    subprocess.run(up, check=True, stdout=subprocess.DEVNULL)
    try:
        status = [*CLI, "status", "--json", "--run-dir", str(run_dir)]
        url = json.loads(subprocess.run(status, check=True, capture_output=True).stdout)["url"]
        bench = [
            *CLI, "bench", "serve", "--url", url, "--trace", str(trace), "--num-warmups", "2", "--save-result",
            "--save-detailed", "--result-dir", str(place), "--result-filename", "bench.json", "--disable-tqdm",
            "--slo", f"ttft={1e3 * ttft:g},tpot={1e3 * tpot:g}",
        ]  # fmt: skip
        subprocess.run(bench, check=True, stdout=subprocess.DEVNULL)
    finally:
        subprocess.run([*CLI, "down", "--run-dir", str(run_dir)], stdout=subprocess.DEVNULL)
    found: dict[str, Any] = json.loads((place / "bench.json").read_text())
    if found["failed"]:
        raise click.ClickException(f"{policy}: requests failed: {found['failures']}")
    return found


# --- simulated ---------------------------------------------------------------------------------------------------


def simulate(profile: Path, arrivals: list[Arrival], policy: str, host_s: float) -> Run:
    """The same requests on the machine that the profile describes."""
    device = profiled_device(profile, 0, host_s)
    config = Config(
        policy=policy, kv_blocks=BLOCKS, max_num_seqs=SEATS, max_num_batched_tokens=TOKENS,
        slo_classes={"standard": SloClass(max_queue_ms=86_400_000)},
    )  # fmt: skip
    return Simulation(load_policy(policy, {}), Workload("live", arrivals), device, config).go()


def figures(run: Run) -> Figures:
    """In the terms of `accelgen bench serve`, seconds."""
    times = Times.of(run.fates)
    attained = times.attains()[Rule.CUMULATIVE]
    return {
        "ttft": float(times.ttft_s.mean()),
        "tpot": float(np.nanmean(times.tpot_s)),
        "e2el": float(times.jct_s.mean()),
        "attainment": float(attained.mean()),
    }


def live_figures(result: dict[str, Any]) -> Figures:
    means = {name: result[f"mean_{name}_ms"] / 1e3 for name in FIGURES}
    return means | {"attainment": result["slo_attainment"]["all"][Rule.CUMULATIVE]}


def fit_host(profile: Path, arrivals: list[Arrival], policy: str, result: dict[str, Any]) -> float:
    """The time per iteration beyond the forward pass, on the mean TPOT of the first half of the requests."""
    half = len(arrivals) // 2
    each = [
        (times[-1] - times[0]) / (len(times) - 1)
        for times in result["token_times"][:half]
        if len(times) > 1
    ]
    wanted_s = float(np.mean(each))
    low_s, high_s = 0.0, wanted_s
    for _ in range(12):
        middle_s = (low_s + high_s) / 2
        found = Times.of(simulate(profile, arrivals, policy, middle_s).fates).tpot_s[:half]
        if np.nanmean(found) < wanted_s:
            low_s = middle_s
        else:
            high_s = middle_s
    return low_s


def report(
    profile: Path,
    arrivals: list[Arrival],
    names: list[str],
    seen: list[dict[str, dict[str, Any]]],
    host_s: float,
) -> dict[str, Any]:
    """Prints the table; what is kept."""
    rows, kept = [], True
    print(f"host time beyond the forward pass, fitted: {1e3 * host_s:.2f} ms per iteration")
    print(
        "| policy | figure | live (median of rounds) | rounds | simulated | error | without host time |"
    )
    print("|---|---|---|---|---|---|---|")
    live_by: dict[str, Figures] = {}
    simulated_by: dict[str, Figures] = {}
    for policy in names:
        rounds = [live_figures(by_policy[policy]) for by_policy in seen]
        live_by[policy] = {name: median(one[name] for one in rounds) for name in rounds[0]}
        simulated_by[policy] = figures(simulate(profile, arrivals, policy, host_s))
        bare = figures(simulate(profile, arrivals, policy, 0.0))
        for name, real in live_by[policy].items():
            found = simulated_by[policy][name]
            error = found / real - 1 if real else None
            if name in FIGURES:
                kept = kept and error is not None and abs(error) <= LIMIT
            each = [one[name] for one in rounds]
            rows.append(
                {"policy": policy, "figure": name, "live": real, "rounds": each, "simulated": found,
                 "error": error, "without_host": bare[name]}
            )  # fmt: skip
            shown = ", ".join(f"{one:.3f}" for one in each)
            off = "-" if error is None else f"{error:+.1%}"
            cells = [policy, name, f"{real:.3f}", shown, f"{found:.3f}", off, f"{bare[name]:.3f}"]
            print("|", " | ".join(cells), "|")
    orders = {
        figure: [sorted(names, key=lambda policy: by[policy][figure]) for by in (live_by, simulated_by)]
        for figure in (*FIGURES, "attainment")
    }  # fmt: skip
    for figure, (real_order, found_order) in orders.items():
        print(
            f"order by {figure}: live {' < '.join(real_order)}; simulated {' < '.join(found_order)}"
        )
    print(f"means of TTFT, TPOT, E2E within {LIMIT:.0%}: {kept}")
    return {"rows": rows, "kept": kept, "orders": orders, "limit": LIMIT}
