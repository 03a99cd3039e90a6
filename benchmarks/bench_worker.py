"""The worker beside transformers' static batch, same weights (135M shape, bfloat16), same run, interleaved.

`pytest -s benchmarks/bench_worker.py` prints and writes benchmarks/results/worker-*.json. First the floors: a decode
step reads every weight once (bytes / bandwidth) and multiplies (operations / rate), a prefill multiplies. Then what
happened. Rounds alternate between the two, because the machine may be shared: compare ratios of one run, not times of
two runs, and the ratio of processor time before that of wall time.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the supervisor starts the worker

import pytest
import torch
from click.testing import CliRunner

from accelgen.faults.machine import machine
from accelgen.proto.config import Config
from accelgen.proto.messages import Batch, Prompt, Sampling
from accelgen.worker.engine import Engine, start_engine

SHAPE, REQUESTS, PROMPT, ANSWER = "smollm2-135m", 32, 256, 64
BATCHES, STEPS, ROUNDS = (1, 8, 32), 12, 3
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Time:
    """Wall and processor seconds of one run (all threads). On a shared machine the second says more."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True)
class Pair:
    """Both sides, round by round."""

    ours: list[Time]
    theirs: list[Time]

    def row(self, name: str, unit: str, scale: float) -> dict[str, Any]:
        """Medians. `scale` turns seconds into milliseconds, or is the number of tokens for a rate. Ratios above 1: we
        are faster, or need less of the processor."""

        def figure(times: list[Time]) -> float:
            wall_s = statistics.median(time.wall_s for time in times)
            return wall_s * scale if unit == "ms" else scale / wall_s

        rounds = list(zip(self.ours, self.theirs, strict=True))
        return {
            "what": name,
            "unit": unit,
            "ours": figure(self.ours),
            "transformers": figure(self.theirs),
            "ratio": statistics.median(b.wall_s / a.wall_s for a, b in rounds),
            "cpu_ratio": statistics.median(b.cpu_s / a.cpu_s for a, b in rounds),
        }


def timed(work: Callable[[], Any]) -> Time:
    begin, cpu = time.perf_counter(), time.process_time()
    work()
    return Time(time.perf_counter() - begin, time.process_time() - cpu)


def interleaved(
    ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int = ROUNDS, warm: bool = False
) -> Pair:
    """In turn, each once before to warm up."""
    if not warm:
        ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(rounds)]
    return Pair([a for a, _ in pairs], [b for _, b in pairs])


