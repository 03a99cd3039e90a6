"""What a decision costs each policy: processor time of one whole plan of a full server (budgets for p99: 1 ms with
2,000 waiting, 5 ms with 10,000).

    python benchmarks/decisions.py [--policies sarathi,accelgen] [--waiting 256,2000,10000] [--rounds 400] [--write]

256 requests run and so many wait, half of whose deadlines are past; whoever ends is replaced by a new arrival, so the
queue keeps its length. KV core and worker are those of the simulator. Timed is `SchedulerCore.tick`: view, policy,
check, projection, Plan; not the taking in of reports and results. `core alone` is the same with a policy that goes on
with whatever runs and looks at nothing else: what no rule can go below. The clock is the thread's processor time, so
that other work on the machine costs nothing but cold caches; compare policies, or two versions, within one run.

2026-11-21, 2,000 waiting, p50 of the version before and of the one after on a machine with a load of 2 to 5, ms; what
was expected stands behind it. Decisions are the same (tests/scheduler/test_accelgen_equality.py, and all plans here).

    core alone             0.20 -> 0.12   arrays and features of a decision are made once
    accelgen               2.8  -> 0.5    newcomers that cannot start are left out before windows are compared (below 1)
    accelgen-no-batching   1.9  -> 0.55   likewise
    accelgen-no-chunking   2.4  -> 0.5    likewise
    accelgen-no-ordering   1.4  -> 0.5    likewise; decodes are taken together once nobody else can join (a third)
    qoserve, p99           1.9  -> 0.75   places of relegated requests come with the decision, not one by one (half)
    slidingserve           0.7  -> 0.53   victims are ranked only when blocks are short (a tenth)
    sarathi                0.25 -> 0.18   likewise (a fifth)

p99 was 1.4 to 2.3 times p50 there, of `core alone`, too. What stays beyond the budgets: benchmarks/results. Of
`fastserve` it is the few iterations after each 1,000th, when those that starve change places with most that run.
"""

from __future__ import annotations

import gc
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import click
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from truth_results import save

from accelgen.kvmanager.core import KvCore
from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Finished, Lookup, Objective, Plan, Prompt, StepResult, Submit
from accelgen.proto.policies import known_policies
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.policies.shared import FirstCome
from accelgen.scheduler.policy import Decision, Policy, View, is_decode, load_policy
from accelgen.simulator.device import find_device
from accelgen.simulator.worker import STOP, SimulatedWorker

RUNNING, BLOCKS, BLOCK_SIZE = 256, 60_000, 16
DEVICE = find_device("opt-13b", "a100")
BUDGET_MS = {256: 1.0, 2_000: 1.0, 10_000: 5.0}
WARM_UP = 40
FLOOR = "core alone"


class GoOn(FirstCome):
    """Every running request, one token each."""

    name = FLOOR

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table = view.table
        slots = [slot for _, slot in table.waiting] if not len(table.running) else table.running
        counts = (table.length[slots] - table.computed[slots]).tolist()
        return Decision(list(map(int, slots)), counts, []), None


