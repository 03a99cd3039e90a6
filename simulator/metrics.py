"""What the times of a simulated run say. Definitions, symbols before names: docs/metrics.md; those of
`accelgen.scripts.bench_metrics`, which measures live servers, are the same.

Everything is computed on columns, one element per request or per token, so that a run of a million tokens costs
milliseconds.
"""

from __future__ import annotations

import numpy as np
from msgspec import Struct, field

from accelgen.proto.messages import Reason
from accelgen.proto.stages import RESPONSE, THINKING
from accelgen.scheduler.table import Bools, Floats
from accelgen.simulator.run import Run
from accelgen.simulator.times import CLOSE_S, Rule, Times

PERCENTILES = (50, 90, 95, 99)


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


class PartKept(Struct, frozen=True):
    """Thinking or response of the requests that think at a pace of their own and succeeded: how many have such tokens,
    the tokens, the time to each of them, and the share whose mean of that keeps its objective."""

    requests: int
    tokens: int
    tpot_s: Spread
    kept: float


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
    longest_s: float = 0.0

    @classmethod
    def of(cls, run: Run, times: Times) -> Decisions:
        each_s = np.array(run.decision_s)
        jct_s = float(times.jct_s[times.succeeded].sum())
        share = float(each_s.sum()) / jct_s if jct_s else 0.0
        return cls(Spread.of(each_s), share, float(each_s.max(initial=0.0)))


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
    by_stage: dict[str, Judged] = field(default_factory=dict)  # calls of sessions that say which
    parts: dict[str, PartKept] = field(default_factory=dict)  # of answers
    sessions: dict[str, float] = field(default_factory=dict)  # by rule: share that attained


def summarise(run: Run) -> Summary:
    """Everything at once."""
    times = Times.of(run.fates)
    good, attained = times.succeeded, times.attains()
    sent, succeeded = len(run.fates), int(good.sum())
    duration_s = max(run.end_s - float(times.sent_s.min(initial=run.end_s)), 1e-12)
    unfinished = sum(fate.end is None for fate in run.fates)
    output, prompt = int(times.tokens[good].sum()), int(times.prompt[good].sum())
    names = sorted(set(times.slo_class.tolist()))
    stages = sorted({stage for stage in times.stage.tolist() if stage})
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
        by_stage={stage: _judge(times, attained, times.stage == stage) for stage in stages},
        parts=_parts(times),
        sessions={rule: sessions_kept(times, met) for rule, met in attained.items()},
    )


def sessions_kept(times: Times, attained: Bools) -> float:
    """Share of the sessions of which every call was sent and has attained (as requests of several stages do in
    SLOs-Serve, arXiv 2504.08784); a request without follow-ups is a session. 1 of none."""
    first = np.unique(times.session)
    kept = np.bincount(times.session[attained], minlength=len(times.session))
    return float((kept[first] == times.calls[first]).mean()) if len(first) else 1.0


def _parts(times: Times) -> dict[str, PartKept]:
    thinks = times.succeeded & (times.thinking > 0)
    if not thinks.any():
        return {}
    thinking = np.minimum(times.thinking, times.tokens)
    columns = (thinking, times.tokens - thinking)
    aims_s = (times.thinking_due_s, times.tpot_due_s)
    found = {}
    for name, tokens, tpot_s, aim_s in zip(
        (THINKING, RESPONSE), columns, times.part_tpot_s(), aims_s, strict=True
    ):
        some = thinks & (tokens > 0)
        with np.errstate(invalid="ignore"):
            late = tpot_s > aim_s + CLOSE_S
        count = int(some.sum())
        found[name] = PartKept(
            requests=count,
            tokens=int(tokens[some].sum()),
            tpot_s=Spread.of(tpot_s[some]),
            kept=float((some & ~late).sum()) / max(count, 1),
        )
    return found


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
