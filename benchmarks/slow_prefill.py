"""A prompt that legitimately takes longer than any usual bound: nobody may take the worker for dead.

    python benchmarks/slow_prefill.py [--shape smollm2-135m] [--prompt 7000] [--rows FILE]

Starts a server with a random model and room for the whole prompt in one iteration, lets it see a short prompt first (so
that its cost model knows the machine), then sends the long one beside a stream. Printed: the longest iteration, and
whether any process was started again. On a fast machine make the prompt longer or the model larger.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import click
import httpx
import psutil

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
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


def status(run_dir: str) -> dict[str, object]:
    command = [*CLI, "status", "--json", "--run-dir", run_dir]
    done = subprocess.run(command, check=True, capture_output=True)
    return dict(json.loads(done.stdout))


def pids(run_dir: str) -> dict[str, int]:
    members = status(run_dir)["members"]
    assert isinstance(members, list)
    return {f"{m['role']}-{m['index']}": int(m["pid"]) for m in members}


def longest_step_s(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    found = re.findall(r"^accelgen:worker_step_seconds\{.*\} (\S+)$", text, re.M)
    return max(map(float, found), default=0.0)


def watch(url: str, done: threading.Event, seen: list[float]) -> None:
    """The longest iteration that the metrics ever show."""
    while not done.wait(0.25):
        seen.append(longest_step_s(url))


def measure(folder: Path, shape: str, prompt: int) -> dict[str, object]:
    model, run_dir = str(folder / "model"), str(folder / "run")
    make = [sys.executable, "-P", "-m", "accelgen.scripts.make_random_model", model]
    subprocess.run([*make, "--shape", shape], check=True, stdout=subprocess.DEVNULL)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    options = [
        "--policy",
        "vllm",
        "--dtype",
        "float32",
        "--max-num-batched-tokens",
        "65536",
        "--max-step-s",
        "300",
    ]
    up = [*CLI, "up", "--port", "0", "--detach", "--run-dir", run_dir, "--model", model, *options]
    subprocess.run(up, check=True, env=environment, stdout=subprocess.DEVNULL)
    try:
        before, url = pids(run_dir), str(status(run_dir)["url"])
        done, seen = threading.Event(), [0.0]
        threading.Thread(target=watch, args=(url, done, seen)).start()
        for tokens in (64, 512, 1024):
            completion(url, "model", tokens, 2)
        took_s = completion(url, "model", prompt, 2)
        time.sleep(1.5)  # a heartbeat brings the last figures
        done.set()
        return {
            "case": "10 s prefill", "prompt": prompt, "shape": shape, "took_s": round(took_s, 1),
            "longest_step_s": round(max(seen), 1), "restarted": pids(run_dir) != before,
        }  # fmt: skip
    finally:
        subprocess.run([*CLI, "down", "--run-dir", run_dir], stdout=subprocess.DEVNULL)


@click.command()
@click.option("--shape", default="smollm2-135m")
@click.option("--prompt", default=7000, help="tokens")
@click.option("--rows", type=click.Path(path_type=Path), help="append the row to this file")
def main(shape: str, prompt: int, rows: Path | None) -> None:
    """One long prefill; exit status 1 if it was not long, or if anybody was killed for it."""
    with tempfile.TemporaryDirectory(prefix="ag-") as name:
        row = measure(Path(name), shape, prompt)
    row |= {"date": date.today().isoformat(), "cores": psutil.cpu_count()}
    print(json.dumps(row))
    if rows is not None:
        with rows.open("a") as file:
            file.write(json.dumps(row) + "\n")
    step_s = float(str(row["longest_step_s"]))
    if step_s < LONG_S:
        print(f"the longest iteration took {step_s:.1f} s: not long enough to show anything")
    sys.exit(1 if row["restarted"] or step_s < LONG_S else 0)


if __name__ == "__main__":
    main()
