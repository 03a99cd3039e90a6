"""What the times of a benchmark run say. Pure: lists of times in, figures out; no clock, no files.

Symbols (seconds of one clock; request i of N, its tokens k = 1..n)
    N            requests sent, whatever became of them
    a            when a request was sent
    t_1 .. t_n   when its tokens arrived; tokens that came in one chunk arrived together
    g_k          t_k - t_(k-1), the gap before token k, for k = 2..n
    F, G, D      its objectives: first token, time per output token, last token; each may be unstated (then met). A
                 model that thinks first may have another G for that: the gap before a thinking token is judged by it
    T            from the first request sent to the last answer ended

Names
    TTFT         t_1 - a
    TPOT         (t_n - t_1) / (n - 1), for n > 1 only, and not measurable where all tokens came at once (t_n = t_1)
    ITL          gaps between chunks that carry tokens, all requests' together (long answers weigh more)
    E2EL         t_n - a
    attainment   requests that succeeded and met all their objectives, divided by N. TTFT <= F and E2EL <= D are judged
                 alike everywhere; for G there are three rules in the literature:
      every gap            g_k <= G for every k (iteration-level objectives: AccelGen, CacheOPT)
      cumulative deadline  t_k <= max(a + F, t_1) + (k-1) G for every k; without F, from t_1 on (QoServe, PolyServe,
                           SLOs-Serve): a token that came early earns slack for a later one
      request mean         TPOT <= G (DistServe)
                 Every gap implies the other two, and exactly so here: each rule is judged by its slack G - g_k.
    goodput      requests that attained, divided by T
With two G the cumulative deadline of a token is the sum of those of the gaps before it (from the end of the thinking on
where that has none), and the mean is judged for each part by itself.
Boundaries count as met. A request of one token meets every G. Of several tokens that came at once (in a single chunk,
or from a proxy that holds the answer back) nobody can say here how long each took: where the request states a G, no
rule judges it, it is counted apart, and attainment leaves it out of numerator and denominator, unless F or D was
missed: that is a miss whatever G. It is never counted as good.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, pairwise

import numpy as np


class Rule(StrEnum):
    """How a time per output token is judged."""

    EVERY_GAP = "every_gap"
    CUMULATIVE = "cumulative_deadline"
    MEAN = "request_mean"


@dataclass(frozen=True)
class Limits:
    """Objectives F, G, D of a request in seconds; None is not stated."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    thinking_s: float | None = None

    @property
    def stated(self) -> bool:
        return self.paced or (self.ttft_s, self.e2e_s) != (None, None)

    @property
    def paced(self) -> bool:
        """Whether a time per token is stated, be it of thinking alone."""
        return (self.tpot_s, self.thinking_s) != (None, None)


@dataclass(frozen=True)
class Timing:
    """One request as the client saw it. Chunk j arrived at chunk_s[j] and carried chunk_tokens[j] >= 1 tokens. The
    first `thinking` tokens are thinking. `stage`: which call of a session it is; "" for none."""

    sent_s: float
    ended_s: float
    chunk_s: Sequence[float] = ()
    chunk_tokens: Sequence[int] = ()
    prompt_tokens: int = 0
    limits: Limits = field(default=Limits())
    label: str = ""
    failed: bool = False
    thinking: int = 0
    stage: str = ""

    def __post_init__(self) -> None:
        assert len(self.chunk_s) == len(self.chunk_tokens)
        assert all(count >= 1 for count in self.chunk_tokens)

    @property
    def output_tokens(self) -> int:
        return sum(self.chunk_tokens)

    @property
    def in_one_clump(self) -> bool:
        """Several tokens, all at one time: the time per token cannot be measured."""
        return self.output_tokens > 1 and self.chunk_s[0] == self.chunk_s[-1]

    @property
    def succeeded(self) -> bool:
        return not self.failed and len(self.chunk_s) > 0

    @property
    def ttft_s(self) -> float:
        return self.chunk_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        return self.chunk_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float | None:
        tokens = self.output_tokens
        if tokens <= 1 or self.in_one_clump:
            return None
        return (self.chunk_s[-1] - self.chunk_s[0]) / (tokens - 1)

    def chunk_gaps_s(self) -> list[float]:
        """The gaps of ITL."""
        return [after - before for before, after in pairwise(self.chunk_s)]

    def token_times_s(self) -> list[float]:
        """t_1 .. t_n."""
        return [
            at
            for at, count in zip(self.chunk_s, self.chunk_tokens, strict=True)
            for _ in range(count)
        ]


