"""One iteration going round: what four processes cost over the same cores in one process, and who spends which part.

    python benchmarks/iteration.py MODEL_DIR [--requests 8] [--tokens 200] [--threads 1] [--figure docs/iteration.svg]

Two ways of running the same decode load, taken in turns: (a) scheduler, KV and worker cores called one after the
other in one process; (b) `accelgen up`, driven over HTTP, with message times recorded. Printed: the time from one
iteration to the next in both, their ratio (budget: 2 %), and how long the worker idles between two
iterations. On a machine of few cores, `--threads` leaves some to the processes beside the worker, as a GPU would.
"""

from __future__ import annotations

import asyncio
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
import httpx
import msgspec

sys.path.insert(0, str(Path(__file__).parent))
from iteration_rounds import WARM, Records, Rounds, draw

from accelgen.faults.machine import machine

WORKER_ENV = {"OMP_NUM_THREADS": str(os.cpu_count()), "GOMP_SPINCOUNT": "10000"}
PROMPT = 64  # tokens


def in_one_process(model: str, dtype: str, requests: int, tokens: int) -> list[float]:
    """Seconds from one iteration to the next, all cores in this process; called in a fresh one."""
    from accelgen.kvmanager.core import KvCore
    from accelgen.proto.clocks import now_s
    from accelgen.proto.config import Config
    from accelgen.proto.messages import Objective, Plan, Prompt, Role, Sampling, Submit
    from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
    from accelgen.scheduler.cost_model import fit
    from accelgen.scheduler.policy import load_policy
    from accelgen.worker.engine import start_engine

    config = Config(model=model, dtype=dtype, policy="sarathi", pipeline_depth=0)
    engine = start_engine(config)
    facts = engine.facts
    coefficients = fit(facts.samples) if facts.samples else None
    spec = ReplicaSpec(facts.num_blocks, facts.block_size, coefficients)
    core = SchedulerCore(config, load_policy("sarathi", {}), {0: spec})
    kv = KvCore(facts.num_blocks, facts.block_size)
    for id in range(1, requests + 1):
        prompt = Prompt(id, [5 + (id * 31 + i) % 4000 for i in range(PROMPT)], Sampling(0.0))
        core.on_submit(Submit(prompt, tokens, [], Objective(), "batch", 0.0), 0, now_s())
    periods, last_s = [], now_s()
    while len(core.replicas[0].table):
        outgoing, core.outbox = core.outbox, []
        for role, _, body in outgoing:
            if role is Role.FRONTEND:
                continue
            if not isinstance(body, Plan):
                core.on_report(kv.on_lookup(body), 0, now_s())
                continue
            batch, report = kv.on_plan(body)
            core.on_report(report, 0, now_s())
            core.on_result(engine.core.execute(batch), 0, now_s())
            kv.settle()
            if len(batch.ids) == requests:
                periods.append(now_s() - last_s)
            last_s = now_s()
        core.tick(now_s())
    return periods


def through_four(
    model: str, dtype: str, requests: int, tokens: int, folder: Path
) -> tuple[dict[str, Records], list[float]]:
    """Message records by process of a real server under the same load; when the clients received something."""
    command = [
        sys.executable, "-P", "-m", "accelgen.scripts.cli", "up", "--model", model, "--port", "0",
        "--dtype", dtype, "--policy", "sarathi", "--log-level", "warning",
        "--recorder-events", "1000000", "--recorder-bytes", str(1 << 30),
    ]  # fmt: skip
    run = folder / "run"
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
    server = subprocess.Popen(
        [*command, "--run-dir", str(run)], env=environment, stdout=subprocess.DEVNULL
    )
    try:
        url = _wait_ready(server, run)
        arrivals = asyncio.run(_load(url, requests, tokens))
        records = recorded(run)
    finally:
        server.terminate()
        server.wait(30)
    return records, arrivals


def recorded(run: Path) -> dict[str, Records]:
    """What every process remembers of its messages: [moment, "send", "recv" or "begin", type, step]."""
    from accelgen.proto.dumps import FOLDER
    from accelgen.proto.recording import read_recording
    from accelgen.supervisor.client import ask_to_dump

    answers, silent = ask_to_dump(run, 60)
    assert not silent and not any(answer.fault for answer in answers)
    recordings = [read_recording(run / FOLDER / answer.file) for answer in answers]
    return {one.process: _rows(one.events) for one in recordings}


