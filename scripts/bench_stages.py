"""What a benchmark run says of stages: thinking and response of an answer, calls of a session, sessions as a whole.

A session attains if all its calls were sent and each attains, as a request of several stages does in SLOs-Serve (arXiv
2504.08784). Thinking and response are judged by the mean time to each of their tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from accelgen.proto.stages import RESPONSE, THINKING
from accelgen.scripts.bench_load import Outcome
from accelgen.scripts.bench_metrics import (
    Attainment,
    Rule,
    Share,
    Spread,
    Timing,
    attainment,
    attains,
    spread,
)


@dataclass(frozen=True)
class PartKept:
    """Thinking or response: answers that have it, their tokens, the time to each, and how many kept the objective."""

    requests: int
    tokens: int
    tpot: Spread
    kept: Share


@dataclass(frozen=True)
class Stages:
    """By name; empty where no request has stages. `sessions` counts them by rule, those with a single call included."""

    parts: dict[str, PartKept] = field(default_factory=dict)
    calls: dict[str, Attainment] = field(default_factory=dict)
    sessions: dict[Rule, Share] = field(default_factory=dict)


def stages_of(
    outcomes: Sequence[Outcome], timings: Sequence[Timing], percentiles: Sequence[float]
) -> Stages:
    """`timings` are those of the outcomes, by the limits that they are judged by."""
    names = sorted({timing.stage for timing in timings if timing.stage})
    return Stages(
        parts=_parts([one for one in timings if one.succeeded and one.thinking], percentiles),
        calls={name: attainment([one for one in timings if one.stage == name]) for name in names},
        sessions=_sessions(outcomes, timings) if names else {},
    )


def _parts(timings: Sequence[Timing], percentiles: Sequence[float]) -> dict[str, PartKept]:
    found = {}
    for name in (THINKING, RESPONSE):
        limits = [
            one.limits.thinking_s if name == THINKING else one.limits.tpot_s for one in timings
        ]
        counts = [_tokens(one, name) for one in timings]
        paces_s = [part_tpot_s(one, name) for one in timings]
        stated = [limit_s for limit_s in limits if limit_s is not None]
        kept = [
            limit_s is None or pace_s is None or pace_s <= limit_s
            for limit_s, pace_s, count in zip(limits, paces_s, counts, strict=True)
            if count
        ]
        if kept:
            found[name] = PartKept(
                requests=len(kept),
                tokens=sum(counts),
                tpot=spread([one for one in paces_s if one is not None], percentiles),
                kept=Share(len(stated), len(kept), sum(kept)),
            )
    return found


def _tokens(timing: Timing, part: str) -> int:
    thinking = min(timing.thinking, timing.output_tokens)
    return thinking if part == THINKING else timing.output_tokens - thinking


def part_tpot_s(timing: Timing, part: str) -> float | None:
    """The mean time to each of the part's tokens, but to the first token of all; None without such a token, or where
    all came at once."""
    thinking = min(timing.thinking, timing.output_tokens)
    gaps = thinking - 1 if part == THINKING else timing.output_tokens - max(thinking, 1)
    if gaps < 1 or timing.in_one_clump:
        return None
    at_s = timing.token_times_s()
    begin, end = (0, thinking - 1) if part == THINKING else (max(thinking, 1) - 1, len(at_s) - 1)
    return math.fsum((at_s[end], -at_s[begin])) / gaps


def _sessions(outcomes: Sequence[Outcome], timings: Sequence[Timing]) -> dict[Rule, Share]:
    """Over all sessions that have begun. One with a call that cannot be judged is not judged unless another missed."""
    sessions: dict[int, list[Timing]] = {}
    calls: dict[int, int] = {}
    for outcome, timing in zip(outcomes, timings, strict=True):
        request = outcome.request
        first = request.index if request.session < 0 else request.session
        sessions.setdefault(first, []).append(timing)
        if request.session < 0:
            calls[first] = request.calls
    found = {}
    for rule in Rule:
        verdicts = [_verdict(one, calls.get(first, 0), rule) for first, one in sessions.items()]
        judged = [verdict for verdict in verdicts if verdict is not None]
        found[rule] = Share(len(sessions), len(judged), sum(judged))
    return found


def _verdict(session: Sequence[Timing], calls: int, rule: Rule) -> bool | None:
    verdicts = [attains(one, rule) for one in session]
    if False in verdicts or len(verdicts) < calls:
        return False
    return None if None in verdicts else True