def meets_ttft(request: Timing) -> bool:
    limit_s = request.limits.ttft_s
    return request.succeeded and (limit_s is None or request.ttft_s <= limit_s)


def meets_e2e(request: Timing) -> bool:
    limit_s = request.limits.e2e_s
    return request.succeeded and (limit_s is None or request.e2e_s <= limit_s)


def meets_tpot(request: Timing, rule: Rule) -> bool | None:
    """None if it cannot be measured. The slack of gap k is G - g_k, and G for a token that came in one chunk with the
    one before."""
    if not request.succeeded:
        return False
    if not request.limits.paced:
        return True
    if request.in_one_clump:
        return None
    slacks_s = list(_slacks(request))
    thinking_s, response_s = _in_parts(request, slacks_s)
    match rule:
        case Rule.EVERY_GAP:
            return all(slack_s >= 0 for slack_s in slacks_s)
        case Rule.CUMULATIVE:
            first_s = request.limits.ttft_s
            ahead_s = 0.0 if first_s is None else max(0.0, first_s - request.ttft_s)
            if request.thinking and request.limits.thinking_s is None:
                return min(accumulate(response_s, initial=0.0)) >= 0
            return min(accumulate(slacks_s, initial=ahead_s)) >= 0
        case Rule.MEAN:
            return math.fsum(thinking_s) >= 0 and math.fsum(response_s) >= 0


def _slacks(request: Timing) -> Iterable[float]:
    """Of each gap, infinite where no limit is stated."""
    limits, number = request.limits, 0
    response_s = math.inf if limits.tpot_s is None else limits.tpot_s
    thinking_s = math.inf if limits.thinking_s is None else limits.thinking_s
    for chunk, count in enumerate(request.chunk_tokens):
        for place in range(count):
            number += 1
            if number == 1:
                continue
            limit_s = thinking_s if number <= request.thinking else response_s
            gap_s = request.chunk_s[chunk] - request.chunk_s[chunk - 1] if place == 0 else 0.0
            yield limit_s - gap_s


