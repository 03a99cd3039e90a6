"""The times of simulated requests as columns, and by which rule they keep which objective. Definitions, symbols before
names: docs/metrics.md; those of `accelgen.scripts.bench_metrics`, which measures live servers, are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from math import inf

import numpy as np
from numpy.typing import NDArray

from accelgen.proto.messages import Reason
from accelgen.scheduler.table import Bools, Floats, Ints
from accelgen.simulator.run import Fate

CLOSE_S = 1e-9
"""Boundaries count as met: times are sums of floats, so an objective missed by less than this is met."""


class Rule(StrEnum):
    """How a time per output token is judged."""

    EVERY_GAP = "every_gap"
    CUMULATIVE = "cumulative_deadline"
    MEAN = "request_mean"


@dataclass(frozen=True)
class Times:
    """Columns of all requests sent, [n] unless said otherwise. Objectives are infinite where none is stated; times of
    requests without a token are infinite, too. `token_s` [sum of tokens] has them one request after the other, and
    `begin` [n] says where each begins. The first `thinking` tokens of a request must keep `thinking_due_s`, the others
    `tpot_due_s`; 0 for one that does not think at a pace of its own. `session`: the number of the request with which
    its session began; `calls`: how many that has."""

    sent_s: Floats
    prompt: Ints
    tokens: Ints
    first_s: Floats
    last_s: Floats
    succeeded: Bools
    ttft_due_s: Floats
    tpot_due_s: Floats
    e2e_due_s: Floats
    slo_class: NDArray[np.str_]
    token_s: Floats
    begin: Ints
    thinking: Ints
    thinking_due_s: Floats
    stage: NDArray[np.str_]
    session: Ints
    calls: Ints

    @classmethod
    def of(cls, fates: Sequence[Fate]) -> Times:
        """The columns of `fates`."""
        tokens = np.array([len(fate.token_s) for fate in fates], dtype=np.int64)
        token_s = np.concatenate(
            [np.empty(0), *(np.frombuffer(f.token_s) for f in fates if f.token_s)]
        )
        begin = np.concatenate([[0], np.cumsum(tokens)])[: len(fates)].astype(np.int64)
        some = tokens > 0
        first_s, last_s = np.full(len(fates), inf), np.full(len(fates), inf)
        first_s[some] = token_s[begin[some]]
        last_s[some] = token_s[begin[some] + tokens[some] - 1]
        ended_well = [fate.end in (Reason.STOP, Reason.LENGTH) for fate in fates]
        goals = [fate.arrival.objective for fate in fates]
        begun = [number if fate.session < 0 else fate.session for number, fate in enumerate(fates)]
        return cls(
            sent_s=np.array([fate.arrival.at_s for fate in fates], dtype=float),
            prompt=np.array([fate.arrival.prompt_tokens for fate in fates], dtype=np.int64),
            tokens=tokens,
            first_s=first_s,
            last_s=last_s,
            succeeded=np.array(ended_well, dtype=bool) & some,
            ttft_due_s=_limits([goal.ttft_s for goal in goals]),
            tpot_due_s=_limits([goal.tpot_s for goal in goals]),
            e2e_due_s=_limits([goal.e2e_s for goal in goals]),
            slo_class=np.array([fate.arrival.slo_class for fate in fates], dtype=np.str_),
            token_s=token_s,
            begin=begin,
            thinking=np.array([fate.arrival.thought for fate in fates], dtype=np.int64),
            thinking_due_s=_limits(
                [None if goal.thinking is None else goal.thinking.tpot_s for goal in goals]
            ),
            stage=np.array([fate.arrival.stage for fate in fates], dtype=np.str_),
            session=np.array(begun, dtype=np.int64),
            calls=np.array([fates[first].arrival.stages for first in begun], dtype=np.int64),
        )

    @property
    def ttft_s(self) -> Floats:
        """From sent to first token, [n]."""
        return self.first_s - self.sent_s

    @property
    def jct_s(self) -> Floats:
        """From sent to last token, [n]: job completion time, also called E2E latency."""
        return self.last_s - self.sent_s

    @property
    def tpot_s(self) -> Floats:
        """Mean time per token after the first, [n]; NaN where there is only one, or none."""
        with np.errstate(invalid="ignore"):
            return np.where(
                self.tokens > 1,
                (self.last_s - self.first_s) / np.maximum(self.tokens - 1, 1),
                np.nan,
            )

    @cached_property
    def owner(self) -> Ints:
        """The request that each token belongs to, [sum of tokens]."""
        return np.repeat(np.arange(len(self.tokens)), self.tokens)

    @cached_property
    def number(self) -> Ints:
        """Of each token within its request, from 0 on, [sum of tokens]."""
        found: Ints = np.arange(len(self.token_s)) - self.begin[self.owner]
        return found

    @cached_property
    def pace_s(self) -> Floats:
        """The time per token that holds for each token: that of the stage it belongs to, [sum of tokens]."""
        owner = self.owner
        thinks = self.number < self.thinking[owner]
        return np.where(thinks, self.thinking_due_s[owner], self.tpot_due_s[owner])

    @property
    def paced(self) -> Bools:
        """Requests that state a time per token, of all or a part of their tokens, [n]."""
        thinks = (self.thinking > 0) & np.isfinite(self.thinking_due_s)
        found: Bools = thinks | np.isfinite(self.tpot_due_s)
        return found

    @property
    def gap_due_s(self) -> Floats:
        """What holds for each of `gaps_s`."""
        return self.pace_s[self.number > 0]

    def gaps_s(self) -> tuple[Floats, Ints]:
        """The time before each token but a request's first, and the request that each belongs to."""
        later = np.flatnonzero(self.number > 0)
        return self.token_s[later] - self.token_s[later - 1], self.owner[later]

    def thought_s(self) -> Floats:
        """When the thinking of each was over, [n]: its last token if it never was, NaN without any thinking."""
        last = np.minimum(self.thinking, self.tokens) - 1
        found = np.full(len(self.tokens), np.nan)
        some = last >= 0
        found[some] = self.token_s[self.begin[some] + last[some]]
        return found

    def part_tpot_s(self) -> tuple[Floats, Floats]:
        """Mean time per token of thinking and of response, [n] each; NaN without thinking, or without such a token
        after the first of all."""
        over_s, thinking = self.thought_s(), np.minimum(self.thinking, self.tokens)
        rest = self.tokens - thinking
        with np.errstate(invalid="ignore", divide="ignore"):
            first = np.where(thinking > 1, (over_s - self.first_s) / (thinking - 1), np.nan)
            second = np.where(rest > 0, (self.last_s - over_s) / rest, np.nan)
        return first, second

    def meets_ttft(self) -> Bools:
        return self.succeeded & (self.ttft_s <= self.ttft_due_s + CLOSE_S)

    def meets_e2e(self) -> Bools:
        return self.succeeded & (self.jct_s <= self.e2e_due_s + CLOSE_S)

    def meets_tpot(self) -> dict[Rule, Bools]:
        """By each rule, [n]; a request that failed meets none, one of a single token all."""
        gaps_s, owner = self.gaps_s()
        every = np.ones(len(self.tokens), dtype=bool)
        every[owner[gaps_s > self.gap_due_s + CLOSE_S]] = False
        thinking_s, response_s = self.part_tpot_s()
        with np.errstate(invalid="ignore"):
            mean = ~(self.tpot_s > self.tpot_due_s + CLOSE_S)
            parts = ~(thinking_s > self.thinking_due_s + CLOSE_S)
            parts &= ~(response_s > self.tpot_due_s + CLOSE_S)
        mean = np.where(self.thinking > 0, parts, mean)
        # "Every gap" implies the others; sums of floats must not say otherwise.
        return {
            Rule.EVERY_GAP: self.succeeded & every,
            Rule.CUMULATIVE: self.succeeded & (every | ~self._late()),
            Rule.MEAN: self.succeeded & (every | mean),
        }

    def behind_s(self) -> tuple[Floats, Ints]:
        """By how much each token k after the first comes behind max(sent + TTFT objective, first token) + (k - 1) TPOT
        (negative: before it), and the request that each belongs to; of requests that state a TPOT. Tokens of thinking
        count at its TPOT; if that is not stated, the response's line begins where the thinking ended."""
        some = np.flatnonzero(np.isfinite(self.pace_s) & (self.number > 0))
        owner, number = self.owner[some], self.number[some]
        stated_s = np.where(np.isfinite(self.ttft_due_s), self.sent_s + self.ttft_due_s, -inf)
        begin_s = np.maximum(stated_s, self.first_s)[owner]
        due_s = begin_s + number * self.pace_s[some]
        thought = self.thinking[owner]
        responds = np.flatnonzero((thought > 0) & (number >= thought))
        if len(responds):
            whose, before = owner[responds], thought[responds] - 1
            free = ~np.isfinite(self.thinking_due_s[whose])
            over_s = np.where(free, self.thought_s()[whose], begin_s[responds])
            over_s += before * np.where(free, 0.0, self.thinking_due_s[whose])
            due_s[responds] = over_s + (number[responds] - before) * self.tpot_due_s[whose]
        return self.token_s[some] - due_s, owner

    def _late(self) -> Bools:
        """Requests of which some token comes behind its cumulative deadline, [n]."""
        behind_s, owner = self.behind_s()
        late = np.zeros(len(self.tokens), dtype=bool)
        late[owner[behind_s > CLOSE_S]] = True
        return late

    def attains(self) -> dict[Rule, Bools]:
        """Succeeded and met every objective it states, [n]."""
        others = self.meets_ttft() & self.meets_e2e()
        return {rule: others & met for rule, met in self.meets_tpot().items()}


def _limits(values: Sequence[float | None]) -> Floats:
    return np.array([inf if value is None else value for value in values], dtype=float)
