"""Scenarios: the frozen ones load; what is wrong with others is said; requests are drawn as they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from accelgen.scheduler.cost_model import Work
from accelgen.simulator.device import Iteration
from accelgen.simulator.mix import Asked, load_sources, make_workload
from accelgen.simulator.scenarios import (
    Scenario,
    ScenarioError,
    default_file,
    find_scenario,
    load_scenarios,
    make_scenario,
)
from accelgen.simulator.traces import VARIABLE, TraceError
from accelgen.simulator.workload import Workload

ROOT = Path(__file__).resolve().parents[2]
SOUND = """
[scenarios.s]
about = "x"
model = "opt-13b"
hardware = "a100"
rates = [1, 2]
seeds = [0]
[[scenarios.s.parts]]
name = "a"
source = "synthetic:azure2023_conv"
"""


def workload(scenario: Scenario, asked: Asked, stand_ins: bool = True) -> Workload:
    device = scenario.device()
    sources = load_sources(scenario, asked, stand_ins)
    return make_workload("w", scenario, device, asked, sources)


def test_the_frozen_scenarios_are_those_of_the_benchmarks() -> None:
    assert default_file().read_text() == (ROOT / "benchmarks" / "scenarios.toml").read_text()
    found = load_scenarios()
    assert {
        "accelgen",
        "azure2023_conv",
        "azure2023_code",
        "mooncake_conversation",
        "three_class",
    } <= set(found)
    for name, scenario in found.items():
        assert scenario.policies["sarathi"]["chunk_size"] == 512, name
        assert scenario.config("vllm").default_class == scenario.parts[0].name


def test_accelgens_setting_is_as_published() -> None:
    scenario = find_scenario("accelgen")
    device = scenario.device()
    assert (
        scenario.room(device) == 14624 and scenario.block_size == 32
    )  # 12 GB of 819,200 bytes a token
    asked = Asked(rate=2.0, requests=2000)
    arrivals = workload(scenario, asked).arrivals
    assert arrivals[-1].at_s == pytest.approx(1999 / 2)
    long = [one for one in arrivals if one.slo_class == "long"]
    assert len(long) / 2000 == pytest.approx(0.35, abs=0.03)
    tpot_s = np.array([one.objective.tpot_s for one in arrivals], dtype=float)
    assert tpot_s.min() >= 0.1875 * 0.75 and tpot_s.max() <= 0.1875 * 1.25
    assert tpot_s.mean() == pytest.approx(0.1875, rel=0.02)
    for one in long[:50]:
        tokens = -(-one.prompt_tokens // 512) * 512
        alone_s = device.seconds(Iteration(Work(tokens, prefill_work=tokens**2 / 2), sequences=1))
        assert one.objective.ttft_s is not None
        assert 2 * alone_s <= one.objective.ttft_s <= 6 * alone_s
    assert max(one.prompt_tokens for one in arrivals) <= 14624 - 2048
    assert {one.max_tokens for one in arrivals} == {2048}


def test_qoserves_three_classes() -> None:
    arrivals = workload(find_scenario("three_class"), Asked(rate=3.0, requests=3000)).arrivals
    goals = {one.slo_class: one.objective for one in arrivals}
    tiers = [(goal.ttft_s, goal.tpot_s, goal.e2e_s) for _, goal in sorted(goals.items())]
    assert tiers == [(None, None, 1800.0), (6.0, 0.05, None), (None, None, 600.0)]
    for name in goals:
        share = sum(one.slo_class == name for one in arrivals) / 3000
        assert share == pytest.approx(1 / 3, abs=0.03)


def test_another_rate_changes_nothing_but_the_times() -> None:
    scenario = find_scenario("accelgen")
    slow, fast = (workload(scenario, Asked(rate, 200)).arrivals for rate in (1.0, 4.0))
    for one, other in zip(slow, fast, strict=True):
        assert one.at_s == pytest.approx(4 * other.at_s)
        assert one.objective == other.objective and one.prompt_tokens == other.prompt_tokens
    other = workload(scenario, Asked(1.0, 200, seed=1)).arrivals
    assert [one.prompt_tokens for one in other] != [one.prompt_tokens for one in slow]


@pytest.fixture
def traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    rows = "".join(f"{i * i},{10 + i},{1 + i % 7},{i % 3} {i}\n" for i in range(100))
    (tmp_path / "t.csv").write_text("arrived_at,prompt_tokens,output_tokens,hash_ids\n" + rows)
    return tmp_path


def of_trace(**fields: object) -> Scenario:
    given = {
        "about": "x", "model": "opt-13b", "hardware": "a100", "rates": [1.0], "seeds": [0],
        "parts": [{"name": "a", "source": "t"}], "arrivals": "trace", "max_tokens": 4, **fields,
    }  # fmt: skip
    return make_scenario(given)


def test_times_of_a_trace_are_scaled(traces: Path) -> None:
    arrivals = workload(of_trace(), Asked(rate=2.0, requests=50), stand_ins=False).arrivals
    assert len(arrivals) == 50 and arrivals[-1].at_s == pytest.approx(49 / 2)
    assert arrivals[7].at_s / arrivals[-1].at_s == pytest.approx(49 / 49**2)
    assert [one.prompt_tokens for one in arrivals[:3]] == [10, 11, 12]
    assert max(one.output_tokens for one in arrivals) == 4  # cut to max_tokens
    assert arrivals[5].prefix == (2, 5)


def test_a_trace_is_thinned(traces: Path) -> None:
    scenario = of_trace(arrivals="thinned")
    rate = 99 / 99**2 / 4  # a quarter of its own
    arrivals = workload(scenario, Asked(rate=rate, requests=100), stand_ins=False).arrivals
    assert 10 <= len(arrivals) <= 45
    assert (len(arrivals) - 1) / arrivals[-1].at_s == pytest.approx(rate)


def test_times_that_are_not_there_are_missed(traces: Path) -> None:
    (traces / "l.csv").write_text("prompt_tokens,output_tokens\n3,2\n")
    scenario = of_trace(parts=[{"name": "a", "source": "l"}])
    with pytest.raises(ScenarioError, match="arrivals: l has no times"):
        workload(scenario, Asked(1.0, 1), stand_ins=False)
    with pytest.raises(ScenarioError, match="arrivals: t thinned to 1e-09/s has no request"):
        workload(of_trace(arrivals="thinned"), Asked(1e-9, 1), stand_ins=False)


def test_times_that_are_rounded_are_spread_by_the_seed(traces: Path) -> None:
    rows = "".join(f"{3 * i},10,5,{i}\n" for i in range(20))
    (traces / "t.csv").write_text("arrived_at,prompt_tokens,output_tokens,hash_ids\n" + rows)
    at_s = [
        [one.at_s for one in workload(of_trace(), Asked(1.0, 20, seed), stand_ins=False).arrivals]
        for seed in (0, 0, 1)
    ]
    assert at_s[0] == at_s[1] != at_s[2]


def test_halves_do_not_overlap(traces: Path) -> None:
    tune, report = (
        workload(of_trace(), Asked(1.0, 100, half=half), stand_ins=False).arrivals
        for half in ("tune", "report")
    )
    assert [one.prompt_tokens for one in tune] == [*range(10, 60)]
    assert [one.prompt_tokens for one in report] == [*range(60, 110)]


def test_prompts_that_share_prefixes_keep_their_order(traces: Path) -> None:
    scenario = of_trace(arrivals="poisson")
    arrivals = workload(scenario, Asked(1.0, 120), stand_ins=False).arrivals
    assert [one.prompt_tokens for one in arrivals[98:102]] == [108, 109, 10, 11]


def test_sessions_follow_one_another(traces: Path) -> None:
    (traces / "s.csv").write_text(
        "session_id,prompt_tokens,output_tokens,prefix_tokens_shared_with_prev,think_time\n"
        "a,1000,10,0,0\na,1500,20,960,12.5\na,90000,2,1400,1\n"
    )
    parts = [{"name": "a", "source": "s", "length_scale": 0.1, "ttft": {"slowdown": 2}}]
    scenario = of_trace(parts=parts, arrivals="poisson", cut_tokens=2000, max_tokens=50)
    first = workload(scenario, Asked(1.0, 1), stand_ins=False).arrivals[0]
    second = first.follow_up
    assert second is not None and second.follow_up is None  # the third would have been cut
    assert (first.prompt_tokens, first.think_s) == (100, 12.5)
    assert (second.prompt_tokens, second.output_tokens, second.shared_tokens) == (150, 2, 96)
    assert second.objective.ttft_s is not None and first.objective.ttft_s is not None
    assert second.objective.ttft_s < first.objective.ttft_s  # it has fewer tokens to compute


def test_times_of_one_trace_and_lengths_of_another(traces: Path) -> None:
    """A slice of the times; the lengths are drawn, and are those of the other one."""
    (traces / "l.csv").write_text("prompt_tokens,output_tokens\n7,3\n8,2\n")
    parts = [{"name": "a", "source": "l"}]
    scenario = of_trace(parts=parts, arrivals_of="t", slice_s=[100, 1000])
    assert scenario.timed_by == "t" and scenario.sources == ["l", "t"]
    arrivals = workload(scenario, Asked(2.0, 500), stand_ins=False).arrivals
    assert len(arrivals) == 24  # squares from 10 to 33
    assert arrivals[0].at_s == 0 and arrivals[-1].at_s == pytest.approx(23 / 2)
    assert arrivals[1].at_s / arrivals[-1].at_s == pytest.approx((11**2 - 10**2) / (33**2 - 10**2))
    assert {(one.prompt_tokens, one.output_tokens) for one in arrivals} == {(7, 3), (8, 2)}
    alone = of_trace(slice_s=[100, 1000])
    own = workload(alone, Asked(2.0, 500), stand_ins=False).arrivals
    assert [one.at_s for one in own] == [one.at_s for one in arrivals]
    assert [one.prompt_tokens for one in own] == [*range(20, 44)]
    halves = [workload(alone, Asked(2.0, 500, half=h), False).arrivals for h in ("tune", "report")]
    assert [len(half) for half in halves] == [12, 12]  # of the slice


def test_two_sources_may_share_times(traces: Path) -> None:
    (traces / "l.csv").write_text("prompt_tokens,output_tokens\n7,3\n")
    parts = [{"name": "a", "source": "l"}, {"name": "b", "source": "t"}]
    with pytest.raises(ScenarioError, match="the times of which of l, t"):
        of_trace(parts=parts)
    found = workload(of_trace(parts=parts, arrivals_of="t"), Asked(1.0, 80), stand_ins=False)
    assert {one.slo_class for one in found.arrivals} == {"a", "b"}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"slice_s": [9802, 10]}, "slice_s: t has no request from 9802 s on for 10 s, it ends at 9801 s"),
        ({"arrivals": "poisson", "slice_s": [0, 10]}, "slice_s: arrivals are poisson, not trace or thinned"),
        ({"arrivals": "poisson", "arrivals_of": "t"}, "arrivals_of: arrivals are poisson"),
        ({"arrivals_of": "synthetic:t"}, "arrivals_of: there is no 'synthetic:t'"),
        ({"arrivals_of": "synthetic:toolbench"}, "arrivals: synthetic:toolbench has no times"),
        ({"parts": [{"name": "a", "source": "t", "stages": {"thinking": {}}}]},
         "parts.a.thinking_share: t does not say what is thinking"),
        ({"parts": [{"name": "a", "source": "t", "stages": {"planning": {}}}]}, "stages.planning: unknown field"),
        ({"parts": [{"name": "a", "source": "t", "stages": {"response": {"ttft": {"base_s": 1}}}}]},
         "parts[0].stages.response.ttft: an answer has one first token"),
        ({"parts": [{"name": "a", "source": "t", "stages": {"tool": {"tpot": {"slowdown": 1}}}}]},
         "parts[0].stages.tool.tpot: slowdown is of the prompt"),
        ({"parts": [{"name": "a", "source": "t", "stages": {"tool": {"tpot": {"base_s": 0}}}}]},
         "parts[0].stages.tool.tpot.base_s: expected float > 0.0, got 0"),
        ({"arrivals": "poison"}, "arrivals: 'poison' is not one of gamma, poisson, thinned, trace"),
        ({"preemption": "swop"}, "preemption: 'swop' is not one of recompute, swap"),
        ({"rule": "mean"}, "rule: 'mean' is not one of every_gap, cumulative_deadline, request_mean"),
        ({"policies": {"edf": {}, "vllm": {"y": 1, "x": [1]}}}, "policies.vllm.x: expected bool | int"),
    ],
)  # fmt: skip
def test_what_stages_and_slices_cannot_be(traces: Path, fields: dict, words: str) -> None:  # type: ignore[type-arg]
    with pytest.raises(ScenarioError) as found:
        workload(of_trace(**fields), Asked(1.0, 10), stand_ins=False)
    assert words in str(found.value)


def test_thinking_by_the_trace_or_by_its_share(traces: Path) -> None:
    (traces / "r.csv").write_text(
        "arrived_at,prompt_tokens,output_tokens,reason_tokens\n0,10,20,15\n1,10,200,150\n2,10,4,4\n3,10,1,0\n"
    )
    stages = {"thinking": {"tpot": {"base_s": 0.05}}}
    part = {"name": "a", "source": "r", "tpot": {"base_s": 0.1}, "stages": stages}
    scenario = of_trace(parts=[part], max_tokens=100)
    arrivals = workload(scenario, Asked(1.0, 4), stand_ins=False).arrivals
    # The second is cut within its thinking; a thinking is never the whole output.
    assert [one.thinking_tokens for one in arrivals] == [15, 0, 3, 0]
    assert [one.thought for one in arrivals] == [15, 100, 3, 1]
    for one in arrivals:
        assert one.objective.tpot_s == 0.1 and one.objective.thinking is not None
        assert one.objective.thinking.tpot_s == 0.05
    shared = of_trace(parts=[{**part, "thinking_share": 0.25}], max_tokens=100)
    arrivals = workload(shared, Asked(1.0, 4), stand_ins=False).arrivals
    assert [one.thinking_tokens for one in arrivals] == [5, 50, 1, 0]


SIX = ("chatbot", "coder", "summarizer", "mixed", "toolllm", "reasoning")


@pytest.mark.parametrize("name", SIX)
def test_the_six_of_slos_serve(name: str) -> None:
    """Everything works without a trace; objectives are the paper's (SLOs-Serve's code): slowdowns of TTFT 5, 5 and 3,
    TPOT 50 or 100 ms."""
    scenario = find_scenario(f"slos_{name}")
    found = workload(scenario, Asked(2.0, 200))
    assert len(found.arrivals) == 200
    device = scenario.device()
    slowdowns = {"chatbot": 5, "coder": 5, "summarizer": 3, "tools": 3, "reasoning": 3}
    paces = {"chatbot": 0.1, "coder": 0.05, "summarizer": 0.1, "tools": 0.05, "reasoning": 0.1}
    for one in found.arrivals:
        work = Work(one.prompt_tokens, prefill_work=one.prompt_tokens**2 / 2)
        alone_s = device.seconds(Iteration(work, sequences=1))
        assert one.objective.ttft_s == pytest.approx(slowdowns[one.slo_class] * alone_s)
        alone = one.slo_class == "tools" and one.follow_up is None
        assert one.objective.tpot_s == (0.1 if alone else paces[one.slo_class])
        thinking = one.objective.thinking
        assert (thinking is not None and thinking.tpot_s == 0.05) == (name == "reasoning")
        assert one.prompt_tokens + scenario.max_tokens <= scenario.cut_tokens


def test_tool_loops_have_calls_and_an_answer() -> None:
    found = workload(find_scenario("slos_toolllm"), Asked(1.0, 300))
    assert found.requests > 600
    for one in found.arrivals:
        call = one
        while call.follow_up is not None:
            assert call.stage == "tool" and call.objective.tpot_s == 0.05
            later = call.follow_up
            assert later.shared_tokens == call.prompt_tokens + call.output_tokens
            call = later
        assert call.stage == "answer" and call.objective.tpot_s == 0.1


def test_a_missing_trace_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    with pytest.raises(TraceError, match="no file 'azure2023_code'"):
        workload(find_scenario("azure2023_code"), Asked(1.0, 10), stand_ins=False)
    assert len(workload(find_scenario("azure2023_code"), Asked(1.0, 10)).arrivals) == 10


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('model = "opt-13b"', 'model = "opt-13"', "scenarios.s.model: no fit of 'opt-13' on 'a100'; there is opt-13b"),
        ("rates = [1, 2]", "rates = [2, 1]", "scenarios.s.rates: not ascending"),
        ("rates = [1, 2]", "rates = [0]", "scenarios.s.rates[0]: expected float > 0.0, got 0"),
        ("rates = [1, 2]", "", "scenarios.s: Object missing required field rates"),
        ("seeds = [0]", "seed = [0]", "scenarios.s.seed: unknown field; did you mean seeds?"),
        ('name = "a"', 'name = "a"\nttft = { base = 1 }', "parts[0].ttft.base: unknown field; did you mean base_s?"),
        ('name = "a"', 'name = "a"\nttft = { base_s = 1, slowdown = 2 }', "state either base_s or slowdown"),
        ('name = "a"', 'name = "a"\ntpot = { slowdown = 2 }', "tpot: slowdown is of the prompt"),
        ('name = "a"', 'name = "a"\nttft = { base_s = 1, spread = [2, 1] }', "spread: 2 is above 1"),
        ("synthetic:azure2023_conv", "synthetic:azure2023_con", "parts.a.source: there is no"),
        ("seeds = [0]", "seeds = [0]\nkv_gb = 1", "max_tokens: requests of 2049 tokens, the KV cache holds 1216"),
        ("seeds = [0]", "seeds = [0]\ncut_tokens = 100", "cut_tokens: 100 leaves no room beside max_tokens"),
        ("[scenarios.s]", "[scenario.s]", "scenario: unknown field; did you mean scenarios?"),
        ("\n[scenarios.s]", 'rule = "every_gap"\n[scenarios.s]', "rule: unknown field"),  # a scenario states it
        ("[scenarios.s]", "[scenarios.s", "not TOML"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, words: str) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SOUND)
    assert list(load_scenarios(path)) == ["s"]
    path.write_text(SOUND.replace(old, new))
    with pytest.raises(ScenarioError) as found:
        load_scenarios(path)
    assert words in str(found.value) and str(path) in str(found.value)
    assert "\n" not in str(found.value)


def test_names_have_near_matches(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="'acelgen'; did you mean accelgen"):
        find_scenario("acelgen")
    with pytest.raises(ScenarioError, match="No such file"):
        load_scenarios(tmp_path / "none.toml")
