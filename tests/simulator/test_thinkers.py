"""Requests with stages in a simulated run: who knows of them when, and what becomes of sessions."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective, Reason, Thinking
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, Policy, View, load_policy
from accelgen.simulator.device import Device
from accelgen.simulator.distserve import DistServe
from accelgen.simulator.metrics import summarise
from accelgen.simulator.needs import needs_of
from accelgen.simulator.run import Run, Simulation, Successor
from accelgen.simulator.stages import Rules
from accelgen.simulator.times import Rule, Times
from accelgen.simulator.worker import THINK_END
from accelgen.simulator.workload import Arrival, Workload, session

LINEAR = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
DEVICE = Device("toy", "paper", LINEAR, kv_token_bytes=1, kv_bytes=64 * 16)
PATIENT = {"standard": SloClass(max_queue_ms=86_400_000)}
POLICIES = ["accelgen", "edf", "qoserve", "sarathi", "slidingserve", "slos-serve", "vllm"]


def config(**given: object) -> Config:
    return Config(**{"pipeline_depth": 0, "slo_classes": PATIENT, **given})  # type: ignore[arg-type]


def simulate(
    policy: Policy, arrivals: list[Arrival], later: list[Successor] | None = None, **given: object
) -> Run:
    workload = Workload.of("test", arrivals)
    simulation = Simulation(policy, workload, DEVICE, config(**given), successors=later or [])
    run = simulation.go()
    for kv in simulation.kvs:
        assert kv.check() == [] and kv.pool.used == 0
    return run


def thinker(at_s: float, prompt: int, output: int, thinking: int, **given: object) -> Arrival:
    goal = Objective(5.0, 3.0, None, Thinking(1.5, [THINK_END]))
    return Arrival(at_s, prompt, output, goal, thinking_tokens=thinking, **given)  # type: ignore[arg-type]


class Watching(Sarathi):
    """Notes, by confirmed tokens, the paces that its requests then have."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, set[float]] = {}

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        for slot in view.table.running.tolist():
            generated = len(view.table.request(slot).generated)
            self.seen.setdefault(generated, set()).add(float(view.table.tpot_s[slot]))
        return super().plan(view, state, start_s)


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("max_tokens", [0, 50])
def test_the_pace_changes_when_the_mark_is_confirmed(depth: int, max_tokens: int) -> None:
    policy = Watching()
    simulate(policy, [thinker(0.0, 100, 8, 4, max_tokens=max_tokens)], pipeline_depth=depth)
    assert all(policy.seen[n] == {1.5} for n in policy.seen if n < 4) and 3 in policy.seen
    assert all(policy.seen[n] == {3.0} for n in policy.seen if n >= 4) and 5 in policy.seen


def test_a_number_of_tokens_ends_it_without_a_mark() -> None:
    policy = Watching()
    goal = Objective(5.0, 3.0, None, Thinking(1.5, [], 3))
    simulate(policy, [Arrival(0.0, 100, 8, goal)])
    assert policy.seen[2] == {1.5} and policy.seen[3] == {3.0}


@pytest.mark.parametrize("policy", POLICIES)
@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**32), depth=st.sampled_from([0, 1]), swaps=st.booleans())
def test_thinkers_end_as_they_must(policy: str, seed: int, depth: int, swaps: bool) -> None:
    """Whatever the policy, in little KV, also across policies that take over: every token once, the end as foreseen."""
    draw = random.Random(seed)
    arrivals = []
    for _ in range(12):
        output = draw.randrange(2, 50)
        thinking = draw.randrange(0, output)
        arrivals.append(
            thinker(draw.uniform(0, 30), draw.randrange(1, 200), output, thinking, max_tokens=draw.choice([0, 60]))
        )  # fmt: skip
    later = [
        Successor(draw.uniform(0, 60), load_policy(draw.choice(POLICIES), {}))
        for _ in range(2 * swaps)
    ]
    run = simulate(load_policy(policy, {}), arrivals, later, pipeline_depth=depth)
    for fate in run.fates:
        assert fate.end is (Reason.STOP if fate.arrival.max_tokens else Reason.LENGTH)
        assert len(fate.token_s) == fate.arrival.output_tokens
    times = Times.of(run.fates)
    assert times.thinking.tolist() == [fate.arrival.thought for fate in run.fates]


def test_the_answer_before_a_follow_up_has_its_mark() -> None:
    """Of 68 tokens 67 were computed: four whole blocks, the mark in the last of them. All of it is found again."""
    first = thinker(0.0, 48, 20, 7, think_s=1.0, stage="tool")
    second = Arrival(0.0, 80, 2, stage="answer")
    run = simulate(Sarathi(), [session([first, second])])
    assert [fate.cached_tokens for fate in run.fates] == [0, 64]
    assert [fate.session for fate in run.fates] == [-1, 0]


@pytest.mark.parametrize("kind", ["simulation", "distserve"])
def test_sessions_know_where_they_began(kind: str) -> None:
    goal = Objective(ttft_s=50.0)
    sessions = [
        session([Arrival(at_s, 20, 3, goal, think_s=2.0), Arrival(0.0, 30, 3, goal), Arrival(0.0, 40, 3, goal)])
        for at_s in (0.0, 0.5)
    ]  # fmt: skip
    arrivals = [*sessions, Arrival(0.7, 10, 2, goal)]
    if kind == "simulation":
        run = simulate(Sarathi(), arrivals)
    else:
        devices = config(replicas=2)
        run = DistServe(Rules(), Workload.of("test", arrivals), DEVICE, devices).go()
    begun = [fate.session for fate in run.fates]
    assert begun.count(-1) == 3 and sorted(begun)[3:] == [0, 0, 1, 1]
    found = summarise(run)
    assert found.sessions[Rule.MEAN] == 1.0 and found.sent == 7


@settings(max_examples=60, deadline=None)
@given(
    prompt=st.integers(1, 300), output=st.integers(1, 30), thought=st.integers(0, 29),
    thinking_s=st.none() | st.floats(1.0, 1.1), response_s=st.none() | st.floats(1.0, 1.1),
    ttft_s=st.none() | st.floats(1.0, 4.0), rule=st.sampled_from(list(Rule)),
)  # fmt: skip
def test_what_a_run_attains_is_attainable(
    prompt: int, output: int, thought: int, thinking_s: float | None, response_s: float | None,
    ttft_s: float | None, rule: Rule,
) -> None:  # fmt: skip
    """Alone on the device: the needs behind the bound never call impossible what has happened."""
    goal = Objective(ttft_s, response_s, None, Thinking(thinking_s, [THINK_END]))
    arrival = Arrival(0.0, prompt, output, goal, thinking_tokens=min(thought, output - 1))
    run = simulate(Sarathi(), [arrival])
    attained = bool(Times.of(run.fates).attains()[rule][0])
    [need] = needs_of(Workload.of("test", [arrival]), DEVICE, config(), rule)
    assert need is not None
    assert need.attainable or not attained
    assert np.isfinite(need.gap_s) == (
        rule is Rule.EVERY_GAP and output > 1 and all(
            arrival.pace_s(number) is not None for number in range(2, output + 1)
        )
    )  # fmt: skip
