"""What a decision costs: one plan of 256 running requests with 0, 2,000 or 10,000 waiting (budget: DESIGN section 11).

`pytest benchmarks/bench_scheduler.py` prints the distribution. Each round makes one decision, turns it into a Plan, and
takes in the KvReport and the StepResult, as the live scheduler does; `decision` times the plan alone.
"""

from __future__ import annotations

import gc
import random
import time
from typing import Any

import numpy as np
import pytest

from accelgen.proto.config import Config
from accelgen.proto.messages import KvReport, Lookup, Objective, Plan, Prompt, StepResult, Submit
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import is_decode, load_policy

BLOCKS, BLOCK_SIZE, RUNNING = 200_000, 16, 256
OPT_13B_A100 = Coefficients(19.036e-3, 0.029339e-3, 0.059412e-3, 0.0057e-3, 0.00071e-3, 4.24e-9, 96)
ROUNDS = 400
POLICIES = [
    "accelgen",
    "accelgen-adaptive",
    "accelgen-calibrated",
    "accelgen-no-batching",
    "accelgen-no-chunking",
    "accelgen-no-ordering",
    "edf",
    "fastgen",
    "fastserve",
    "orca",
    "qoserve",
    "sarathi",
    "slidingserve",
    "srpf",
    "vllm",
]


class Loop:
    """A scheduler core whose KV manager and worker answer at once, with everything that was planned."""

    def __init__(self, policy: str, waiting: int) -> None:
        config = Config(
            policy=policy, max_num_seqs=RUNNING, max_queued_requests=50_000,
            max_queued_tokens=1_000_000_000,
        )  # fmt: skip
        spec = ReplicaSpec(BLOCKS, BLOCK_SIZE, OPT_13B_A100)
        self.core = SchedulerCore(config, load_policy(policy, {}), {0: spec})
        self.now_s = 0.0
        self.cpu_s: list[float] = []
        draw = random.Random(0)
        for id in range(1, RUNNING + waiting + 1):
            length = draw.choice([64, 128, 256, 512]) if id <= RUNNING else draw.randrange(64, 4000)
            slo = Objective(draw.uniform(1, 60), draw.uniform(0.1, 0.3))
            submit = Submit(Prompt(id, [1] * length), 10_000, [], slo, "standard", 0.0)
            self.core.on_submit(submit, 0, draw.uniform(0, 0.5))
            if id == RUNNING:  # they start before anybody queues behind them
                self._drain()
                while not self._all_decode():
                    self.round()
        self._drain()
        gc.collect()
        gc.freeze()

    def _all_decode(self) -> bool:
        table = self.core.replicas[0].table
        running = table.running
        return len(running) == RUNNING and bool(is_decode(table, running).all())

    def _drain(self) -> None:
        for _, _, body in self.core.outbox:
            if isinstance(body, Lookup):
                ids = [prompt.id for prompt in body.prompts]
                report = KvReport(-1, BLOCKS // 2, 0, 0, [], ids, [0] * len(ids), [])
                self.core.on_report(report, 0, self.now_s)
        self.core.outbox.clear()

    def decide(self) -> Plan:
        """The timed part: one decision and its Plan."""
        begin_s = time.thread_time()
        plan = self.core.replicas[0].plan(self.now_s)
        self.cpu_s.append(time.thread_time() - begin_s)
        assert plan is not None
        return plan

    def answer(self, plan: Plan) -> None:
        """KvReport and StepResult of a plan."""
        self.now_s += 0.05
        self.core.on_report(KvReport(plan.step, BLOCKS // 2, 0, 0, [], [], [], []), 0, self.now_s)
        flight = self.core.replicas[0].flights[0]
        counts = flight.sampled.astype(int).tolist()
        result = StepResult(plan.step, plan.ids, counts, [5] * sum(counts), [], [], [], 0.0, 0.05)
        self.core.on_result(result, 0, self.now_s)
        self.core.outbox.clear()

    def round(self) -> None:
        self.answer(self.decide())


@pytest.mark.parametrize("waiting", [0, 2_000, 10_000])
@pytest.mark.parametrize("policy", POLICIES)
def test_decision(benchmark: Any, policy: str, waiting: int) -> None:
    loop = Loop(policy, waiting)
    last: list[Plan] = []

    def setup() -> None:
        while last:
            loop.answer(last.pop())

    benchmark.pedantic(
        lambda: last.append(loop.decide()), setup=setup, rounds=ROUNDS, warmup_rounds=20
    )
    wall_ms = np.percentile(benchmark.stats.stats.data, [50, 99]) * 1e3
    cpu_ms = (
        np.percentile(loop.cpu_s[-ROUNDS:], [50, 99]) * 1e3
    )  # without the time others had the core
    benchmark.extra_info["cpu_p50_ms"], benchmark.extra_info["cpu_p99_ms"] = cpu_ms.round(
        4
    ).tolist()
    print(
        f"\n{policy}: {RUNNING} running + {waiting} waiting: p50 {wall_ms[0]:.3f} p99 {wall_ms[1]:.3f} ms, "
        f"processor time p50 {cpu_ms[0]:.3f} p99 {cpu_ms[1]:.3f} ms, {sum(last[-1].counts)} tokens"
    )
