"""How fast the simulator is: scheduled request-iterations per second of processor time (budget: 100,000 for `sarathi`).

Every prompt has tokens of its own, so that a preempted request finds what is left of its KV in the prefix cache; what
that costs is seen beside the same run without the cache.

2026-11-21, old and new by turns on a machine with a load of 4 to 7, best of four runs each: `sarathi` 86,000 to 96,000
before, 113,000 to 118,000 after; a fifth had been expected. Taken out was what was made and thrown away: a sheaf for
every token, a ranking of victims for every plan, the arrays of a decision made three times, generators in a row.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

from accelgen.proto.config import Config, SloClass
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.device import find_device
from accelgen.simulator.run import Simulation
from accelgen.simulator.synthetic import STAND_INS, poisson
from accelgen.simulator.workload import Arrival, Workload

REQUESTS, RATE = 500, 7.0


def simulation(policy: str, caching: bool) -> Simulation:
    """Azure's chat lengths at 7 requests/s, on an A100 the edge of its capacity: some 45 requests run at a time."""
    rows = STAND_INS["azure2023_conv"].rows("azure2023_conv", REQUESTS, 0)
    at_s = poisson(REQUESTS, RATE, np.random.default_rng(0))
    arrivals = [
        Arrival(float(at), int(prompt), int(output))
        for at, prompt, output in zip(at_s, rows.prompt, rows.output, strict=True)
    ]
    config = Config(
        policy=policy, pipeline_depth=0, prefix_caching=caching,
        slo_classes={"standard": SloClass(max_queue_ms=86_400_000)},
    )  # fmt: skip
    device = find_device("llama-3-8b", "a100")
    return Simulation(load_policy(policy, {}), Workload("bench", arrivals), device, config)


@pytest.mark.parametrize("caching", [True, False], ids=["prefix-cache", "no-prefix-cache"])
@pytest.mark.parametrize("policy", ["sarathi", "vllm", "accelgen"])
def test_simulator(benchmark: Any, policy: str, caching: bool) -> None:
    rates, batches = [], []

    def run(made: Simulation) -> None:
        begin_s = time.thread_time()
        done = made.go()
        rates.append(done.entries / (time.thread_time() - begin_s))
        batches.append(done.entries / done.steps)

    benchmark.pedantic(
        run, setup=lambda: ((simulation(policy, caching),), {}), rounds=3, iterations=1
    )
    benchmark.extra_info["entries_per_cpu_s"] = round(float(np.median(rates)))
    benchmark.extra_info["entries_per_step"] = round(batches[0], 1)
