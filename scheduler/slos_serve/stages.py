"""Requests of several stages, each with its own objective, and the demand line that these make (arXiv 2504.08784).

A prompt must be processed within a time after it is there; from that deadline on the required tokens rise by one every
`tpot_s`. Reasoning models think at one pace and respond at another; in tool loops an answer calls a tool, and the next
prompt is there when that has run. Output lengths are estimates: where a stage really ends is seen when it does.

A token before its line is credit, and a first token after its deadline shifts the line of that answer, as in the
authors' rule of attainment: token n is due at max(deadline, first token) + (n - 1) * TPOT.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from math import floor, inf

from msgspec import Struct

from accelgen.proto.messages import Thinking
from accelgen.scheduler.slos_serve.edf_sim import Demand

_CLOSE = 1e-9
THINKING_SHARE = 0.7
"""Of an answer's tokens, where nobody knows: the mean of DeepSeek-R1's requests in ServeGen (arXiv 2505.09999)."""


class Kind(StrEnum):
    PREFILL = "prefill"
    THINKING = "thinking"
    RESPONSE = "response"
    TOOL = "tool"


DECODES = (Kind.THINKING, Kind.RESPONSE)


class Stage(Struct, frozen=True):
    """One stage: `tokens` to process (a prefill) or to generate (thinking, response). `ttft_s` is a prefill's time from
    being ready to its first token, `tpot_s` the time per token of a decode, `takes_s` how long a tool runs. Raises
    ValueError where one that the kind needs is missing."""

    kind: Kind
    tokens: int = 0
    ttft_s: float = inf
    tpot_s: float = inf
    takes_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind is not Kind.TOOL and self.tokens < 1:
            raise ValueError(f"tokens: {self.tokens} of a {self.kind} stage, must be at least 1")
        if self.kind is Kind.PREFILL and not 0 <= self.ttft_s < inf:
            raise ValueError(f"ttft_s: {self.ttft_s} s of a prefill stage, must be at least 0")
        if self.kind in DECODES and not 0 < self.tpot_s < inf:
            raise ValueError(f"tpot_s: {self.tpot_s} s of a {self.kind} stage, must be above 0")
        if not 0 <= self.takes_s < inf:
            raise ValueError(f"takes_s: {self.takes_s} s, must be at least 0")


class Line(Struct, frozen=True):
    """What a decode stage demands: its first token at `begin_s`, then one every `tpot_s`, `tokens` in all. Its prompt,
    if it follows one, has `prompt` tokens and is there at `ready_s`; `held` tokens were processed before both."""

    kind: Kind
    begin_s: float
    tokens: int
    tpot_s: float
    prompt: int
    ready_s: float
    held: int

    @property
    def end_s(self) -> float:
        """When the stage must be over: where the line of the next one goes on."""
        return self.begin_s + self.tokens * self.tpot_s

    def due_s(self, number: int) -> float:
        """When token `number` of the stage (the first is 1) must be there."""
        return self.begin_s + (number - 1) * self.tpot_s

    def required(self, at_s: float) -> int:
        """Tokens of the stage that must be there by then."""
        if at_s < self.begin_s - _CLOSE:
            return 0
        return min(self.tokens, floor((at_s - self.begin_s) / self.tpot_s + _CLOSE) + 1)


def demand_line(stages: Sequence[Stage], ready_s: float, first_s: float = -inf) -> list[Line]:
    """The decode stages of a request that is there at `ready_s`, one after the other; `first_s` is when its first token
    came, if it has. Raises ValueError unless it begins with a prefill, prefills and decodes alternate with nothing but
    tools between them, and a decode comes last."""
    lines: list[Line] = []
    held, prompt, begin_s = 0, 0, ready_s
    open_prompt = False  # a prefill whose answer has not begun
    at_s = ready_s
    for i, stage in enumerate(stages):
        if stage.kind is Kind.PREFILL and not open_prompt:
            prompt, ready_s, open_prompt = stage.tokens, at_s, True
            begin_s = at_s + stage.ttft_s
            begin_s = begin_s if lines else max(begin_s, first_s)
        elif stage.kind in DECODES and (open_prompt or (lines and stages[i - 1].kind in DECODES)):
            line = Line(stage.kind, begin_s, stage.tokens, stage.tpot_s, prompt, ready_s, held)
            lines.append(line)
            held += prompt + stage.tokens
            prompt, open_prompt = 0, False
            at_s = begin_s = ready_s = line.end_s
        elif stage.kind is Kind.TOOL and lines and not open_prompt:
            at_s += stage.takes_s
        else:
            raise ValueError(f"stages: a {stage.kind} stage cannot be number {i + 1}")
    if open_prompt or not lines:
        raise ValueError("stages: at least one, and the last one that is not a tool must decode")
    return lines


def required(lines: Sequence[Line], at_s: float) -> int:
    """Output tokens that all stages together must have brought by then."""
    return sum(line.required(at_s) for line in lines)


def next_due_s(lines: Sequence[Line], generated: int) -> float:
    """When the token after so many generated ones is due; infinite after the last that is expected."""
    for line in lines:
        if generated < line.tokens:
            return line.due_s(generated + 1)
        generated -= line.tokens
    return inf


def tightest_s(lines: Sequence[Line], generated: int) -> float:
    """The shortest time per token of the stages that are not over after so many generated tokens; that of the last
    stage if it goes on for longer than expected."""
    left = []
    for line in lines:
        if generated < line.tokens:
            left.append(line.tpot_s)
        generated = max(0, generated - line.tokens)
    return min(left, default=lines[-1].tpot_s)


def demands(lines: Sequence[Line], key: int, is_new: bool) -> list[Demand]:
    """The same for `edf_sim`: prompts that come later are later arrivals."""
    return [
        Demand(key, is_new, one.begin_s, one.prompt, one.tpot_s, one.tokens, one.ready_s, one.held)
        for one in lines
    ]


def in_parts(one: Demand, thinking: Thinking, generated: int, response_s: float) -> list[Demand]:
    """The demand of a request that thinks, after so many tokens, as that of its thinking, which is expected to be
    `THINKING_SHARE` of all it generates (but at most `max_tokens`, and at least a token more than there are), and of
    its response, one token in `response_s`. (The paper takes the lengths of all stages as known.)"""
    if one.output < 2:
        return [one]
    expected = round(THINKING_SHARE * (generated + one.output))
    expected = min(expected, thinking.max_tokens or expected)
    tokens = min(max(expected - generated, 1), one.output - 1)
    end_s = one.due_s + tokens * one.tpot_s
    held = one.held + one.tokens + tokens
    first = Line(Kind.THINKING, one.due_s, tokens, one.tpot_s, one.tokens, one.ready_s, one.held)
    second = Line(Kind.RESPONSE, end_s, one.output - tokens, response_s, 0, end_s, held)
    return demands([first, second], one.key, one.is_new)
