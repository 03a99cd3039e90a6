"""Requests of several stages: their demand lines by hand."""

from __future__ import annotations

import re
from math import inf

import pytest

from accelgen.scheduler.slos_serve.stages import (
    Kind,
    Stage,
    demand_line,
    demands,
    next_due_s,
    required,
    tightest_s,
)

PROMPT = Stage(Kind.PREFILL, 300, ttft_s=1.0)
THINKING = Stage(Kind.THINKING, 100, tpot_s=0.05)
RESPONSE = Stage(Kind.RESPONSE, 20, tpot_s=0.1)
CALL = Stage(Kind.RESPONSE, 10, tpot_s=0.05)
TOOL = Stage(Kind.TOOL, takes_s=2.0)


def test_prompt_and_answer() -> None:
    """First token by 1 s after it came, token n by (n - 1) * 0.1 s after that."""
    [line] = lines = demand_line([PROMPT, RESPONSE], ready_s=5.0)
    assert (line.prompt, line.ready_s, line.begin_s, line.held) == (300, 5.0, 6.0, 0)
    assert [required(lines, s) for s in (5.99, 6.0, 6.09, 6.1, 7.0, 99.0)] == [0, 1, 1, 2, 11, 20]
    assert [next_due_s(lines, n) for n in (0, 1, 19)] == pytest.approx([6.0, 6.1, 7.9])
    assert next_due_s(lines, 20) == inf and tightest_s(lines, 0) == tightest_s(lines, 50) == 0.1


def test_a_late_first_token_shifts_the_line() -> None:
    [line] = demand_line([PROMPT, RESPONSE], 5.0, first_s=6.5)
    assert line.due_s(3) == pytest.approx(6.7)
    assert (
        demand_line([PROMPT, RESPONSE], 5.0, first_s=5.5)[0].begin_s == 6.0
    )  # an early one is credit


def test_thinking_at_one_pace_and_responding_at_another() -> None:
    """100 tokens at 50 ms: the response begins at 1 + 5 s."""
    lines = demand_line([PROMPT, THINKING, RESPONSE], 0.0)
    assert [(one.begin_s, one.end_s) for one in lines] == [
        pytest.approx((1.0, 6.0)),
        pytest.approx((6.0, 8.0)),
    ]
    assert [required(lines, s) for s in (1.0, 2.0, 5.951, 6.0, 6.05, 6.1)] == [
        1,
        21,
        100,
        101,
        101,
        102,
    ]
    assert [next_due_s(lines, n) for n in (99, 100, 101)] == pytest.approx([5.95, 6.0, 6.1])
    assert [tightest_s(lines, n) for n in (0, 99, 100, 500)] == [0.05, 0.05, 0.1, 0.1]
    assert lines[1].held == 400 and lines[1].prompt == 0


def test_a_tool_loop() -> None:
    """The call is complete at 1 + 0.5 s, the tool has run at 3.5 s, the last prompt is due a second later."""
    lines = demand_line([PROMPT, CALL, TOOL, PROMPT, RESPONSE], 0.0)
    second = lines[1]
    assert (second.ready_s, second.begin_s, second.prompt, second.held) == (3.5, 4.5, 300, 310)
    assert [required(lines, s) for s in (1.5, 4.4, 4.5)] == [10, 10, 11]
    found = demands(lines, 7, True)
    assert [(one.key, one.is_new, one.ready_s, one.due_s, one.tokens) for one in found] == [
        (7, True, 0.0, 1.0, 300),
        (7, True, 3.5, 4.5, 300),
    ]
    assert [(one.output, one.tpot_s, one.held) for one in found] == [(10, 0.05, 0), (20, 0.1, 310)]


def test_several_loops_one_after_the_other() -> None:
    lines = demand_line([PROMPT, CALL] + 3 * [TOOL, PROMPT, CALL], 0.0)
    assert [one.begin_s for one in lines] == pytest.approx([1.0, 4.5, 8.0, 11.5])
    assert [one.held for one in lines] == [0, 310, 620, 930]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([], "at least one"),
        ([RESPONSE], "a response stage cannot be number 1"),
        ([PROMPT], "the last one that is not a tool must decode"),
        ([PROMPT, PROMPT, RESPONSE], "a prefill stage cannot be number 2"),
        ([TOOL, PROMPT, RESPONSE], "a tool stage cannot be number 1"),
        ([PROMPT, TOOL, RESPONSE], "a tool stage cannot be number 2"),
        ([PROMPT, CALL, TOOL, RESPONSE], "a response stage cannot be number 4"),
        ([PROMPT, CALL, TOOL, PROMPT], "must decode"),
    ],
)
def test_orders_that_make_no_sense(stages: list[Stage], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        demand_line(stages, 0.0)


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        ({"kind": Kind.PREFILL, "ttft_s": 1.0}, "tokens: 0 of a prefill stage, must be at least 1"),
        ({"kind": Kind.PREFILL, "tokens": 5}, "ttft_s: inf s of a prefill stage, must be at least 0"),
        ({"kind": Kind.THINKING, "tokens": 5}, "tpot_s: inf s of a thinking stage, must be above 0"),
        ({"kind": Kind.RESPONSE, "tokens": 5, "tpot_s": 0.0}, "tpot_s: 0.0 s of a response stage"),
        ({"kind": Kind.TOOL, "takes_s": -1.0}, "takes_s: -1.0 s, must be at least 0"),
    ],
)  # fmt: skip
def test_stages_that_lack_what_they_need(stage: dict, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Stage(**stage)
