"""Metrics: worked examples, and the same verdicts as the live benchmark's."""

from __future__ import annotations

from array import array

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from accelgen.proto.config import Config
from accelgen.proto.messages import Objective, Reason, Thinking
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import load_policy
from accelgen.scripts import bench_metrics
from accelgen.simulator.device import Device
from accelgen.simulator.metrics import hopeless, summarise
from accelgen.simulator.run import Fate, Run, Simulation
from accelgen.simulator.times import Rule, Times
from accelgen.simulator.workload import Arrival, Workload, session


def fate(
    sent_s: float,
    token_s: list[float],
    goal: Objective | None = None,
    end: Reason | None = Reason.LENGTH,
    name: str = "standard",
    thinking: int = 0,
) -> Fate:
    output = max(1 + thinking, len(token_s))
    arrival = Arrival(sent_s, 10, output, goal or Objective(), name, thinking_tokens=thinking)
    return Fate(arrival, array("d", token_s), end)


def verdicts(one: Fate) -> list[bool]:
    return [bool(met[0]) for met in Times.of([one]).attains().values()]


def test_the_example_of_the_docs() -> None:
    tokens = [10.4, 10.8, 11.6, 11.9]
    one = fate(10.0, tokens, Objective(ttft_s=1.0, tpot_s=0.5))
    times = Times.of([one])
    assert times.ttft_s == pytest.approx([0.4]) and times.tpot_s == pytest.approx([0.5])
    assert times.jct_s == pytest.approx([1.9])
    assert times.gaps_s()[0] == pytest.approx([0.4, 0.8, 0.3])
    assert verdicts(one) == [False, True, True]
    assert verdicts(fate(10.0, tokens, Objective(tpot_s=0.5))) == [False, False, True]


def test_the_example_of_the_docs_with_thinking() -> None:
    """Three tokens of thinking at 0.7 s, then 0.25 s: the mean of the response alone is 0.3."""
    goal = Objective(1.0, 0.25, None, Thinking(0.7))
    one = fate(10.0, [10.4, 10.8, 11.6, 11.9], goal, thinking=3)
    assert verdicts(one) == [False, True, False]
    times = Times.of([one])
    assert [float(pace[0]) for pace in times.part_tpot_s()] == pytest.approx([0.6, 0.3])
    found = summarise(Run("w", "p", [one], 12.0, [])).parts
    assert (found["thinking"].kept, found["response"].kept) == (1.0, 0.0)
    assert (found["thinking"].tokens, found["response"].tokens) == (3, 1)


@pytest.mark.parametrize(
    ("thinking_s", "response_s", "expected"),
    [
        (0.8, 0.3, [True] * 3),
        (0.6, 0.3, [False, True, True]),
        (0.4, 0.3, [False, True, False]),
        (0.2, 0.3, [False, False, False]),
        (0.8, 0.2, [False, True, False]),  # what the thinking was ahead helps the response
        (None, 0.3, [True] * 3),
        (None, 0.2, [False, False, False]),  # the response's deadlines count from the mark
        (0.8, None, [True] * 3),
        (0.1, None, [False, False, False]),
        (None, None, [True] * 3),
    ],
)
def test_paces_of_stages(
    thinking_s: float | None, response_s: float | None, expected: list[bool]
) -> None:
    """Gaps 0.4 and 0.8 of the thinking, 0.3 of the response; the first token comes 0.6 s before it must."""
    goal = Objective(1.0, response_s, None, Thinking(thinking_s))
    assert verdicts(fate(10.0, [10.4, 10.8, 11.6, 11.9], goal, thinking=3)) == expected


def test_a_thinking_that_never_ends_and_one_cut_by_its_number() -> None:
    tokens = [1.0, 1.5, 2.0, 2.5]
    endless = Objective(1.0, 0.1, None, Thinking(0.5))
    assert verdicts(fate(0.0, tokens, endless)) == [True] * 3
    limited = Objective(1.0, 0.1, None, Thinking(0.5, [], 2))
    assert verdicts(fate(0.0, tokens, limited)) == [False] * 3
    assert (
        verdicts(fate(0.0, tokens, Objective(1.0, 0.5, None, Thinking(0.5, [], 2)))) == [True] * 3
    )


