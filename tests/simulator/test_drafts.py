"""Speculation in the simulator: by hand, and for every policy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Reason
from accelgen.proto.policies import known_policies
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.device import Device
from accelgen.simulator.run import Run, Simulation, Successor
from accelgen.simulator.worker import uniforms
from accelgen.simulator.workload import Arrival, Workload

SECOND_PER_TOKEN = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
DEVICE = Device("toy", "paper", SECOND_PER_TOKEN, kv_token_bytes=1, kv_bytes=64 * 16)
PATIENT = SloClass(max_queue_ms=86_400_000)


def simulation_of(
    policy: str, arrivals: list[Arrival], acceptance: float, draft_s: float = 0.0,
    swap: bool = False, successors: Sequence[Successor] = (), **config: object,
) -> Simulation:  # fmt: skip
    given = {
        "pipeline_depth": 0, "slo_classes": {"standard": PATIENT}, "drafter": "ngram",
        "max_draft_tokens": 3, "draft_tokens": "fixed", **config,
    }  # fmt: skip
    return Simulation(
        load_policy(policy, {}), Workload.of("test", arrivals), DEVICE,
        Config(policy=policy, **given),  # type: ignore[arg-type]
        swap=swap, successors=successors, acceptance=acceptance, draft_s=draft_s,
    )  # fmt: skip


def simulate(policy: str, arrivals: list[Arrival], acceptance: float, **options: Any) -> Run:
    simulation = simulation_of(policy, arrivals, acceptance, **options)
    run = simulation.go()
    for kv in simulation.kvs:
        assert kv.check() == [] and kv.pool.used == kv.tables.host.used == 0
    return run


def test_all_accepted_by_hand() -> None:
    """The prompt takes 1 + 1 s; then a token and three drafts, 1.04 s, bring four tokens at once."""
    [fate] = simulate("sarathi", [Arrival(0.0, 100, 9)], 1.0).fates
    assert list(fate.token_s) == pytest.approx([2.0, *[3.04] * 4, *[4.08] * 4])


def test_none_accepted_by_hand() -> None:
    """Drafts for nothing, fewer of them towards the end: the last allowed token is never drafted for."""
    [fate] = simulate("sarathi", [Arrival(0.0, 100, 4)], 0.0).fates
    assert list(fate.token_s) == pytest.approx([2.0, 3.03, 4.05, 5.06])


def test_a_request_that_ends_by_itself_ends_amid_its_drafts() -> None:
    [fate] = simulate("sarathi", [Arrival(0.0, 100, 7, max_tokens=50)], 1.0).fates
    assert fate.end is Reason.STOP
    assert list(fate.token_s) == pytest.approx([2.0, *[3.04] * 4, *[4.08] * 2])


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", known_policies())
def test_every_policy_ends_every_request(policy: str, depth: int) -> None:
    arrivals = [Arrival(0.7 * i, 20 + 13 * i % 90, 3 + i % 25, max_tokens=40) for i in range(20)]
    run = simulate(policy, arrivals, 0.7, pipeline_depth=depth, max_num_seqs=8)
    assert [len(fate.token_s) for fate in run.fates] == [one.output_tokens for one in arrivals]
    [worker] = run.workers
    assert worker.drafted > worker.accepted > 0


@pytest.mark.parametrize("policy", ["sarathi", "vllm", "accelgen"])
@pytest.mark.parametrize("depth", [0, 1])
def test_swapping_amid_drafts(policy: str, depth: int) -> None:
    """A device of 24 blocks: KV goes to the host and back while drafts are in flight, and nobody is lost."""
    arrivals = [Arrival(0.1 * i, 20 + 13 * i % 90, 40, max_tokens=60) for i in range(12)]
    run = simulate(
        policy, arrivals, 0.5, pipeline_depth=depth, kv_blocks=24, preemption="swap", swap=True
    )
    assert [len(fate.token_s) for fate in run.fates] == [40] * 12
    assert sum(fate.preemptions for fate in run.fates) >= 3
    assert run.workers[0].accepted > 100


def test_a_slow_drafter_is_hardly_used_and_stays_out_of_the_cost_model() -> None:
    """1 s an iteration and 5 s for each step of the drafter: adaptive lengths come down to what tries it now and then,
    and iterations of prompts are predicted as without."""
    arrivals = [Arrival(0.0, 100, 200)]
    slow = simulate("sarathi", arrivals, 0.6, draft_tokens="adaptive", draft_s=5.0)
    none = simulate("sarathi", arrivals, 0.6, drafter="")
    assert slow.end_s < 1.6 * none.end_s
    assert slow.workers[0].drafted < 40


def test_the_drafters_time_is_not_the_models() -> None:
    simulation = simulation_of("sarathi", [Arrival(0.0, 100, 60)], 0.6, draft_s=0.5)
    simulation.go()
    [replica] = simulation.core.replicas.values()
    assert replica.cost.scale == pytest.approx(1, rel=0.01)
    assert replica.speculation.step_s == pytest.approx(0.5)


def test_what_was_learnt_of_drafts_is_handed_over() -> None:
    simulation = simulation_of(
        "sarathi", [Arrival(0.0, 100, 60)], 1.0, draft_s=0.5,
        successors=[Successor(30.0, load_policy("vllm", {}))],
    )  # fmt: skip
    before = simulation.core.replicas[0].speculation
    simulation.go()
    after = simulation.core.replicas[0].speculation
    assert after is not before and after.rate > before.rate > 0.8
    assert after.step_s == before.step_s == pytest.approx(0.5)


def test_as_many_are_accepted_as_the_probability_says() -> None:
    """5,000 verifications of 3 drafts, each accepted with 0.6 if those before are: 1.176 of three on average, standard
    deviation 1.1 each; 0.07 is more than four standard deviations of the mean."""
    runs = [uniforms(id, range(100, 103)) for id in range(5000)]
    accepted = [next((k for k, u in enumerate(run) if u >= 0.6), 3) for run in runs]
    assert sum(accepted) / 5000 == pytest.approx(0.6 + 0.36 + 0.216, abs=0.07)
