"""Metrics against figures worked out by hand, and what must hold for any times. Times are binary fractions: exact."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.scripts.bench_metrics import (
    Limits,
    Rule,
    Share,
    Timing,
    attainment,
    attains,
    meets_e2e,
    meets_tpot,
    meets_ttft,
    peak_concurrency,
    peak_rate,
    spread,
    summarise,
)

GAP, CUMULATIVE, MEAN = Rule.EVERY_GAP, Rule.CUMULATIVE, Rule.MEAN

# sent at 1; tokens at 1.5, 1.75, 2.5, 2.625: gaps 0.25, 0.75, 0.125, their mean 0.375
FOUR = Timing(1.0, 2.75, [1.5, 1.75, 2.5, 2.625], [1, 1, 1, 1], prompt_tokens=10)


def test_times_of_one_request() -> None:
    assert FOUR.ttft_s == 0.5
    assert FOUR.tpot_s == 0.375
    assert FOUR.e2e_s == 1.625
    assert FOUR.chunk_gaps_s() == [0.25, 0.75, 0.125]
    assert FOUR.output_tokens == 4


def test_tokens_that_share_a_chunk() -> None:
    request = Timing(0.0, 2.0, [0.5, 1.5], [1, 4])
    assert request.token_times_s() == [0.5, 1.5, 1.5, 1.5, 1.5]
    assert request.tpot_s == 0.25
    assert request.chunk_gaps_s() == [1.0]
    limited = replace(request, limits=Limits(tpot_s=0.25))
    assert [meets_tpot(limited, rule) for rule in (GAP, CUMULATIVE, MEAN)] == [False, False, True]
    assert meets_tpot(replace(request, limits=Limits(tpot_s=1.0)), GAP)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        (Limits(tpot_s=0.75), (True, True, True)),  # the boundary is met
        (
            Limits(tpot_s=0.5),
            (False, True, True),
        ),  # token 3 at most 1.5 + 2 x 0.5 = 2.5: just in time
        (Limits(tpot_s=0.4375), (False, False, True)),  # 1.5 + 2 x 0.4375 = 2.375 < 2.5
        (Limits(tpot_s=0.375), (False, False, True)),
        (Limits(tpot_s=0.359375), (False, False, False)),
        (
            Limits(ttft_s=0.75, tpot_s=0.4375),
            (False, True, True),
        ),  # 0.25 early: token 3 until 2.625
        (Limits(ttft_s=0.5, tpot_s=0.4375), (False, False, True)),
        (
            Limits(ttft_s=0.25, tpot_s=0.5),
            (False, True, True),
        ),  # late: counted from the first token
    ],
)
def test_three_rules(limits: Limits, kept: tuple[bool, bool, bool]) -> None:
    request = replace(FOUR, limits=limits)
    assert tuple(meets_tpot(request, rule) for rule in (GAP, CUMULATIVE, MEAN)) == kept


def test_first_and_last_token() -> None:
    for limit_s, kept in ((0.5, True), (0.4375, False)):
        request = replace(FOUR, limits=Limits(ttft_s=limit_s))
        assert meets_ttft(request) is kept
        assert all(attains(request, rule) is kept for rule in Rule)
    assert meets_e2e(replace(FOUR, limits=Limits(e2e_s=1.625)))
    assert not meets_e2e(replace(FOUR, limits=Limits(e2e_s=1.5)))


def test_one_token_meets_every_tpot_and_no_token_meets_nothing() -> None:
    one = Timing(0.0, 1.0, [1.0], [1], limits=Limits(tpot_s=0.001))
    assert one.tpot_s is None and all(attains(one, rule) for rule in Rule)
    none = Timing(0.0, 1.0)
    assert not any(attains(none, rule) for rule in Rule)
    assert not any(attains(replace(FOUR, failed=True), rule) for rule in Rule)


@pytest.mark.parametrize(
    ("chunk_s", "tokens"), [([1.0], [5]), ([1.0, 1.0], [1, 4]), ([1.0, 1.0, 1.0], [1, 1, 1])]
)
def test_tokens_that_all_came_at_once_have_no_tpot(chunk_s: list[float], tokens: list[int]) -> None:
    clump = Timing(0.0, 1.0, chunk_s, tokens)
    assert clump.tpot_s is None and clump.in_one_clump
    assert all(meets_tpot(clump, rule) for rule in Rule)  # nothing stated
    asked = replace(clump, limits=Limits(tpot_s=0.001))
    assert [meets_tpot(asked, rule) for rule in Rule] == [None] * 3
    assert [attains(asked, rule) for rule in Rule] == [None] * 3
    late = replace(clump, limits=Limits(ttft_s=0.5, tpot_s=0.001))
    assert [attains(late, rule) for rule in Rule] == [False] * 3  # missed, whatever its TPOT
    assert [meets_tpot(replace(asked, failed=True), rule) for rule in Rule] == [False] * 3


def test_attainment_leaves_out_what_cannot_be_judged() -> None:
    clump = Timing(0.0, 1.0, [1.0], [5], limits=Limits(ttft_s=2.0, tpot_s=0.001))
    kept = attainment([clump, replace(FOUR, limits=Limits(ttft_s=2.0, tpot_s=1.0))])
    assert (kept.sent, kept.unmeasured, kept.by_rule) == (2, 1, True)
    assert kept.tpot[MEAN] == kept.overall[MEAN] == Share(2, 1, 1)
    assert kept.ttft.fraction == 1.0 and kept.e2e.fraction is None  # no request states it
    alone = summarise([clump], [99.0])
    assert alone.attainment.overall[MEAN].fraction is None
    assert math.isnan(alone.goodput(MEAN))
    assert alone.clumped == 1 and alone.spreads["tpot"].count == 0


def test_attainment_divides_by_requests_sent() -> None:
    kept = attainment([
        replace(FOUR, limits=Limits(tpot_s=0.5)),  # cumulative, mean
        replace(FOUR, limits=Limits(tpot_s=1.0)),  # all
        replace(FOUR, limits=Limits(ttft_s=0.25)),  # none
        replace(FOUR, failed=True),  # sent, and not answered
    ])  # fmt: skip
    assert kept.sent == 4
    assert kept.overall == {GAP: Share(3, 4, 1), CUMULATIVE: Share(3, 4, 2), MEAN: Share(3, 4, 2)}
    assert {rule: share.fraction for rule, share in kept.tpot.items()} == {
        GAP: 0.5,
        CUMULATIVE: 0.75,
        MEAN: 0.75,
    }
    assert kept.ttft.fraction == 0.5
    assert kept.e2e == Share(0, 4, 3) and kept.e2e.fraction is None
    assert attainment([]).overall[GAP].fraction is None


def test_a_whole_run() -> None:
    requests = [
        replace(FOUR, limits=Limits(tpot_s=0.5), label="a"),
        Timing(2.0, 5.0, [3.0, 4.0, 5.0], [1, 1, 1], 20, Limits(tpot_s=1.0), "b"),
        Timing(2.5, 3.0, failed=True, label="b"),
    ]
    summary = summarise(requests, [50.0, 99.0])
    assert summary.duration_s == 4.0
    assert (summary.completed, summary.failed) == (2, 1)
    assert (summary.input_tokens, summary.output_tokens) == (30, 7)
    assert summary.spreads["ttft"].mean_s == 0.75
    assert summary.spreads["ttft"].std_s == 0.25
    assert summary.spreads["tpot"].median_s == (0.375 + 1.0) / 2
    assert summary.spreads["itl"].count == 5
    assert summary.spreads["itl"].mean_s == (0.25 + 0.75 + 0.125 + 1 + 1) / 5
    assert summary.spreads["e2el"].percentiles_s == {50.0: 2.3125, 99.0: pytest.approx(2.98625)}
    assert summary.peak_concurrency == 3
    assert (
        summary.peak_output_tokens_per_s == 2
    )  # seconds from 1: two, then 2.5 and 2.625, then one each
    assert summary.goodput(GAP) == 0.25 and summary.goodput(MEAN) == 0.5
    assert {label: part.sent for label, part in summary.by_label.items()} == {"a": 1, "b": 2}


def test_peaks() -> None:
    end_to_end = [Timing(0.0, 1.0), Timing(1.0, 2.0), Timing(1.5, 3.0)]
    assert peak_concurrency(end_to_end) == 2
    assert peak_concurrency([]) == 0
    assert peak_rate([Timing(0.0, 3.0, [0.25, 1.0, 1.875, 2.0], [1, 2, 3, 1])], 0.0) == 5


def test_no_requests() -> None:
    summary = summarise([], [99.0])
    assert summary.duration_s == 0 and summary.goodput(MEAN) == 0
    empty = spread([], [99.0])
    assert empty.count == 0 and math.isnan(empty.mean_s) and math.isnan(empty.percentiles_s[99.0])


SECONDS = st.floats(0, 100, allow_nan=False)
LIMIT = st.one_of(st.none(), st.floats(0.001, 50))


@st.composite
def timings(draw: st.DrawFn) -> Timing:
    """Any request that can come out of a run."""
    sent_s = draw(SECONDS)
    gaps_s = draw(
        st.lists(st.one_of(st.floats(0, 3), st.sampled_from([0.1, 0.2, 0.3])), max_size=12)
    )
    chunk_s = []
    at_s = sent_s
    for gap_s in gaps_s:
        at_s += gap_s
        chunk_s.append(at_s)
    counts = draw(st.lists(st.integers(1, 4), min_size=len(gaps_s), max_size=len(gaps_s)))
    limits = Limits(draw(LIMIT), draw(LIMIT), draw(LIMIT))
    return Timing(
        sent_s, at_s, chunk_s, counts, 5, limits, draw(st.sampled_from("ab")), draw(st.booleans())
    )


@given(timings())
def test_every_gap_is_the_strictest_rule(request: Timing) -> None:
    if attains(request, GAP):
        assert attains(request, CUMULATIVE) and attains(request, MEAN)


@given(timings())
def test_a_limit_at_the_longest_gap_is_met(request: Timing) -> None:
    gaps_s = request.chunk_gaps_s()
    if gaps_s and not request.failed and max(gaps_s) > 0:
        met = replace(request, limits=Limits(tpot_s=max(gaps_s)))
        assert all(meets_tpot(met, rule) for rule in Rule)
        missed = replace(request, limits=Limits(tpot_s=max(gaps_s) * 0.999))
        assert not meets_tpot(missed, GAP)


@given(timings(), st.floats(1.0, 3.0))
def test_wider_limits_never_lose(request: Timing, factor: float) -> None:
    def wider(limit_s: float | None) -> float | None:
        return None if limit_s is None else limit_s * factor

    limits = request.limits
    relaxed = replace(
        request, limits=Limits(wider(limits.ttft_s), wider(limits.tpot_s), wider(limits.e2e_s))
    )
    for rule in Rule:
        before, after = attains(request, rule), attains(relaxed, rule)
        assert after or before == after or (before, after) == (False, None)


@settings(max_examples=40)
@given(st.lists(timings(), max_size=6))
def test_a_summary_adds_up(requests: list[Timing]) -> None:
    summary = summarise(requests, [50.0, 99.0])
    kept = summary.attainment
    assert summary.completed + summary.failed == kept.sent == len(requests)
    assert kept.overall[GAP].kept <= min(kept.overall[CUMULATIVE].kept, kept.overall[MEAN].kept)
    for rule in Rule:
        shares = [kept.ttft, kept.tpot[rule], kept.e2e]
        parts = [share.fraction for share in shares if share.fraction is not None]
        overall = kept.overall[rule].fraction
        assert overall is None or 0 <= overall <= min(parts, default=1.0) <= 1
        attained = sum(part.overall[rule].kept for part in summary.by_label.values())
        assert attained == kept.overall[rule].kept
    assert summary.peak_concurrency <= len(requests)
    assert summary.peak_output_tokens_per_s <= summary.output_tokens
    for values in (one for one in summary.spreads.values() if one.count):
        assert values.percentiles_s[50.0] == pytest.approx(values.median_s)
        assert values.median_s <= values.percentiles_s[99.0] + 1e-9