def test_a_session_attains_if_all_its_calls_do() -> None:
    goal = Objective(ttft_s=1.0)
    calls = [Arrival(0.0, 10, 1, goal, stage=stage) for stage in ("tool", "tool", "answer")]
    sessions = [session(calls), session(calls), Arrival(0.0, 10, 1, goal, stage="answer")]
    fates = [Fate(one, array("d", [0.5]), Reason.LENGTH) for one in sessions]
    for call, number in ((calls[1], 0), (calls[2], 0), (calls[1], 1)):  # nobody sends the last one
        fates.append(Fate(call, array("d", [0.5]), Reason.LENGTH, session=number))
    found = summarise(Run("w", "p", fates, 5.0, []))
    assert found.sessions == dict.fromkeys(Rule, pytest.approx(2 / 3))
    assert found.judged.attainment == dict.fromkeys(Rule, 1.0)
    fates[3].token_s[0] = 9.0  # a call of the first one comes too late
    found = summarise(Run("w", "p", fates, 5.0, []))
    assert found.sessions[Rule.MEAN] == pytest.approx(1 / 3)
    assert found.by_stage["tool"].attainment[Rule.MEAN] == pytest.approx(3 / 4)
    assert (found.by_stage["tool"].sent, found.by_stage["answer"].sent) == (4, 2)


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Objective(), [True] * 3),
        (Objective(ttft_s=0.3), [False] * 3),
        (Objective(ttft_s=0.4), [True] * 3),  # boundaries are met
        (Objective(e2e_s=1.9), [True] * 3),
        (Objective(e2e_s=1.8), [False] * 3),
        (Objective(tpot_s=0.8), [True] * 3),
        (Objective(tpot_s=0.4), [False] * 3),
        (Objective(ttft_s=0.4, tpot_s=0.6), [False, True, True]),
    ],
)
def test_each_objective_by_each_rule(goal: Objective, expected: list[bool]) -> None:
    assert verdicts(fate(10.0, [10.4, 10.8, 11.6, 11.9], goal)) == expected


def test_who_got_nothing_attains_nothing() -> None:
    for end in (Reason.REFUSED_EXPIRED, Reason.FAILED, None):
        assert verdicts(fate(0.0, [], end=end)) == [False] * 3
        assert verdicts(fate(0.0, [1.0], end=end)) == [False] * 3
    assert verdicts(fate(0.0, [1.0], Objective(tpot_s=0.001))) == [True] * 3


def test_attainment_counts_those_sent() -> None:
    goal = Objective(ttft_s=1.0)
    fates = [
        fate(0.0, [0.5, 2.0], goal, name="a"),
        fate(1.0, [2.5, 4.0], goal, name="a"),
        fate(2.0, [], goal, end=Reason.REFUSED_EXPIRED, name="b"),
        fate(2.0, [3.0], goal, end=None, name="b"),
    ]
    found = summarise(Run("w", "p", fates, 5.0, []))
    assert (found.sent, found.succeeded, found.refused, found.unfinished) == (4, 2, 1, 1)
    assert found.judged.attainment == dict.fromkeys(Rule, 0.25)
    assert found.by_class["a"].attainment[Rule.MEAN] == 0.5 and found.by_class["b"].ttft == 0
    assert found.goodput[Rule.MEAN] == pytest.approx(1 / 5)
    assert found.token_goodput[Rule.MEAN] == pytest.approx(2 / 5)
    assert found.token_throughput == pytest.approx(4 / 5)
    assert found.total_token_throughput == pytest.approx(24 / 5)
    assert found.latency.jct_s.mean == pytest.approx(2.5)
    assert found.latency.normalised_s.mean == pytest.approx(1.25)


def test_latencies_are_those_of_requests_that_succeeded() -> None:
    fates = [fate(0.0, [1.0, 3.0]), fate(0.0, [5.0, 50.0], end=Reason.FAILED)]
    found = summarise(Run("w", "p", fates, 50.0, [])).latency
    means = [spread.mean for spread in (found.ttft_s, found.tpot_s, found.itl_s, found.jct_s)]
    assert means == [1.0, 2.0, 2.0, 3.0]


