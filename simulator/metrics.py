"""What the times of a simulated run say. Definitions, symbols before names: docs/metrics.md; those of
`accelgen.scripts.bench_metrics`, which measures live servers, are the same.

Everything is computed on columns, one element per request or per token, so that a run of a million tokens costs
milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from math import inf

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from accelgen.proto.messages import Reason
from accelgen.simulator.run import Fate, Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

PERCENTILES = (50, 90, 95, 99)
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


class Spread(Struct, frozen=True):
    """A distribution; None where there is nothing."""

    mean: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None

    @classmethod
    def of(cls, values: Floats) -> Spread:
        """Of those of `values` that are finite."""
        values = values[np.isfinite(values)]
        if not len(values):
            return cls()
        return cls(float(values.mean()), *map(float, np.percentile(values, PERCENTILES)))


class Judged(Struct, frozen=True):
    """Shares of the requests sent, 0..1: those that met each objective that they stated (or stated none)."""

    sent: int
    ttft: float
    tpot: dict[str, float]  # by rule
    e2e: float
    attainment: dict[str, float]  # by rule: succeeded and met all of them


class Latencies(Struct, frozen=True):
    """Of requests that succeeded, in seconds of virtual time."""

    ttft_s: Spread
    tpot_s: Spread
    itl_s: Spread
    jct_s: Spread
    normalised_s: Spread

    @classmethod
    def of(cls, times: Times) -> Latencies:
        good = times.succeeded
        jct_s = times.jct_s[good]
        gaps_s, owner = times.gaps_s()
        return cls(
            ttft_s=Spread.of(times.ttft_s[good]),
            tpot_s=Spread.of(times.tpot_s[good]),
            itl_s=Spread.of(gaps_s[good[owner]]),
            jct_s=Spread.of(jct_s),
            normalised_s=Spread.of(jct_s / times.tokens[good]),
        )


class Machine(Struct, frozen=True):
    """What the replicas did, over all of the run. Shares are 0..1."""

    kv_utilisation: float  # share of KV blocks in use
    busy: float  # share of time in which a worker runs
    compute_utilisation: float  # share of time that the work takes at the device's best
    copies: float  # share of time in which a worker waits for KV to be swapped
    preemptions: int
    preempted: int  # requests that were, at least once
    cached_tokens: int  # found in the prefix cache at arrival
    dropped: int  # entries that did not fit the cache after all
    steps: int
    entries: int  # scheduled request-iterations
    batch: float  # entries per step

    @classmethod
    def of(cls, run: Run, duration_s: float) -> Machine:
        machine_s = duration_s * max(len(run.workers), 1)
        return cls(
            kv_utilisation=run.kv_used_s / machine_s,
            busy=sum(worker.busy_s for worker in run.workers) / machine_s,
            compute_utilisation=sum(worker.saturated_s for worker in run.workers) / machine_s,
            copies=sum(worker.copies_s for worker in run.workers) / machine_s,
            preemptions=sum(fate.preemptions for fate in run.fates),
            preempted=sum(fate.preemptions > 0 for fate in run.fates),
            cached_tokens=sum(fate.cached_tokens for fate in run.fates),
            dropped=run.dropped,
            steps=run.steps,
            entries=run.entries,
            batch=run.entries / max(run.steps, 1),
        )


class Decisions(Struct, frozen=True):
    """What the scheduler itself took, in processor time: the only figures here that do not repeat."""

    each_s: Spread
    share_of_jct: float

    @classmethod
    def of(cls, run: Run, times: Times) -> Decisions:
        each_s = np.array(run.decision_s)
        jct_s = float(times.jct_s[times.succeeded].sum())
        return cls(Spread.of(each_s), float(each_s.sum()) / jct_s if jct_s else 0.0)


class Summary(Struct, frozen=True):
    """A whole run. Rates are per second of virtual time, from the first request sent to the last token."""

    duration_s: float
    sent: int
    succeeded: int
    refused: int
    unfinished: int
    prompt_tokens: int
    output_tokens: int
    request_throughput: float  # requests that succeeded
    token_throughput: float  # output tokens of requests that succeeded
    total_token_throughput: float  # and their prompts
    goodput: dict[str, float]  # by rule: requests that attained
    token_goodput: dict[str, float]  # by rule: their output tokens
    judged: Judged
    by_class: dict[str, Judged]
    latency: Latencies
    machine: Machine
    decisions: Decisions


def summarise(run: Run) -> Summary:
    """Everything at once."""
    times = Times.of(run.fates)
    good, attained = times.succeeded, times.attains()
    sent, succeeded = len(run.fates), int(good.sum())
    duration_s = max(run.end_s - float(times.sent_s.min(initial=run.end_s)), 1e-12)
    unfinished = sum(fate.end is None for fate in run.fates)
    output, prompt = int(times.tokens[good].sum()), int(times.prompt[good].sum())
    names = sorted(set(times.slo_class.tolist()))
    return Summary(
        duration_s=duration_s,
        sent=sent,
        succeeded=succeeded,
        refused=sent - unfinished - succeeded,
        unfinished=unfinished,
        prompt_tokens=prompt,
        output_tokens=output,
        request_throughput=succeeded / duration_s,
        token_throughput=output / duration_s,
        total_token_throughput=(output + prompt) / duration_s,
        goodput={rule: float(met.sum()) / duration_s for rule, met in attained.items()},
        token_goodput={
            rule: float(times.tokens[met].sum()) / duration_s for rule, met in attained.items()
        },
        judged=_judge(times, attained, np.ones(sent, dtype=bool)),
        by_class={name: _judge(times, attained, times.slo_class == name) for name in names},
        latency=Latencies.of(times),
        machine=Machine.of(run, duration_s),
        decisions=Decisions.of(run, times),
    )


def _judge(times: Times, attained: dict[Rule, Bools], which: Bools) -> Judged:
    count = max(int(which.sum()), 1)

    def share(met: Bools) -> float:
        return float((met & which).sum()) / count

    return Judged(
        sent=int(which.sum()),
        ttft=share(times.meets_ttft()),
        tpot={rule: share(met) for rule, met in times.meets_tpot().items()},
        e2e=share(times.meets_e2e()),
        attainment={rule: share(met) for rule, met in attained.items()},
    )


def _limits(values: Sequence[float | None]) -> Floats:
    return np.array([inf if value is None else value for value in values], dtype=float)


def hopeless(run: Run, now_s: float, wanted: float, requests: int) -> bool:
    """Whether more of `requests` have missed a TTFT or E2E objective, or were refused, than attainment `wanted`
    allows: a run that can be given up."""
    fates = run.fates
    allowed = (1 - wanted) * requests + 1e-9
    missed = 0
    for fate in fates:
        goal, sent_s, tokens = fate.arrival.objective, fate.arrival.at_s, fate.token_s
        first_s, last_s = (tokens[0], tokens[-1]) if tokens else (now_s, now_s)
        if fate.end is None:
            last_s = now_s
        missed += (
            fate.end not in (Reason.STOP, Reason.LENGTH, None)
            or (goal.ttft_s is not None and first_s - sent_s > goal.ttft_s + CLOSE_S)
            or (goal.e2e_s is not None and last_s - sent_s > goal.e2e_s + CLOSE_S)
        )
    return missed > allowed
