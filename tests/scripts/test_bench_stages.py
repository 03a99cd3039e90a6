"""`accelgen bench serve` with stages: judging them, and the scenarios of the simulator against a scripted server."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accelgen.scripts.bench import command as bench
from accelgen.scripts.bench_load import Outcome
from accelgen.scripts.bench_metrics import Limits, Rule, Share, Timing, meets_tpot
from accelgen.scripts.bench_scenario import Draw, draw_requests
from accelgen.scripts.bench_stages import part_tpot_s, stages_of
from accelgen.scripts.bench_workload import Prompts, Request, Shape, WorkloadError
from accelgen.scripts.chat_objective import Objective, ObjectiveError, parse_objective
from accelgen.simulator.mix import Asked, load_sources, make_workload
from accelgen.simulator.scenarios import find_scenario

# Sent at 10, tokens at 10.4, 10.8, 11.6, 11.9, of which three are thinking; the first one was due at 11.
FOUR = Timing(10.0, 12.0, [10.4, 10.8, 11.6, 11.9], [1] * 4, 10, Limits(ttft_s=1.0), thinking=3)


@pytest.mark.parametrize(
    ("thinking_s", "response_s", "expected"),
    [
        (0.9, 0.4, [True] * 3),
        (0.65, 0.4, [False, True, True]),
        (0.9, 0.2, [False, True, False]),
        (None, 0.4, [True] * 3),
        (None, 0.2, [False, False, False]),
        (0.1, None, [False, False, False]),
    ],
)
def test_two_paces(
    thinking_s: float | None, response_s: float | None, expected: list[bool]
) -> None:
    asked = replace(FOUR, limits=Limits(1.0, response_s, None, thinking_s))
    assert [meets_tpot(asked, rule) for rule in Rule] == expected


def test_a_chunk_that_ends_the_thinking() -> None:
    """Of three tokens in one chunk the last two are the response: they have taken no time."""
    timing = Timing(
        0.0, 3.0, [1.0, 2.0, 3.0], [1, 3, 1], 5, Limits(None, 0.7, None, 1.0), thinking=2
    )
    assert part_tpot_s(timing, "thinking") == pytest.approx(1.0)
    assert part_tpot_s(timing, "response") == pytest.approx(1 / 3)
    assert [meets_tpot(timing, rule) for rule in Rule] == [False, True, True]


def outcome(index: int, timing: Timing, **fields: Any) -> Outcome:
    return Outcome(Request(index, 0.0, Shape(5, 4), **fields), timing)


def test_parts_are_summed_up() -> None:
    asked = replace(FOUR, limits=Limits(1.0, 0.2, None, 0.9))
    slow = replace(asked, chunk_s=[10.4, 12.8, 13.0, 13.1])
    alone = replace(asked, chunk_s=[10.4, 10.8], chunk_tokens=[1, 1])  # ended within its thinking
    plain = replace(FOUR, thinking=0)
    timings = [asked, slow, alone, plain, replace(asked, failed=True)]
    found = stages_of([outcome(i, one) for i, one in enumerate(timings)], timings, [50.0])
    thinking, response = found.parts["thinking"], found.parts["response"]
    assert (thinking.requests, thinking.tokens, thinking.kept) == (3, 8, Share(3, 3, 2))
    assert (response.requests, response.tokens, response.kept) == (2, 2, Share(3, 2, 1))
    assert thinking.tpot.median_s == pytest.approx(0.6)  # of 0.4, 0.6, 1.3
    assert not found.calls and not found.sessions


def test_sessions_attain_with_all_their_calls() -> None:
    good = replace(FOUR, thinking=0, stage="tool")
    late = replace(good, limits=Limits(ttft_s=0.1))
    last = replace(good, stage="answer")
    call = Request(8, 0.0, Shape(5, 4))
    begin = Request(0, 0.0, Shape(5, 4), follow_up=call)
    outcomes = [
        Outcome(replace(begin, index=0), good), Outcome(replace(call, session=0), last),
        Outcome(replace(begin, index=1), late), Outcome(replace(call, session=1), last),
        Outcome(replace(begin, index=2), good),  # its second call was never sent
        Outcome(Request(3, 0.0, Shape(5, 4)), last),
    ]  # fmt: skip
    found = stages_of(outcomes, [one.timing for one in outcomes], [])
    assert found.sessions == dict.fromkeys(Rule, Share(4, 4, 2))
    assert found.calls["tool"].overall[Rule.MEAN] == Share(3, 3, 2)
    assert found.calls["answer"].sent == 3


def test_an_objective_of_thinking() -> None:
    stated = parse_objective("ttft=300,tpot=100,thinking=50")
    assert stated == Objective(None, 300, 100, thinking_ms=50)
    assert stated.body() == {
        "slo": {"ttft_ms": 300, "tpot_ms": 100},
        "stages": {"thinking": {"tpot_ms": 50}},
    }
    most = Objective(thinking_ms=50, thinking_tokens=7, stage="tool")
    assert most.body() == {
        "stage": "tool",
        "stages": {"thinking": {"tpot_ms": 50, "max_tokens": 7}},
    }
    assert "thinking <= 50 ms" in str(stated)
    with pytest.raises(ObjectiveError, match="thinking: an objective|thinking<3"):
        parse_objective("thinking<3")


# --- scenarios -------------------------------------------------------------------------------------------------------

SIX = ("chatbot", "coder", "summarizer", "mixed", "toolllm", "reasoning")


def chain(request: Request) -> list[Request]:
    calls = [request]
    while (later := calls[-1].follow_up) is not None:
        calls.append(later)
    return calls


@pytest.mark.parametrize("name", SIX)
def test_the_requests_are_those_of_the_simulator(name: str) -> None:
    requests, rate = draw_requests(
        Draw(f"slos_{name}", rate=2.0, requests=60, seed=3, stand_ins=True)
    )
    scenario = find_scenario(f"slos_{name}")
    asked = Asked(2.0, 60, 3)
    sources = load_sources(scenario, asked, True)
    arrivals = make_workload("w", scenario, scenario.device(), asked, sources).arrivals
    assert rate == 2.0 and len(requests) == len(arrivals) == 60
    indices = []
    for request, begun in zip(requests, arrivals, strict=True):
        arrival = begun
        assert request.arrival_s == arrival.at_s and request.calls == arrival.stages
        for call in chain(request):
            goal, stated = arrival.objective, call.objective
            assert (call.shape.prompt, call.shape.output) == (
                arrival.prompt_tokens,
                arrival.output_tokens,
            )
            assert stated.ttft_ms == pytest.approx(1000 * (goal.ttft_s or 0), abs=1e-3)
            assert stated.tpot_ms == pytest.approx(1000 * (goal.tpot_s or 0))
            assert (stated.thinking_ms == 50) == (goal.thinking is not None)
            assert (stated.stage or "") == arrival.stage
            assert call.session == (-1 if call is request else request.index)
            indices.append(call.index)
            arrival = arrival.follow_up or arrival
    assert sorted(indices) == list(range(len(indices)))  # each prompt is its own


def test_scales(tmp_path: Path) -> None:
    plain, _ = draw_requests(Draw("slos_reasoning", rate=1.0, requests=50, stand_ins=True))
    small, _ = draw_requests(
        Draw("slos_reasoning", scale=0.05, slo_scale=4, rate=1.0, requests=50, stand_ins=True)
    )
    for one, other in zip(plain, small, strict=True):
        assert other.shape.output == pytest.approx(0.05 * one.shape.output, abs=1)
        assert other.shape.thinking == pytest.approx(0.05 * one.shape.thinking, abs=1.5)
        assert other.objective.tpot_ms == 400 and other.objective.thinking_ms == 200
        assert other.arrival_s == one.arrival_s
    cut, _ = draw_requests(
        Draw("slos_summarizer", rate=1.0, requests=50, stand_ins=True, max_len=256)
    )
    assert all(one.shape.prompt + one.shape.output <= 256 for one in cut)
    assert max(one.shape.prompt for one in cut) > 100


def test_what_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ACCELGEN_TRACES", raising=False)
    for draw, words in (
        (Draw("slos_chatbt"), "did you mean slos_chatbot"),
        (Draw("slos_chatbot"), "no file .*--synthetic needs no trace"),
        (Draw("slos_chatbot", profile="/nowhere.json", stand_ins=True), "nowhere"),
        (Draw("slos_chatbot", stand_ins=True, max_len=1), "hold no prompt and answer"),
    ):
        with pytest.raises(WorkloadError, match=words):
            draw_requests(draw)


def test_a_follow_up_repeats_its_prompt() -> None:
    prompts = Prompts(0, 1000, 0)
    first = Request(0, 0.0, Shape(20, 5))
    before = prompts.of(first)
    later = Request(1, 0.0, Shape(40, 5), before=before[:16])
    assert prompts.of(later)[:16] == before[:16]
    assert prompts.of(later)[16:] == prompts.make(1, 40)[16:]
    longer = replace(later, shape=Shape(10, 5))
    assert prompts.of(longer) == before[:10]


def run(server: Any, *args: str) -> Result:
    options = ["serve", "--url", server.url, "--synthetic", "--num-prompts", "8"]
    options += ["--request-rate", "200", "--scale", "0.02"]
    return CliRunner().invoke(bench, [*options, *args])


def row(table: str, label: str) -> str:
    found = re.search(rf"^{re.escape(label)}: +(\S+)$", table, re.MULTILINE)
    assert found, f"{label} is not in\n{table}"
    return found[1]


def test_reasoning_is_served_and_reported(server: Any, tmp_path: Path) -> None:
    """A server that counts thinking tokens is believed: here it says three of each answer."""
    parts = {"thinking": {"tokens": 3, "tpot_ms": 1.0, "met": True}}
    server.script.verdict = {**server.script.verdict, "stages": parts}
    result = run(
        server, "--scenario", "slos_reasoning", "--scale", "0.05", "--slo-scale", "100", "--save-result",
        "--save-detailed",
        "--result-dir", str(tmp_path), "--result-filename", "r.json",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "scenario slos_reasoning: 8 requests at 200/s" in result.stderr
    assert row(result.stdout, "thinking: answers") == "8"
    assert row(result.stdout, "thinking: tokens") == "24"
    assert row(result.stdout, "thinking: TPOT kept (%)") == "100.00"
    assert row(result.stdout, "response: answers") == "8"
    for body in server.seen:
        thinking = body["accelgen"]["stages"]["thinking"]
        assert thinking["tpot_ms"] == 5000
        assert 1 <= thinking["max_tokens"] <= body["max_tokens"]
        assert body["accelgen"]["slo"]["tpot_ms"] == 10_000
    saved = json.loads((tmp_path / "r.json").read_text())
    assert saved["stages"]["thinking"]["tpot_kept"] == 1.0 and saved["arrivals"] == "scenario"
    assert saved["thinking_tokens"] == [3] * 8 and saved["request_rate"] == 200


@pytest.fixture
def loops(tmp_path: Path) -> tuple[str, ...]:
    """Options for sessions of three calls and of one, without waiting for tools."""
    (tmp_path / "s.csv").write_text(
        "session_id,prompt_tokens,output_tokens,prefix_tokens_shared_with_prev,think_time\n"
        "a,30,4,0,0\na,50,4,34,0\na,60,4,54,0\nb,20,4,0,0\n"
    )
    (tmp_path / "s.toml").write_text(
        f"""
