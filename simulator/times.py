"""The times of simulated requests as columns, and by which rule they keep which objective. Definitions, symbols before
names: docs/metrics.md; those of `accelgen.scripts.bench_metrics`, which measures live servers, are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
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


@dataclass(frozen=True, slots=True)
class Times:
    """Columns of all requests sent, [n] unless said otherwise. Objectives are infinite where none is stated; times of
    requests without a token are infinite, too. `token_s` [sum of tokens] has them one request after the other, and
    `begin` [n] says where each begins."""

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

    def gaps_s(self) -> tuple[Floats, Ints]:
        """The time before each token but a request's first, and the request that each belongs to."""
        owner = np.repeat(np.arange(len(self.tokens)), self.tokens)
        inner = np.flatnonzero(owner[1:] == owner[:-1])
        return self.token_s[inner + 1] - self.token_s[inner], owner[inner]

    def meets_ttft(self) -> Bools:
        return self.succeeded & (self.ttft_s <= self.ttft_due_s + CLOSE_S)

    def meets_e2e(self) -> Bools:
        return self.succeeded & (self.jct_s <= self.e2e_due_s + CLOSE_S)

    def meets_tpot(self) -> dict[Rule, Bools]:
        """By each rule, [n]; a request that failed meets none, one of a single token all."""
        gaps_s, owner = self.gaps_s()
        stated = np.isfinite(self.tpot_due_s)
        every = np.ones(len(self.tokens), dtype=bool)
        every[owner[gaps_s > self.tpot_due_s[owner] + CLOSE_S]] = False
        with np.errstate(invalid="ignore"):
            mean = ~(self.tpot_s > self.tpot_due_s + CLOSE_S)
        # "Every gap" implies the others; sums of floats must not say otherwise.
        return {
            Rule.EVERY_GAP: self.succeeded & (every | ~stated),
            Rule.CUMULATIVE: self.succeeded & (every | ~self._late()),
            Rule.MEAN: self.succeeded & (every | mean),
        }

    def behind_s(self) -> tuple[Floats, Ints]:
        """By how much each token k after the first comes behind max(sent + TTFT objective, first token) + (k - 1) TPOT
        (negative: before it), and the request that each belongs to; of requests that state a TPOT."""
        owner = np.repeat(np.arange(len(self.tokens)), self.tokens)
        number = np.arange(len(self.token_s)) - self.begin[owner]  # k - 1
        some = np.flatnonzero(np.isfinite(self.tpot_due_s[owner]) & (number > 0))
        owner, number = owner[some], number[some]
        stated_s = np.where(np.isfinite(self.ttft_due_s), self.sent_s + self.ttft_due_s, -inf)
        due_s = np.maximum(stated_s, self.first_s)[owner] + number * self.tpot_due_s[owner]
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