class Ours:
    """Drives a worker core as scheduler and KV manager would: whole prompts, then decodes of all."""

    def __init__(self, engine: Engine) -> None:
        self.core, self.size = engine.core, engine.facts.block_size
        self.step, self.next_id = 0, 1
        self.release: list[int] = []

    def start(self, count: int, prompt: int, room: int) -> list[int]:
        """Prefills `count` prompts in one iteration; returns their ids."""
        ids = list(range(self.next_id, self.next_id + count))
        self.next_id += count
        blocks = -(-(prompt + room) // self.size)
        new = [
            Prompt(id, [(id + i) % 1000 for i in range(prompt)], Sampling(temperature=0.0))
            for id in ids
        ]
        tables = list(range(count * blocks))
        self._send(new, ids, [0] * count, [prompt] * count, [0] * count, [blocks] * count, tables)
        self.release = ids
        return ids

    def decode(self, ids: list[int]) -> None:
        """One more token for each; the tables reach far enough already."""
        starts = [len(self.core.requests[id].tokens) - 1 for id in ids]
        ends = [len(self.core.requests[id].table) for id in ids]
        self._send([], ids, starts, [1] * len(ids), ends, [0] * len(ids), [])

    def _send(self, new: list[Prompt], ids: list[int], *columns: list[int]) -> None:
        release = self.release if new else []
        result = self.core.execute(Batch(self.step, new, ids, *columns, [], [], release, 0.1, 60.0))
        assert not result.failed and sum(result.counts) == len(ids), result.causes[:1]
        self.step += 1

    def job(self) -> None:
        ids = self.start(REQUESTS, PROMPT, ANSWER)
        for _ in range(ANSWER - 1):
            self.decode(ids)


class Theirs:
    """transformers' own model and static batch."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
        self.model.generation_config.eos_token_id = None

    def job(self) -> None:
        ids = torch.arange(REQUESTS * PROMPT).view(REQUESTS, PROMPT) % 1000
        with torch.inference_mode():
            out = self.model.generate(ids, max_new_tokens=ANSWER, do_sample=False)
        assert out.shape[1] == PROMPT + ANSWER

    def prefill(self, count: int) -> None:
        ids = torch.arange(count * PROMPT).view(count, PROMPT) % 1000
        with torch.inference_mode():
            self.model(input_ids=ids, use_cache=True, logits_to_keep=1)

    def decoder(self, count: int) -> Callable[[], None]:
        """A function that does STEPS decode steps behind a cache of PROMPT tokens."""
        ids = torch.arange(count * PROMPT).view(count, PROMPT) % 1000
        with torch.inference_mode():
            cache = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

        def steps() -> None:
            last = ids[:, -1:]
            with torch.inference_mode():
                for _ in range(STEPS):
                    out = self.model(
                        input_ids=last, past_key_values=cache, use_cache=True, logits_to_keep=1
                    )
                    last = out.logits[:, -1:].argmax(-1)
                cache.crop(-STEPS)

        return steps


def floors(engine: Engine) -> dict[str, float]:
    """What the machine could do at best: reading speed, and the better of its two multiplication rates."""
    block = torch.ones(64 << 20)
    read_s = min(timed(block.sum).wall_s for _ in range(5))
    rates = {}
    for dtype in (torch.bfloat16, torch.float32):
        a, b = torch.ones(1024, 2048, dtype=dtype), torch.ones(2048, 2048, dtype=dtype)
        rates[dtype] = (
            2
            * 1024
            * 2048
            * 2048
            / min(timed(partial(torch.matmul, a, b)).wall_s for _ in range(5))
        )
    weights = engine.core.runner.loaded.weights_bytes
    work = weights  # 2 operations for each 2-byte weight
    rate = max(rates.values())
    return {
        "read_gb_s": block.nbytes / read_s / 1e9,
        "bfloat16_gflop_s": rates[torch.bfloat16] / 1e9,
        "float32_gflop_s": rates[torch.float32] / 1e9,
        **{
            f"decode_{n}_floor_ms": 1e3 * max(weights * read_s / block.nbytes, n * work / rate)
            for n in BATCHES
        },
        "prefill_floor_tok_s": rate / work,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from accelgen.scripts.make_random_model import main

    made = tmp_path_factory.mktemp("model") / SHAPE
    outcome = CliRunner().invoke(main, ["--shape", SHAPE, str(made)], catch_exceptions=False)
    assert outcome.exit_code == 0, outcome.output
    return made


@pytest.mark.timeout(3600)
def test_worker_beside_transformers(folder: Path) -> None:
    engine = start_engine(
        Config(model=str(folder), max_num_seqs=64, max_model_len=2048, profile_file="none")
    )
    ours, theirs = Ours(engine), Theirs(folder)
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "processor": machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "torch": torch.__version__,
        "model": SHAPE,
        "floors": floors(engine),
    }
    rows = [decode_row(ours, theirs, count) for count in BATCHES]
    rows += [prefill_row(ours, theirs, count) for count in (1, 8)]
    job = interleaved(ours.job, theirs.job, 2, warm=True)
    rows.append(job.row(f"{REQUESTS} x ({PROMPT} in, {ANSWER} out)", "tok/s", REQUESTS * ANSWER))
    report["rows"] = rows
    report["job"] = asdict(job)
    show(report)
    RESULTS.mkdir(exist_ok=True)
    name = f"worker-{report['date'][:10]}.json"
    (RESULTS / name).write_text(json.dumps(report, indent=1) + "\n")


def decode_row(ours: Ours, theirs: Theirs, count: int) -> dict[str, Any]:
    ids = ours.start(count, PROMPT, (ROUNDS + 2) * STEPS)

    def step() -> None:
        for _ in range(STEPS):
            ours.decode(ids)

    pair = interleaved(step, theirs.decoder(count))
    return pair.row(f"decode step, batch {count}, context {PROMPT}", "ms", 1e3 / STEPS)


def prefill_row(ours: Ours, theirs: Theirs, count: int) -> dict[str, Any]:
    pair = interleaved(lambda: ours.start(count, PROMPT, 0), lambda: theirs.prefill(count))
    return pair.row(f"prefill {count} x {PROMPT}", "tok/s", count * PROMPT)


def show(report: dict[str, Any]) -> None:
    print(
        f"\n{report['processor']}, {report['threads']} threads, load {report['load']:.1f}, {report['date']}"
    )
    for name, value in report["floors"].items():
        print(f"  {name:40} {value:10.1f}")
    print(f"  {'':40} {'ours':>10} {'transformers':>13} {'ratio':>7} {'of CPU':>7}")
    for row in report["rows"]:
        print(
            f"  {row['what'] + ', ' + row['unit']:40} {row['ours']:10.1f} {row['transformers']:13.1f}"
            f" {row['ratio']:7.2f} {row['cpu_ratio']:7.2f}"
        )