[scenarios.loops]
about = "loops"
model = "llama-2-7b"
hardware = "a100"
rates = [1]
seeds = [0]
max_tokens = 64
cut_tokens = 1024
[[scenarios.loops.parts]]
name = "tools"
source = "{tmp_path / "s.csv"}"
ttft = {{ base_s = 10 }}
tpot = {{ base_s = 5 }}
stages.answer.tpot = {{ base_s = 10 }}
"""
    )
    return ("--scenario", "loops", "--scenarios", str(tmp_path / "s.toml"), "--scale", "1")


def test_tool_loops_are_served_one_call_after_the_other(
    server: Any, loops: tuple[str, ...]
) -> None:
    server.script.pause_s = 0.005  # so that tokens do not come at once
    drawn, _ = draw_requests(Draw("loops", Path(loops[3]), rate=200.0, requests=8))
    expected = sum(request.calls for request in drawn)
    result = run(server, *loops)
    assert result.exit_code == 0, result.output
    assert len(server.seen) == expected > 8
    assert row(result.stdout, "Successful requests") == str(expected)
    assert f"{expected} requests at 200/s in 8 sessions" in result.stderr
    assert row(result.stdout, "Sessions, request mean (%)") == "100.00"
    assert row(result.stdout, "stage tool: requests sent") == str(expected - 8)
    assert row(result.stdout, "stage answer: requests sent") == "8"
    repeats = 0
    for number, body in enumerate(server.seen):
        is_answer = body["accelgen"]["stage"] == "answer"
        assert body["accelgen"]["slo"]["tpot_ms"] == (10_000 if is_answer else 5000)
        earlier = [one["prompt"] for one in server.seen[:number]]
        repeats += any(body["prompt"][: len(one)] == one for one in earlier)
    assert repeats == expected - 8


def test_a_failed_call_ends_its_session(server: Any, loops: tuple[str, ...]) -> None:
    server.script.refused = 8
    result = run(server, *loops)
    assert result.exit_code == 1 and len(server.seen) == 8
    assert row(result.stdout, "Sessions, request mean (%)") == "0.00"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--scenario", "slos_chatbot", "--mix", "a=1:2:3"], "--mix: a scenario has its own"),
        (["--scenario", "slos_chatbot", "--slo", "ttft=3"], "--slo: a scenario has its own"),
        (["--scenario", "slos_chatbot", "--request-rate", "inf"], "--request-rate: inf"),
        (["--scenario", "slos_chatbt"], "did you mean slos_chatbot"),
        ([], "--scale: belongs to --scenario"),
    ],
)
def test_what_does_not_go_together(server: Any, args: list[str], words: str) -> None:
    result = run(server, *args)
    assert result.exit_code == 2 and words in result.stderr and not server.seen
