"""The result of a benchmark as one value: what was asked for, what came of it, judged and summed up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from accelgen.scripts.bench_load import Outcome, Run
from accelgen.scripts.bench_metrics import Limits, Rule, Summary, Timing, summarise
from accelgen.scripts.bench_stages import Stages, stages_of


@dataclass(frozen=True)
class Setting:
    """What was asked for, as far as the report repeats it. `goodput` judges goodput where it differs from what the
    requests state."""

    date: str
    label: str
    url: str
    model: str
    dataset: str
    num_prompts: int
    arrivals: str  # trace, scenario, poisson, gamma, at once
    request_rate: float
    burstiness: float
    max_concurrency: int | None
    seed: int
    goodput: Limits
    percentiles: tuple[float, ...]
    sections: tuple[str, ...]
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """A run, summed up."""

    setting: Setting
    run: Run
    summary: Summary
    goodput: dict[Rule, float]  # requests per second
    judged: bool  # whether any objective is known to us
    goodput_by_rule: bool  # whether the rules can differ in it
    stages: Stages


def make_report(setting: Setting, run: Run) -> Report:
    """Judges every request by what it stated, or by `goodput` if it stated nothing; goodput by `goodput` if given."""
    timings = [judged_timing(outcome.timing, setting.goodput) for outcome in run.outcomes]
    summary = summarise(timings, setting.percentiles)
    for_goodput = timings
    if setting.goodput.stated:
        for_goodput = [replace(timing, limits=setting.goodput) for timing in timings]
    good = summarise(for_goodput, ())
    return Report(
        setting,
        run,
        summary,
        {rule: good.goodput(rule) for rule in Rule},
        any(timing.limits.stated for timing in timings),
        good.attainment.by_rule,
        stages_of(run.outcomes, timings, setting.percentiles),
    )


def judged_timing(timing: Timing, otherwise: Limits) -> Timing:
    return timing if timing.limits.stated else replace(timing, limits=otherwise)


def reasons(outcomes: Sequence[Outcome]) -> list[tuple[str, int]]:
    """Why requests failed, most frequent first."""
    return Counter(outcome.error for outcome in outcomes if outcome.error).most_common()


def verdicts(outcomes: Sequence[Outcome]) -> list[bool]:
    """Of each answer that the server judged: whether it says that every objective was met. Empty where no answer had
    an objective."""
    answers = [outcome.verdict.get("slo_met") for outcome in outcomes if not outcome.error]
    met = [list(one.values()) for one in answers if isinstance(one, dict)]
    if all(kept is None for one in met for kept in one):
        return []
    return [all(kept for kept in one if kept is not None) for one in met]


def generator(run: Run) -> dict[str, float]:
    """What the load cost this side, and how late requests were sent; NaN where nothing came."""
    chunks = sum(len(outcome.timing.chunk_s) for outcome in run.outcomes)
    tokens = sum(outcome.timing.output_tokens for outcome in run.outcomes)
    lags_s = [outcome.lag_s for outcome in run.outcomes]
    return {
        "cpu_s": run.cpu_s,
        "cpu_ms_per_chunk": 1000 * run.cpu_s / chunks if chunks else math.nan,
        "p99_dispatch_delay_ms": 1000 * float(np.percentile(lags_s, 99)) if lags_s else math.nan,
        "tokens_per_chunk": tokens / chunks if chunks else math.nan,
    }
