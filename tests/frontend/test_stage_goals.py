"""Objectives by stage: what wins, what is refused, what the verdict says."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from accelgen.frontend.errors import ApiError
from accelgen.frontend.events import Outcome, Part
from accelgen.frontend.metrics import Metrics
from accelgen.frontend.objectives import Stated, judge, resolve
from accelgen.frontend.schema import parse_completion
from accelgen.proto.config import SloClass, StageGoals
from accelgen.proto.messages import Objective, Thinking
from accelgen.proto.stages import RESPONSE, THINKING

AGENT = {
    "thinking": StageGoals(tpot_ms=30),
    "tool": StageGoals(ttft_ms=200, tpot_ms=60),
    "answer": StageGoals(tpot_ms=90),
}
CLASSES = {
    "chat": SloClass(ttft_ms=1000, tpot_ms=100, bounds_ms=(10, 5000)),
    "agent": SloClass(ttft_ms=1000, tpot_ms=100, stages=AGENT),
}
MARKS = (7, 8)
TPOT = (b"x-slo-tpot-ms", b"50")


def found(body: dict[str, Any], headers: Any = (), marks: tuple[int, ...] = MARKS) -> Stated:
    extension = parse_completion({"prompt": "x", "accelgen": body}).accelgen
    return resolve(CLASSES, "chat", headers, extension, marks)


def paces(stated: Stated) -> tuple[float | None, float | None, float | None]:
    """TTFT, thinking (-1: there is none), response."""
    objective = stated.objective
    first = -1.0 if objective.thinking is None else objective.thinking.tpot_s
    return objective.ttft_s, first, objective.tpot_s


THINK40, RESPOND80 = {"thinking": {"tpot_ms": 40}}, {"response": {"tpot_ms": 80}}
TOOL20 = {"tool": {"tpot_ms": 20}}


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({}, (1.0, -1.0, 0.1)),
        ({"stages": THINK40}, (1.0, 0.04, 0.1)),
        ({"stages": THINK40, "slo": {"tpot_ms": 70}}, (1.0, 0.04, 0.07)),
        ({"stages": RESPOND80}, (1.0, 0.1, 0.08)),
        ({"stages": THINK40 | RESPOND80, "slo": {"ttft_ms": 50}}, (0.05, 0.04, 0.08)),
        ({"stages": {"thinking": {}}, "slo": {"tpot_ms": 70}}, (1.0, 0.07, 0.07)),
        ({"stage": "tool"}, (1.0, -1.0, 0.1)),  # said, and no objective differs
        ({"stage": "tool", "stages": TOOL20}, (1.0, -1.0, 0.02)),
        ({"stage": "answer", "stages": TOOL20}, (1.0, -1.0, 0.1)),
        ({"stage": "tool", "stages": TOOL20 | THINK40}, (1.0, 0.04, 0.02)),
        ({"slo_class": "agent"}, (1.0, 0.03, 0.1)),
        ({"slo_class": "agent", "stage": "tool"}, (0.2, 0.03, 0.06)),
        ({"slo_class": "agent", "stage": "answer"}, (1.0, 0.03, 0.09)),
        ({"slo_class": "agent", "stage": "tool", "slo": {"tpot_ms": 70}}, (0.2, 0.07, 0.07)),
        ({"slo_class": "agent", "stage": "tool", "stages": TOOL20}, (0.2, 0.02, 0.02)),
    ],
)
def test_the_more_specific_wins(body: dict[str, Any], expected: tuple[float, float, float]) -> None:
    assert paces(found(body)) == expected


def test_a_header_overrides_all_of_it() -> None:
    stated = found({"stage": "tool", "stages": TOOL20 | THINK40}, [TPOT])
    assert paces(stated) == (1.0, -1.0, 0.05) and stated.stage == "tool"


def test_what_goes_to_the_scheduler() -> None:
    body = {"stages": {"thinking": {"tpot_ms": 40, "max_tokens": 300}}}
    assert found(body).objective.thinking == Thinking(0.04, [7, 8], 300)
    assert found(body, marks=()).objective.thinking == Thinking(0.04, [], 300)
    # A class is for all models: where nothing ends a thinking, there is none.
    assert paces(found({"slo_class": "agent"}, marks=())) == (1.0, -1.0, 0.1)
    assert paces(found({"stages": RESPOND80}, marks=())) == (1.0, -1.0, 0.08)


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"stage": "thinking"}, "accelgen.stage", "'thinking' is no stage of a session; there are tool, answer"),
        ({"stage": "plan\n"}, "accelgen.stage", "there are tool, answer"),
        ({"stages": {"planning": {"tpot_ms": 40}}}, "accelgen.stages.planning",
         "there is no such stage; there are thinking, response, tool, answer"),
        ({"stages": {"thinking": {"tpot_ms": 9}}}, "accelgen.stages.thinking.tpot_ms", "outside of 10 to 5,000 ms"),
        ({"stages": {"tool": {"ttft_ms": 5001}}}, "accelgen.stages.tool.ttft_ms", "outside of 10 to 5,000 ms"),
        ({"stages": {"response": {"ttft_ms": 50}}}, "accelgen.stages.response.ttft_ms", "one first token"),
        ({"stages": {"answer": {"max_tokens": 5}}}, "accelgen.stages.answer.max_tokens", "only of thinking"),
        ({"stages": {"thinking": {"tpot": 5}}}, "accelgen.stages.thinking.tpot", "unknown field"),
        ({"stages": {"thinking": {"max_tokens": 0}}}, "accelgen.stages.thinking.max_tokens", "must be greater"),
        ({"stages": []}, "accelgen.stages", "must be an object"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(body: dict[str, Any], param: str, words: str) -> None:
    with pytest.raises(ApiError) as refused:
        found(body)
    assert refused.value.status == 400 and refused.value.param == param
    assert words in refused.value.message and "\n" not in refused.value.message


def test_a_model_that_does_not_think() -> None:
    with pytest.raises(ApiError) as refused:
        found({"stages": THINK40}, marks=())
    assert refused.value.param == "accelgen.stages.thinking"
    assert "--think-tokens" in refused.value.message


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ({"plan": StageGoals()}, "there is no 'plan', only thinking, response, tool, answer"),
        ({"response": StageGoals(ttft_ms=5)}, "response.ttft_ms"),
        ({"tool": StageGoals(tpot_ms=0.5)}, "tool.tpot_ms: 0.5 is outside bounds_ms 1 to 3.6e"),
    ],
)
def test_classes_with_stages_that_cannot_be(stages: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        SloClass(stages=stages)


def outcome(*parts: Part, tpot_s: float | None = 0.05) -> Outcome:
    return Outcome(10, 5, 4, 1, 0.01, 0.5, tpot_s, 5.0, parts)


def test_the_verdict_on_parts() -> None:
    aim = Objective(1.0, 0.1, thinking=Thinking(0.04, [7]))
    stated = Stated("chat", aim, "tool")
    kept = outcome(Part(THINKING, 4, 0.04, 0.04), Part(RESPONSE, 1, 0.1, 0.1))
    late = outcome(Part(THINKING, 3, 0.05, 0.04), Part(RESPONSE, 2, 0.02, 0.1))
    verdict = judge(stated, [kept])
    assert verdict.slo_met.tpot is True
    both = msgspec.json.decode(msgspec.json.encode(judge(stated, [kept, late])))
    assert both["slo_met"] == {"ttft": True, "tpot": False, "e2e": None} and both["stage"] == "tool"
    assert both["stages"] == {
        "thinking": {"tokens": 7, "tpot_ms": 50.0, "met": False},
        "response": {"tokens": 3, "tpot_ms": 100.0, "met": True},
    }
    unstated = outcome(Part(THINKING, 4, 0.5, None), Part(RESPONSE, 1, None, 0.1))
    half = judge(Stated("chat", Objective(tpot_s=0.1, thinking=Thinking(None, [7]))), [unstated])
    assert half.slo_met.tpot is True
    plain = msgspec.json.decode(msgspec.json.encode(judge(Stated("chat", aim), [outcome()])))
    assert "stage" not in plain and "stages" not in plain  # a prompt whose thinking was over


def test_the_metrics_count_by_stage() -> None:
    metrics = Metrics()
    aim = Objective(1.0, 0.1, thinking=Thinking(0.04, [7]))
    parts = (Part(THINKING, 4, 0.05, 0.04), Part(RESPONSE, 1, 0.1, 0.1))
    metrics.judge(judge(Stated("chat", aim, "answer"), [outcome(*parts)]))
    found = metrics.samples({})
    label = 'slo_class="chat",stage="answer"'
    assert found[f'accelgen:request_slo_violation_total{{slo="tpot_thinking",{label}}}'] == 1
    assert found[f'accelgen:request_slo_met_total{{slo="tpot_response",{label}}}'] == 1
    assert found[f'accelgen:request_slo_violation_total{{slo="all",{label}}}'] == 1
    assert found['accelgen:stage_tokens_total{stage="thinking"}'] == 4
