"""Preemption by swap, by the live cores: nothing is computed twice, copies take their time, nothing is lost."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective, Reason
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.device import Device
from accelgen.simulator.run import Run, Simulation
from accelgen.simulator.workload import Arrival, Workload

LINEAR = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
POLICIES = ["accelgen", "edf", "fastgen", "fastserve", "qoserve", "sarathi", "slidingserve", "vllm"]


def simulate(
    policy: str, arrivals: list[Arrival], blocks: int, swap: bool = True, **config: object
) -> Run:
    """Blocks of 16 tokens of 1 byte; a block takes 0.1 s on its way to the host, or back."""
    device = Device("toy", "paper", LINEAR, 1, blocks * 16, swap_bytes_s=160.0)
    patient = {"standard": SloClass(max_queue_ms=86_400_000)}
    given = {"pipeline_depth": 0, "slo_classes": patient, **config}
    workload = Workload.of("test", arrivals)
    simulation = Simulation(
        load_policy(policy, {}), workload, device, Config(policy=policy, **given), swap=swap
    )  # type: ignore[arg-type]
    run = simulation.go()
    [kv] = simulation.kvs
    assert kv.check() == [] and kv.pool.used == kv.tables.host.used == 0
    assert not simulation.core.replicas[0].moves.pending
    return run


def test_a_victim_goes_and_comes_back_by_hand() -> None:
    """4 blocks; each prompt has two, whole ones. The first tokens come after 1 + 0.64 s; then each decode needs one
    more block: one request goes (two blocks, 0.2 s), and the other decodes its three tokens, 1.01 s each. Then it
    comes back (0.2 s), without computing anything again."""
    arrivals = [Arrival(0.0, 32, 4), Arrival(0.0, 32, 4)]
    run = simulate("sarathi", arrivals, blocks=4)
    gone, kept = run.fates
    assert list(kept.token_s) == pytest.approx([1.64, 2.85, 3.86, 4.87])
    assert list(gone.token_s) == pytest.approx([1.64, 6.08, 7.09, 8.10])
    assert (gone.preemptions, kept.preemptions) == (1, 0)
    worker = run.workers[0]
    assert worker.prefill_tokens == 64 and worker.decode_tokens == 6
    assert worker.copies_s == pytest.approx(0.4) and worker.busy_s == pytest.approx(1.64 + 6 * 1.01)


def test_others_run_beside_a_copy() -> None:
    """8 blocks, all taken by prompts of 2, 3 and 3, whose tokens come after 1 + 1.12 s. The first needs another block
    and goes, while the others decode in theirs: 1.02 s, and 0.2 s of copying are hidden behind them. When the second
    has ended there is room, and the first comes back beside a decode of the third."""
    arrivals = [Arrival(0.0, 32, 4), Arrival(0.0, 40, 3), Arrival(0.0, 40, 6)]
    run = simulate("sarathi", arrivals, blocks=8)
    gone, second, third = run.fates
    assert list(second.token_s) == pytest.approx([2.12, 3.14, 4.16])
    assert list(third.token_s) == pytest.approx([2.12, 3.14, 4.16, 5.17, 6.18, 7.20])
    assert list(gone.token_s) == pytest.approx([2.12, 7.20, 8.21, 9.22])
    assert (gone.preemptions, second.preemptions, third.preemptions) == (1, 0, 0)
    [worker] = run.workers
    assert worker.copies_s == 0 and worker.busy_s == pytest.approx(9.22)
    assert (worker.prefill_tokens, worker.decode_tokens) == (112, 10)


def test_a_prompt_goes_on_where_it_was() -> None:
    """Chunks of a prompt that were computed before it had to go count when it is back."""
    slow = Objective(ttft_s=1000.0)
    arrivals = [Arrival(0.0, 60, 30), Arrival(0.1, 700, 2, slow), Arrival(0.2, 60, 40)]
    swapped = simulate("fastserve", arrivals, blocks=49, max_num_batched_tokens=256)
    assert swapped.workers[0].prefill_tokens == sum(arrival.prompt_tokens for arrival in arrivals)
    assert any(fate.preemptions for fate in swapped.fates)


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([0, 1]), caching=st.booleans())
def test_nothing_is_lost_and_nothing_computed_twice(
    policy: str, seed: int, depth: int, caching: bool
) -> None:
    draw = random.Random(seed)
    arrivals = [
        Arrival(
            draw.uniform(0, 20), draw.randrange(1, 120), draw.randrange(1, 60),
            Objective(draw.uniform(1, 50), draw.uniform(0.5, 3)),
        )
        for _ in range(12)
    ]  # fmt: skip
    run = simulate(policy, arrivals, 16, pipeline_depth=depth, prefix_caching=caching)
    for fate in run.fates:
        assert fate.end is Reason.LENGTH and len(fate.token_s) == fate.arrival.output_tokens
    worker = run.workers[0]
    outputs = sum(arrival.output_tokens - 1 for arrival in arrivals)
    prompts = sum(arrival.prompt_tokens for arrival in arrivals)
    assert (worker.prefill_tokens, worker.decode_tokens) == (prompts, outputs)
    again = simulate(policy, arrivals, 16, False, pipeline_depth=depth, prefix_caching=False)
    preempted = sum(fate.preemptions for fate in again.fates)
    assert (again.workers[0].prefill_tokens > prompts) == (preempted > 0)
