"""What one simulated run did, iteration by iteration and request by request: for figures that a Summary has no room
for. Kept with the Result of a Setting that asks for it (`detailed`); columns, so that a run of 20,000 iterations is
about a megabyte."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import Struct, field

from accelgen.proto.messages import Batch, StepResult
from accelgen.scheduler.table import Floats
from accelgen.simulator.run import Fate
from accelgen.simulator.times import Rule, Times

BIN, BINS = 0.02, 100  # of a gap as a share of its objective: 0 to 2, and all that is longer


class Iterations(Struct, frozen=True):
    """A column per fact, an element per iteration. Times in seconds; `tightest_s` is the smallest TPOT objective of the
    requests that decode in it, None without any."""

    begin_s: list[float] = field(default_factory=list)
    run_s: list[float] = field(default_factory=list)
    prefill: list[int] = field(default_factory=list)  # tokens
    decodes: list[int] = field(default_factory=list)
    tightest_s: list[float | None] = field(default_factory=list)


class Requests(Struct, frozen=True):
    """An element per request sent. Times in seconds from sent, None for what did not come; `worst` is its longest gap
    as a share of its TPOT objective, None without either. `behind`: by how many TPOT objectives the latest of its
    tokens comes after its cumulative deadline (negative: before), None likewise. `attained` by the rule of the
    scenario."""

    slo_class: list[str]
    prompt: list[int]
    output: list[int]
    ttft_s: list[float | None]
    jct_s: list[float | None]
    attained: list[bool]
    met_ttft: list[bool]
    worst: list[float | None]
    behind: list[float | None]
    preemptions: list[int]
    relegated: list[bool]


class Detail(Struct, frozen=True):
    """All of it. `gaps` counts gaps between tokens by their share of the objective, in bins of BIN; the last one has
    all that are longer."""

    iterations: Iterations
    requests: Requests
    gaps: list[int]


class Log:
    """Fills the columns while a simulation runs. `relegated_now` says which requests (ids) a replica's policy has put
    behind all others."""

    def __init__(self, fates: list[Fate], relegated_now: Callable[[int], frozenset[int]]) -> None:
        self._fates, self._relegated_now = fates, relegated_now
        self._iterations = Iterations()
        self._relegated: set[int] = set()

    def note(self, batch: Batch, index: int, done_s: float, result: StepResult) -> None:
        """One iteration of replica `index`, done at `done_s`."""
        self._relegated |= self._relegated_now(index)
        if not batch.ids:
            return
        columns, decodes, tightest_s = self._iterations, 0, float("inf")
        for id, start, count in zip(batch.ids, batch.starts, batch.counts, strict=True):
            arrival = self._fates[id - 1].arrival
            if count == 1 and start >= arrival.prompt_tokens:
                decodes += 1
                goal_s = arrival.pace_s(start + 2 - arrival.prompt_tokens)
                tightest_s = tightest_s if goal_s is None else min(tightest_s, goal_s)
        columns.begin_s.append(done_s - result.run_s)
        columns.run_s.append(result.run_s)
        columns.prefill.append(sum(batch.counts) - decodes)
        columns.decodes.append(decodes)
        columns.tightest_s.append(None if tightest_s == float("inf") else tightest_s)

    def detail(self, rule: Rule) -> Detail:
        """When the run is over."""
        times = Times.of(self._fates)
        gaps_s, owner = times.gaps_s()
        share = gaps_s / times.gap_due_s  # 0 where no objective is stated
        stated = times.paced
        worst = np.full(len(self._fates), np.nan)
        np.fmax.at(worst, owner, share)
        worst[~stated] = np.nan
        bins = np.minimum((share[stated[owner]] / BIN).astype(np.int64), BINS)
        requests = Requests(
            slo_class=times.slo_class.tolist(),
            prompt=times.prompt.tolist(),
            output=times.tokens.tolist(),
            ttft_s=_finite(times.ttft_s),
            jct_s=_finite(np.where(times.succeeded, times.jct_s, np.inf)),
            attained=times.attains()[rule].tolist(),
            met_ttft=times.meets_ttft().tolist(),
            worst=_finite(worst),
            behind=_finite(_behind(times)),
            preemptions=[fate.preemptions for fate in self._fates],
            relegated=[id + 1 in self._relegated for id in range(len(self._fates))],
        )
        return Detail(self._iterations, requests, np.bincount(bins, minlength=BINS + 1).tolist())


def _behind(times: Times) -> Floats:
    """In TPOT objectives, [n]; NaN where none is stated or no second token came."""
    behind_s, owner = times.behind_s()
    behind = np.full(len(times.tokens), np.nan)
    pace_s = np.where(np.isfinite(times.tpot_due_s), times.tpot_due_s, times.thinking_due_s)
    np.fmax.at(behind, owner, behind_s / pace_s[owner])
    return behind


def _finite(values: Floats) -> list[float | None]:
    return [value if np.isfinite(value) else None for value in values.tolist()]