def test_a_whole_run_by_hand() -> None:
    """100 tokens of prompt: 1 + 1 s; then three decodes of 1.01 s. 64 blocks of 16, of which 7 are in use."""
    coefficients = Coefficients(a=1.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
    device = Device("toy", "paper", coefficients, kv_token_bytes=1, kv_bytes=64 * 16)
    workload = Workload("by hand", [Arrival(5.0, 100, 4)])
    config = Config(pipeline_depth=0)
    found = summarise(Simulation(load_policy("sarathi", {}), workload, device, config).go())
    assert found.duration_s == pytest.approx(5.03) and found.machine.busy == pytest.approx(1.0)
    assert found.machine.compute_utilisation == pytest.approx(1.03 / 5.03)
    assert found.machine.kv_utilisation == pytest.approx(7 / 64)
    assert (found.machine.steps, found.machine.entries, found.machine.batch) == (4, 4, 1.0)
    assert found.latency.itl_s.p99 == pytest.approx(1.01)
    assert 0 < (found.decisions.each_s.mean or 0) < 1 and found.decisions.share_of_jct > 0


def test_no_request_at_all() -> None:
    found = summarise(Run("w", "p", [], 0.0, []))
    assert found.sent == 0 and found.latency.ttft_s.mean is None


def test_a_hopeless_run_is_known_before_its_end() -> None:
    goal = Objective(ttft_s=1.0, e2e_s=5.0)
    fates = [
        fate(0.0, [0.5], goal),
        fate(0.0, [], goal, end=None),  # late from 1.0 on
        fate(0.0, [0.5], goal, end=None),  # late from 5.0 on
        fate(0.0, [], goal, end=Reason.REFUSED_TOO_LONG),
    ]
    run = Run("w", "p", fates, 0.0, [])
    assert not hopeless(run, 0.9, 0.75, 4)
    assert hopeless(run, 1.1, 0.75, 4) and not hopeless(run, 1.1, 0.5, 4)
    assert hopeless(run, 5.1, 0.5, 4) and not hopeless(run, 9.0, 0.1, 4)


thinkings_drawn = st.none() | st.builds(Thinking, st.none() | st.integers(1, 4).map(float))
goals_drawn = st.builds(
    Objective,
    ttft_s=st.none() | st.integers(1, 8).map(float),
    tpot_s=st.none() | st.integers(1, 4).map(float),
    e2e_s=st.none() | st.integers(1, 30).map(float),
    thinking=thinkings_drawn,
)


@settings(deadline=None, max_examples=200)
@given(
    drawn=st.lists(
        st.tuples(
            st.integers(0, 5), st.lists(st.integers(1, 6), max_size=8), goals_drawn,
            st.sampled_from([Reason.STOP, Reason.LENGTH, Reason.FAILED, None]), st.integers(0, 6),
        ),
        min_size=1,
        max_size=6,
    )
)  # fmt: skip
def test_the_verdicts_are_those_of_the_live_benchmark(drawn: list) -> None:  # type: ignore[type-arg]
    fates, timings = [], []
    for sent, gaps, goal, end, thought in drawn:
        token_s = (sent + np.cumsum(gaps)).astype(float).tolist()
        fates.append(fate(float(sent), token_s, goal, end, thinking=thought))
        thinking_s = None if goal.thinking is None else goal.thinking.tpot_s
        limits = bench_metrics.Limits(goal.ttft_s, goal.tpot_s, goal.e2e_s, thinking_s)
        timings.append(
            bench_metrics.Timing(
                float(sent),
                99.0,
                token_s,
                [1] * len(token_s),
                10,
                limits,
                failed=end not in (Reason.STOP, Reason.LENGTH),
                thinking=fates[-1].arrival.thought,
            )  # fmt: skip
        )
    attained = Times.of(fates).attains()
    for rule in Rule:
        theirs = [bench_metrics.attains(one, bench_metrics.Rule(rule)) for one in timings]
        assert attained[rule].tolist() == theirs
