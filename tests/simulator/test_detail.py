"""Detailed runs and known lengths: columns agree with the summary; a predictor that is told the truth tells it."""

from __future__ import annotations

from typing import Any

import pytest

from accelgen.proto.messages import Objective
from accelgen.scheduler.predictors.estimate import Estimate, Traits
from accelgen.simulator.experiment import PolicyAt, Result, Setting, run_setting
from accelgen.simulator.lengths import KnownLengths
from accelgen.simulator.scenarios import ScenarioError, make_scenario
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Arrival

PARTS = [
    {"name": "chat", "source": "synthetic:azure2023_conv", "ttft": {"base_s": 0.5}, "tpot": {"base_s": 0.02}},
    {"name": "batch", "source": "synthetic:azure2023_code", "e2e": {"base_s": 2.0}},
]  # fmt: skip


def run(**fields: Any) -> Result:
    scenario = make_scenario(
        {
            "about": "x", "model": "llama-3-8b", "hardware": "a100", "rates": [1.0], "seeds": [0], "max_tokens": 200,
            "parts": PARTS, **fields.pop("scenario", {}),
        }
    )  # fmt: skip
    given = {"policy": "sarathi", "rate": 8.0, "requests": 40, **fields}
    return run_setting(Setting(name="s", scenario=scenario, **given))


def test_columns_agree_with_the_summary() -> None:
    plain, result = run(), run(detailed=True)
    summary, detail = result.summary, result.detail
    assert plain.detail is None and detail is not None and summary is not None
    assert plain.summary is not None and plain.summary.latency == summary.latency
    requests, iterations = detail.requests, detail.iterations
    assert sum(requests.attained) / 40 == summary.judged.attainment[Rule.CUMULATIVE]
    assert sum(requests.met_ttft) / 40 == summary.judged.ttft
    assert sum(requests.output) == summary.output_tokens
    chat = [i for i in range(40) if requests.slo_class[i] == "chat"]
    assert sum(detail.gaps) == sum(requests.output[i] - 1 for i in chat)  # the others state no TPOT
    assert sum(detail.gaps[50:]) > 0  # some gaps are longer than their objective
    kept = [requests.worst[i] is None or requests.worst[i] <= 1 for i in chat]  # type: ignore[operator]
    met = summary.by_class["chat"].tpot[Rule.EVERY_GAP]
    assert sum(kept) / len(chat) == met
    timely = [behind is None or behind <= 1e-6 for behind in (requests.behind[i] for i in chat)]
    assert sum(timely) / len(chat) == summary.by_class["chat"].tpot[Rule.CUMULATIVE] < 1
    assert len(iterations.run_s) == summary.machine.steps
    assert sum(iterations.prefill) == summary.prompt_tokens
    assert sum(iterations.decodes) == sum(requests.output) - 40
    busy_s = summary.machine.busy * summary.duration_s
    assert sum(iterations.run_s) == pytest.approx(busy_s)
    assert {*iterations.tightest_s} <= {None, 0.02}


def test_relegated_requests_are_marked() -> None:
    result = run(policy="qoserve", rate=200.0, requests=60, detailed=True)
    assert result.detail is not None and any(result.detail.requests.relegated)
    other = run(
        policy="qoserve", rate=200.0, requests=60, detailed=True, params={"relegation": False}
    )
    assert other.detail is not None and not any(other.detail.requests.relegated)


def test_known_lengths() -> None:
    arrivals = [Arrival(0.0, 10, output, Objective(), "a") for output in (1, 50, 400)]

    def told(predictor: KnownLengths, most: int = 1000) -> list[int]:
        said = []
        for arrival in arrivals:
            predictor.expect(arrival)
            said.append(predictor.predict(Traits("a", 10, most)).tokens)
        return said

    assert told(KnownLengths(0.0, 1)) == [1, 50, 400]
    assert told(KnownLengths(0.0, 1), 100) == [1, 50, 100]
    wrong = told(KnownLengths(1.0, 1))
    assert wrong != [1, 50, 400] and min(wrong) >= 1
    assert wrong == told(KnownLengths(1.0, 1)) != told(KnownLengths(1.0, 2))


def test_known_lengths_say_how_far_off_they_are() -> None:
    arrival, about = Arrival(0.0, 10, 1000, Objective(), "a"), Traits("a", 10, 1_000_000)
    oracle, noisy = KnownLengths(0.0, 1), KnownLengths(0.7, 1)
    oracle.expect(arrival)
    assert oracle.predict(about) == Estimate(1000, 1000, 1000)
    inside = 0
    for _ in range(2000):
        noisy.expect(arrival)
        estimate = noisy.predict(about)
        inside += estimate.low <= 1000 <= estimate.high
    # 0.98 with a standard deviation of 0.0031: five of them, one false alarm in a million
    assert abs(inside / 2000 - 0.98) < 0.0157
    assert noisy.predict(Traits("a", 10, 3)).within(3) == noisy.predict(Traits("a", 10, 3))


def test_a_policy_is_told_lengths() -> None:
    learnt, true, wrong = (
        run(policy="edf", rate=60.0, requests=80, length_error=e) for e in (None, 0.0, 2.0)
    )
    assert len({r.summary and r.summary.latency.jct_s.mean for r in (learnt, true, wrong)}) == 3


def test_a_successor_is_told_no_lengths() -> None:
    with pytest.raises(ScenarioError, match="length_error"):
        run(length_error=0.0, swaps=(PolicyAt(1.0, "vllm"),))


def test_distserve_has_neither() -> None:
    for field in ({"detailed": True}, {"length_error": 0.0}):
        with pytest.raises(ScenarioError, match=next(iter(field))):
            run(policy="distserve", scenario={"replicas": 2}, **field)
