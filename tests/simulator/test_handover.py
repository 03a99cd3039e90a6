"""A policy is replaced under way in simulation: no token lost or doubled, nothing computed twice that need not be."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective, Reason
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policies.fastserve import FastServe
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policies.vllm import Vllm
from accelgen.scheduler.policy import Policy, load_policy
from accelgen.scripts.sim import command
from accelgen.simulator.device import Device
from accelgen.simulator.run import Run, Simulation, Successor
from accelgen.simulator.workload import Arrival, Workload, session

POLICIES = [
    "accelgen",
    "accelgen-adaptive",
    "edf",
    "fastserve",
    "qoserve",
    "sarathi",
    "slidingserve",
    "vllm",
]
LINEAR = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)


def simulate(
    policy: Policy, arrivals: list[Arrival], later: list[tuple[float, Policy]],
    blocks: int = 64, swap: bool = False, **config: object,
) -> tuple[Run, Simulation]:  # fmt: skip
    patient = {"standard": SloClass(max_queue_ms=86_400_000)}
    given = Config(**{"pipeline_depth": 0, "slo_classes": patient, **config})  # type: ignore[arg-type]
    device = Device("toy", "paper", LINEAR, 1, blocks * 16)
    successors = [Successor(at_s, policy) for at_s, policy in later]
    simulation = Simulation(
        policy, Workload.of("test", arrivals), device, given, swap=swap, successors=successors
    )
    run = simulation.go()
    for kv in simulation.kvs:
        assert kv.check() == [] and kv.pool.used == kv.tables.host.used == 0
    return run, simulation


@pytest.mark.parametrize("depth", [0, 1])
def test_it_waits_for_the_iteration_and_goes_on(depth: int) -> None:
    """A prompt of 100 tokens takes 2 s, each further one 1.01 s: called for at 2.5 s, the other policy takes over at
    3.01 s. No token is late by it, since nothing is computed again."""
    run, simulation = simulate(
        Vllm(), [Arrival(0.0, 100, 5)], [(2.5, Sarathi())], pipeline_depth=depth
    )
    [fate] = run.fates
    assert list(fate.token_s) == pytest.approx([2.0, 3.01, 4.02, 5.03, 6.04])
    assert run.takeovers_s == pytest.approx([3.01])
    assert simulation.core.policy.name == "sarathi"
    worker = run.workers[0]
    assert (worker.prefill_tokens, worker.decode_tokens) == (100, 4)


def test_what_was_learnt_and_what_waits_is_handed_over() -> None:
    """Four seats: three wait, the first for 3 s; a begun prompt keeps its chunks, and the same policy its state."""
    arrivals = [Arrival(0.0, 60, 40) for _ in range(3)]
    arrivals += [Arrival(0.5, 700, 2)] + [Arrival(1.0 + i, 50, 2) for i in range(3)]
    policy = FastServe()
    _, whole = simulate(policy, arrivals, [], max_num_seqs=4, max_num_batched_tokens=256)
    run, simulation = simulate(
        policy, arrivals, [(4.0, policy)], max_num_seqs=4, max_num_batched_tokens=256
    )
    assert run.workers[0].prefill_tokens == whole.workers[0].prefill_tokens
    assert [fate.token_s for fate in run.fates] == [fate.token_s for fate in whole.fates]
    before, after = whole.core.replicas[0], simulation.core.replicas[0]
    assert after.cost.observed == before.cost.observed
    assert after.state.iterations == before.state.iterations


def test_the_next_stage_of_a_session_follows_across_a_swap() -> None:
    talk = session([Arrival(0.0, 50, 5, think_s=1.0), Arrival(0.0, 80, 5)])
    run, _ = simulate(Vllm(), [talk], [(3.0, Sarathi()), (9.0, Vllm())])
    assert [len(fate.token_s) for fate in run.fates] == [5, 5]
    assert [fate.cached_tokens for fate in run.fates] == [0, 48]


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    depth=st.sampled_from([0, 1]),
    replicas=st.sampled_from([1, 2]),
    caching=st.booleans(),
    swap=st.booleans(),
)
def test_no_token_is_lost_or_doubled(
    policy: str, seed: int, depth: int, replicas: int, caching: bool, swap: bool
) -> None:
    draw = random.Random(seed)
    arrivals = [
        Arrival(
            draw.uniform(0, 30), draw.randrange(1, 200), draw.randrange(1, 60),
            Objective(draw.uniform(1, 50), draw.uniform(0.5, 3)), max_tokens=draw.choice([0, 80]),
        )
        for _ in range(15)
    ]  # fmt: skip
    later = [
        (draw.uniform(0, 60), load_policy(draw.choice([policy, *POLICIES]), {})) for _ in range(4)
    ]
    run, _ = simulate(
        load_policy(policy, {}), arrivals, later, 24, swap, pipeline_depth=depth,
        replicas=replicas, prefix_caching=caching,
    )  # fmt: skip
    assert len(run.takeovers_s) == 4
    for fate in run.fates:
        whole = Reason.STOP if fate.arrival.max_tokens else Reason.LENGTH
        assert fate.end is whole and len(fate.token_s) == fate.arrival.output_tokens
        assert list(fate.token_s) == sorted(fate.token_s)


def test_the_command(tmp_path: Path) -> None:
    words = ["run", "--trace", "synthetic:azure2023_conv", "--policy", "vllm", "--rate", "3"]
    words += ["--requests", "20", "--quiet", "--out", str(tmp_path)]
    done = CliRunner().invoke(command, [*words, "--swap", "2:sarathi:chunk_size=256"])
    assert done.exit_code == 0, done.output
    assert "vllm, from 2 s sarathi:chunk_size=256 at 3 requests/s" in done.output
    for word, says in (
        ("sarathi", "'sarathi' is not of the form SECONDS:POLICY"),
        ("2:sarati", "did you mean sarathi"),
        ("-1:sarathi", "-1.0 is not in the range"),
        ("1:distserve", "cannot take over"),
    ):
        refused = CliRunner().invoke(command, [*words, "--swap", word])
        assert refused.exit_code == 2 and says in refused.output, refused.output
    done = CliRunner().invoke(command, [*words, "--swap", "2:sarathi", "--preemption", "swap"])
    assert done.exit_code == 0, done.output