def _rows(events: Any) -> Records:
    """A plan is begun when its "plan begun" says."""
    from accelgen.proto.recording import Message

    rows: Records = []
    begun_s = 0.0
    for event in events:
        if not isinstance(event, Message):
            begun_s = event.values["now_s"] if event.name == "plan begun" else begun_s
        elif event.kind in ("Plan", "KvReport", "Batch", "StepResult", "Tokens"):
            step = event.field("step")
            if event.kind == "Plan" and event.direction == "send":
                rows.append((begun_s, "begin", "Plan", step))
            rows.append((event.moment_s, event.direction, event.kind, step))
    return rows


def _wait_ready(server: subprocess.Popen[bytes], run: Path) -> str:
    from accelgen.supervisor.client import ask_directory
    from accelgen.supervisor.errors import StartError

    until_s = time.monotonic() + 120
    while time.monotonic() < until_s and server.poll() is None:
        try:
            directory = ask_directory(run)
        except (StartError, OSError):
            time.sleep(0.1)
            continue
        # A spare that is still starting would take CPU from what is measured, and miss the question for its records.
        if directory.ready and any(member.phase == "standby" for member in directory.members):
            return str(directory.config["url"])
        time.sleep(0.1)
    raise SystemExit("the server did not become ready")


async def _load(url: str, requests: int, tokens: int) -> list[float]:
    arrivals: list[float] = []
    async with httpx.AsyncClient(timeout=600) as http:
        name = (await http.get(f"{url}/v1/models")).json()["data"][0]["id"]

        async def ask(i: int) -> None:
            body = {
                "model": name, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True,
                "prompt": [5 + (i * 31 + j) % 4000 for j in range(PROMPT)],
                "accelgen": {"slo_class": "batch"},
            }  # fmt: skip
            async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
                async for _ in response.aiter_raw():
                    arrivals.append(time.monotonic())

        await asyncio.gather(*(ask(i) for i in range(requests)))
    return arrivals


@click.command()
@click.argument("model")
@click.option("--dtype", default="bfloat16")
@click.option("--requests", default=8)
@click.option("--tokens", default=200)
@click.option("--rounds", default=3)
@click.option("--threads", default=os.cpu_count(), help="of the worker")
@click.option("--figure", type=Path)
@click.option("--alone", is_flag=True, hidden=True)
def main(
    model: str,
    dtype: str,
    requests: int,
    tokens: int,
    rounds: int,
    threads: int,
    figure: Path | None,
    alone: bool,
) -> None:
    """See the head of this file."""
    if alone:
        print(json.dumps(in_one_process(model, dtype, requests, tokens)))
        return
    os.environ |= {**WORKER_ENV, "OMP_NUM_THREADS": str(threads)}
    one: list[float] = []
    four: list[float] = []
    idle: list[float] = []
    last: Any = None
    for _ in range(rounds):
        command = [
            sys.executable, __file__, model, "--dtype", dtype, "--requests", str(requests), "--tokens", str(tokens),
        ]  # fmt: skip
        done = subprocess.run([*command, "--alone"], capture_output=True, check=True)
        one.append(statistics.median(msgspec.json.decode(done.stdout.splitlines()[-1])[WARM:-WARM]))
        with tempfile.TemporaryDirectory(prefix="ag-") as folder:
            os.chmod(folder, 0o700)
            last = Rounds(*through_four(model, dtype, requests, tokens, Path(folder)))
        four.append(statistics.median(last.periods()))
        idle.append(sum(last.idles()) / sum(last.periods()))
    ratio = statistics.median(f / o for f, o in zip(four, one, strict=True))
    print(f"{date.today()}  {machine()}")
    print(
        f"model {Path(model).name}, {dtype}, {requests} requests decoding, worker of {threads} threads, "
        f"{rounds} rounds in turns"
    )
    print("one process    ms per iteration: " + "  ".join(f"{v * 1e3:.2f}" for v in one))
    print("four processes ms per iteration: " + "  ".join(f"{v * 1e3:.2f}" for v in four))
    print(f"ratio four / one: {ratio:.3f}   (budget: at most 1.02 at a 10 ms step)")
    print("worker idle share: " + "  ".join(f"{v:.2%}" for v in idle) + "   (budget: at most 1 %)")
    for name, (begin, end) in last.parts().items():
        print(
            f"  {name:28s} {begin * 1e3:7.2f} .. {end * 1e3:7.2f} ms   {1e3 * (end - begin):6.2f} ms"
        )
    if figure:
        note = f"One iteration going round: {requests} requests, {statistics.median(four) * 1e3:.1f} ms a step"
        for suffix in (figure.suffix, ".png"):
            draw(last.parts(), statistics.median(four), figure.with_suffix(suffix), note)


if __name__ == "__main__":
    main()