class Loop:
    """A scheduler core with a KV core and a simulated worker, `waiting` requests in the queue throughout."""

    def __init__(self, policy: Policy, waiting: int) -> None:
        config = Config(
            max_num_seqs=RUNNING, max_queued_requests=50_000, max_queued_tokens=10**9,
            slo_classes={"standard": SloClass(max_queue_ms=86_400_000)},
        )  # fmt: skip
        spec = ReplicaSpec(BLOCKS, BLOCK_SIZE, DEVICE.coefficients)
        self.core = SchedulerCore(config, policy, {0: spec})
        self.kv = KvCore(BLOCKS, BLOCK_SIZE)
        self.stops: dict[int, int] = {}
        self.worker = SimulatedWorker(DEVICE, self.stops)
        self.now_s, self.id, self.ended = 100.0, 0, 0
        self.cpu_s: list[float] = []
        self.draw = random.Random(0)
        for _ in range(RUNNING):  # they start before anybody queues behind them
            self.submit(self.draw.choice([64, 128, 256, 512]), 0.0)
        while not self.all_decode():
            self.round()
        for _ in range(waiting):
            self.submit(self.draw.randrange(64, 4000), self.draw.uniform(0, 30))
        self.ended = 0
        gc.collect()
        gc.freeze()

    def all_decode(self) -> bool:
        table = self.core.replicas[0].table
        return len(table.running) + self.ended == RUNNING and bool(
            is_decode(table, table.running).all()
        )

    def submit(self, tokens: int, waited_s: float) -> None:
        """A new request: 1 to 2,000 tokens of output, objectives drawn."""
        self.id += 1
        draw = self.draw
        self.stops[self.id] = tokens + draw.randint(1, 2000)
        slo = Objective(draw.uniform(1, 60), draw.uniform(0.1, 0.3))
        prompt = Prompt(self.id, [self.id] * tokens)
        submit = Submit(prompt, 4000, [STOP], slo, "standard", waited_s)
        self.core.on_submit(submit, 0, self.now_s)
        self.drain()

    def round(self) -> None:
        """One iteration; the timed part is the tick."""
        begin_s = time.thread_time()
        self.core.tick(self.now_s)
        self.cpu_s.append(time.thread_time() - begin_s)
        result = self.drain()
        assert result is not None, "nothing was planned"
        self.core.on_result(result, 0, self.now_s)
        self.drain()
        for _ in range(self.ended if self.id > RUNNING else 0):
            self.submit(self.draw.randrange(64, 4000), 0.0)
        self.ended = 0 if self.id > RUNNING else self.ended

    def drain(self) -> StepResult | None:
        """Does what the scheduler says; the result of a Plan if there was one."""
        result = None
        while self.core.outbox:
            outbox, self.core.outbox = self.core.outbox, []
            for _, _, body in outbox:
                if isinstance(body, Lookup):
                    self.core.on_report(self.kv.on_lookup(body), 0, self.now_s)
                elif isinstance(body, Plan):
                    batch, report = self.kv.on_plan(body)
                    self.kv.settle()
                    self.core.on_report(report, 0, self.now_s)
                    self.now_s, result = self.worker.run(batch, self.now_s)
                elif isinstance(body, Finished):
                    self.ended += len(body.ends)
        return result


def measure(policy: Policy, waiting: int, rounds: int) -> dict[str, Any]:
    """Percentiles in milliseconds."""
    loop = Loop(policy, waiting)
    for _ in range(WARM_UP + rounds):
        loop.round()
    p50, p99 = np.percentile(loop.cpu_s[-rounds:], [50, 99]) * 1e3
    gc.unfreeze()
    running = len(loop.core.replicas[0].table.running)
    row = {"policy": policy.name, "waiting": waiting, "running": running}
    return row | {"p50_ms": round(p50, 4), "p99_ms": round(p99, 4)}


@click.command()
@click.option("--policies", default="", help="Names with commas between them; all if left out.")
@click.option("--waiting", default="256,2000,10000", show_default=True)
@click.option("--rounds", default=400, show_default=True)
@click.option("--write", is_flag=True, help="Keep the figures in benchmarks/results.")
def main(policies: str, waiting: str, rounds: int, write: bool) -> None:
    """What a decision costs each policy."""
    names = policies.split(",") if policies else known_policies()
    rows = []
    print(
        f"{'policy':22} {'waiting':>7} {'running':>7} {'p50 ms':>8} {'p99 ms':>8} {'p99 / budget':>13}"
    )
    for length in map(int, waiting.split(",")):
        budget_ms = BUDGET_MS.get(length, 1.0 if length <= 2_000 else 5.0)
        for policy in [GoOn(), *(load_policy(name, {}) for name in names)]:
            row = measure(policy, length, rounds) | {"budget_ms": budget_ms}
            rows.append(row)
            print(
                f"{policy.name:22} {length:7} {row['running']:7} {row['p50_ms']:8.3f} {row['p99_ms']:8.3f}"
                f" {row['p99_ms'] / budget_ms:13.2f}"
            )
    if write:
        save("decisions", {"rounds": rounds, "load_average": os.getloadavg()[0], "rows": rows})


if __name__ == "__main__":
    main()