def _in_parts(request: Timing, gaps: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    """What belongs to the gaps of thinking, and of the response."""
    border = max(0, request.thinking - 1)
    return gaps[:border], gaps[border:]


def attains(request: Timing, rule: Rule) -> bool | None:
    """Succeeded and met every objective it stated; None if only an unmeasurable TPOT leaves that open."""
    return meets_ttft(request) and meets_e2e(request) and meets_tpot(request, rule)


@dataclass(frozen=True)
class Share:
    """How many requests kept something, of those that could be judged; `stated` is how many asked for it."""

    stated: int
    judged: int
    kept: int

    @property
    def fraction(self) -> float | None:
        """0..1; None where nobody asked, or nothing could be judged."""
        return self.kept / self.judged if self.stated and self.judged else None


@dataclass(frozen=True)
class Attainment:
    """Shares of the requests sent. `unmeasured` state a TPOT objective, and their tokens came at once."""

    sent: int
    unmeasured: int
    ttft: Share
    tpot: dict[Rule, Share]
    e2e: Share
    overall: dict[Rule, Share]

    @property
    def by_rule(self) -> bool:
        """Whether the rules can differ: some request states a time per output token."""
        return self.tpot[Rule.MEAN].stated > 0


def attainment(requests: Sequence[Timing]) -> Attainment:
    """Of `requests`, all that were sent."""
    limits = [request.limits for request in requests]
    ttft, e2e = (
        sum(getattr(one, name) is not None for one in limits) for name in ("ttft_s", "e2e_s")
    )
    tpot = sum(one.paced for one in limits)
    any_stated = sum(one.stated for one in limits)
    return Attainment(
        sent=len(requests),
        unmeasured=sum(meets_tpot(request, Rule.MEAN) is None for request in requests),
        ttft=_share(ttft, (meets_ttft(one) for one in requests)),
        tpot={rule: _share(tpot, (meets_tpot(one, rule) for one in requests)) for rule in Rule},
        e2e=_share(e2e, (meets_e2e(one) for one in requests)),
        overall={
            rule: _share(any_stated, (attains(one, rule) for one in requests)) for rule in Rule
        },
    )


def _share(stated: int, verdicts: Iterable[bool | None]) -> Share:
    judged = [kept for kept in verdicts if kept is not None]
    return Share(stated, len(judged), sum(judged))


@dataclass(frozen=True)
class Spread:
    """A distribution in seconds; without values (`count` 0) its figures are NaN. Percentiles interpolate linearly."""

    count: int
    mean_s: float
    median_s: float
    std_s: float
    percentiles_s: dict[float, float]


def spread(values_s: Sequence[float], percentiles: Sequence[float]) -> Spread:
    if not values_s:
        return Spread(0, math.nan, math.nan, math.nan, dict.fromkeys(percentiles, math.nan))
    values = np.asarray(values_s)
    return Spread(
        count=len(values_s),
        mean_s=float(values.mean()),
        median_s=float(np.median(values)),
        std_s=float(values.std()),
        percentiles_s={one: float(np.percentile(values, one)) for one in percentiles},
    )


@dataclass(frozen=True)
class Summary:
    """A whole run. Lengths and throughput count successful requests, attainment counts all that were sent."""

    duration_s: float
    completed: int
    failed: int
    input_tokens: int
    output_tokens: int
    peak_output_tokens_per_s: int
    peak_concurrency: int
    clumped: int  # successful requests without a TPOT, because their tokens came at once
    spreads: dict[str, Spread]  # ttft, tpot, itl, e2el
    attainment: Attainment
    by_label: dict[str, Attainment]

    def goodput(self, rule: Rule) -> float:
        """Requests per second that attained; NaN if none of those sent can be judged."""
        if self.attainment.unmeasured and not self.attainment.overall[rule].judged:
            return math.nan
        return per_second(self.attainment.overall[rule].kept, self.duration_s)


def summarise(requests: Sequence[Timing], percentiles: Sequence[float]) -> Summary:
    """Everything at once. `requests` are all that were sent."""
    good = [request for request in requests if request.succeeded]
    labels = sorted({request.label for request in requests})
    started_s = min((request.sent_s for request in requests), default=0.0)
    ended_s = max((request.ended_s for request in requests), default=0.0)
    spreads = {
        "ttft": [request.ttft_s for request in good],
        "tpot": [tpot_s for request in good if (tpot_s := request.tpot_s) is not None],
        "itl": [gap_s for request in good for gap_s in request.chunk_gaps_s()],
        "e2el": [request.e2e_s for request in good],
    }
    return Summary(
        duration_s=ended_s - started_s,
        completed=len(good),
        failed=len(requests) - len(good),
        input_tokens=sum(request.prompt_tokens for request in good),
        output_tokens=sum(request.output_tokens for request in good),
        peak_output_tokens_per_s=peak_rate(good, started_s),
        peak_concurrency=peak_concurrency(requests),
        clumped=sum(request.in_one_clump for request in good),
        spreads={name: spread(values, percentiles) for name, values in spreads.items()},
        attainment=attainment(requests),
        by_label={
            label: attainment([request for request in requests if request.label == label])
            for label in labels
        },
    )


def per_second(count: float, duration_s: float) -> float:
    return count / duration_s if duration_s > 0 else 0.0


def peak_rate(requests: Sequence[Timing], started_s: float) -> int:
    """Most tokens in one of the seconds counted from `started_s`."""
    tokens: dict[int, int] = {}
    for request in requests:
        for at_s, count in zip(request.chunk_s, request.chunk_tokens, strict=True):
            second = math.floor(at_s - started_s)
            tokens[second] = tokens.get(second, 0) + count
    return max(tokens.values(), default=0)


def peak_concurrency(requests: Sequence[Timing]) -> int:
    """Most requests under way at one time; one that ends as another is sent is not."""
    changes = sorted(
        [(request.sent_s, 1) for request in requests]
        + [(request.ended_s, -1) for request in requests]
    )
    return max(accumulate(change for _, change in changes), default=0)
