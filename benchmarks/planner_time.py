"""What planning costs `slos-serve`: processor time of a round that judges and plans, and of an arrival that is routed.

    python benchmarks/planner_time.py [--running 0,32,128,246] [--waiting 0,10,50,200] [--params admission=edf_sim]
                                      [--drafts 6]

A replica's table is drawn anew for each sample: so many requests decode, so many admitted prompts wait (as many as
there are seats), and ten new requests are judged. `round` is one `plan` that makes a plan, `arrival` one `admit` that
asks four such replicas, which is the worst case where none of them has room. Objectives are those of SLOs-Serve's
services (3 or 5 times a prompt alone; 50 or 100 ms per token; arXiv 2504.08784), decodes a few percent ahead of or
behind their line; with `--drafts` there is a drafter of so many tokens, of which 0.6 are accepted, 3.34 ms each (the
authors' figures). The paper's budget is 10 ms. The clock is the thread's processor time. `--write` keeps the figures.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from truth_results import save

from accelgen.proto.messages import Objective, Sampling
from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.policies.slos_serve import Memory, SlosServe
from accelgen.scheduler.policy import Limits, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import RequestTable
from accelgen.simulator.device import find_device

BUDGET_MS, NEW, REPLICAS, SEATS, BLOCKS = 10.0, 10, 4, 256, 40_000
NOW_S = 100.0
DEVICE = find_device("llama-3-8b", "h100")
TRIALS, ACCEPTED, STEP_S = 1000, 600, 3.34e-3


class Scene:
    """A replica in the middle of its work: `running` decodes, `waiting` admitted prompts, ten new ones."""

    def __init__(
        self, policy: SlosServe, running: int, waiting: int, drafts: int, draw: random.Random
    ) -> None:
        self.speculation = Speculation(drafts, hits=ACCEPTED, trials=TRIALS, step_s=STEP_S)
        self.policy, self.draw, self.table = policy, draw, RequestTable(16)
        self.cost = CostModel(DEVICE.coefficients)
        self.id = 0
        old = [self.decode() for _ in range(running)]
        old += [self.arrival(draw.uniform(0, 1)) for _ in range(min(waiting, SEATS - running))]
        admitted = frozenset(self.table.ids[old].tolist())
        self.state: Memory = Memory(admitted=admitted)
        for slot in old[running:]:
            self.table.move(slot, policy.order_key(self.view, slot, self.state))
        for _ in range(NEW):
            self.arrival(draw.uniform(0, 0.1))

    @property
    def view(self) -> View:
        limits = Limits(SEATS, 16_384, 10.0)
        return View(
            self.table, BLOCKS, 0, 2 * BLOCKS, limits, self.cost, speculation=self.speculation
        )

    def request(self) -> Request:
        """Lengths about those of ShareGPT's conversations."""
        draw = self.draw
        self.id += 1
        prompt = min(4000, max(4, int(draw.lognormvariate(5.0, 1.3))))
        alone_s = self.cost.predict(Work(prompt, prefill_work=prompt * prompt / 2))
        slo = Objective(draw.choice([3, 5]) * alone_s + 0.2, draw.choice([0.05, 0.1]))
        return Request(self.id, 0, [1] * prompt, Sampling(), 1024, frozenset(), slo, "standard")

    def arrival(self, waited_s: float) -> int:
        """A request that waits; its slot."""
        slot = self.table.add(self.request(), NOW_S - waited_s)
        self.table.predicted_output[slot] = self.draw.randrange(50, 800)
        self.table.enqueue(slot, self.policy.order_key(self.view, slot, Memory()))
        return slot

    def decode(self) -> int:
        """A request that has some tokens; its slot."""
        table, draw = self.table, self.draw
        slot = self.arrival(0.0)
        tokens = draw.randrange(2, 500)
        pace_s = float(table.tpot_s[slot])
        table.first_s[slot] = NOW_S - tokens * pace_s * draw.uniform(0.97, 1.05)
        table.first_due_s[slot] = table.first_s[slot]
        table.start(slot)
        table.plan(np.array([slot]), table.length[[slot]], NOW_S)
        table.length[slot] += tokens
        table.computed[slot] += tokens
        table.request(slot).generated = [1] * tokens
        return slot

    def round(self) -> None:
        """Judges and plans."""
        self.policy.plan(self.view, self.state, NOW_S)


def cpu_ms(work: Callable[[], object]) -> float:
    begin_s = time.thread_time()
    work()
    return (time.thread_time() - begin_s) * 1e3


def measure(
    policy: SlosServe, running: int, waiting: int, samples: int, drafts: int = 0
) -> dict[str, Any]:
    """Percentiles in milliseconds."""
    draw = random.Random(f"{running}/{waiting}")
    rounds, arrivals = [], []
    for _ in range(samples):
        scenes = [Scene(policy, running, waiting, drafts, draw) for _ in range(REPLICAS)]
        views, newcomer = [scene.view for scene in scenes], scenes[0].request()
        gc.collect()  # drawing leaves garbage that no decision made
        arrivals.append(cpu_ms(lambda: policy.admit(newcomer, views, NOW_S)))  # noqa: B023
        rounds.append(cpu_ms(scenes[0].round))
    row: dict[str, Any] = {"running": running, "waiting": min(waiting, SEATS - running)}
    for name, found in (("round", rounds), ("arrival", arrivals)):
        p50, p99 = np.percentile(found[1:], [50, 99])  # the first one pays for imports and caches
        row |= {f"{name}_p50_ms": round(float(p50), 3), f"{name}_p99_ms": round(float(p99), 3)}
        row[f"{name}_max_ms"] = round(max(found[1:]), 3)
    return row


@click.command()
@click.option("--running", default="0,32,128,246", show_default=True)
@click.option("--waiting", default="0,10,50,200", show_default=True)
@click.option("--samples", default=200, show_default=True)
@click.option("--params", default="", help="KEY=VALUE of the policy, with commas between them.")
@click.option("--drafts", default=0, show_default=True, help="Tokens of a drafter; 0: none.")
@click.option("--write", is_flag=True, help="Keep the figures in benchmarks/results.")
def main(running: str, waiting: str, samples: int, params: str, drafts: int, write: bool) -> None:
    """What planning costs slos-serve."""
    given: dict[str, Any] = dict(pair.split("=", 1) for pair in params.split(",") if pair)
    policy = SlosServe(**given)
    print(f"{'':16} {'a round, ms':>26} {'an arrival at 4 replicas, ms':>30}")
    print(f"{'running':>7} {'waiting':>8} " + f"{'p50':>9} {'p99':>8} {'max':>8}  " * 2)
    rows = []
    for many in map(int, running.split(",")):
        for queue in map(int, waiting.split(",")):
            row = measure(policy, many, queue, samples, drafts)
            rows.append(row)
            names, of = ("round", "arrival"), ("p50", "p99", "max")
            figures = [[row[f"{name}_{one}_ms"] for one in of] for name in names]
            shown = "  ".join(f"{a:9.2f} {b:8.2f} {c:8.2f}" for a, b, c in figures)
            late = " over" if max(figures[0][1], figures[1][1]) > BUDGET_MS else ""
            print(f"{row['running']:7} {row['waiting']:8} {shown}{late}", flush=True)
    if write:
        values = {
            "samples": samples,
            "params": given,
            "drafts": drafts,
            "load_average": os.getloadavg()[0],
        }
        save("planner-time", values | {"budget_ms": BUDGET_MS, "rows": rows})


if __name__ == "__main__":
    main()
