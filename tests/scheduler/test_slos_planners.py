"""SLOs-Serve's batch planners: against a plain simulation, against hand-made numbers, and by what they promise."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain, islice
from math import inf

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from reference_slos import batches

from accelgen.scheduler.slos_serve.planner_ar import MOST_SLICES, ArPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner, accepted, shortest
from accelgen.scheduler.slos_serve.roofline import PUBLISHED, Piece, Roofline
from accelgen.scheduler.slos_serve.slices import Slice, steady_s

MS = Roofline((Piece(0.001, 0.0, 0.01),))  # 10 ms and 1 ms per token
TIERS = (0.05, 0.1)

rooflines = st.builds(
    lambda token_s, base_s, most: Roofline((Piece(token_s, 0.0, base_s),), most),
    st.floats(5e-4, 3e-3),
    st.floats(1e-3, 0.03),
    st.sampled_from([20, 64, 16384]),
)
pairs = st.tuples(st.integers(0, 12), st.integers(0, 12))


def late_by_s(found: Iterable[Slice], tiers: tuple[float, ...]) -> list[float]:
    """By how much the m-th token of a decode of each tier comes after m times its pace, at worst."""
    clock_s, taken, worst = 0.0, [0] * len(tiers), [-inf] * len(tiers)
    for one in found:
        clock_s += one.seconds
        for k, length in enumerate(one.lengths):
            if length:
                taken[k] += 1
                worst[k] = max(worst[k], clock_s - taken[k] * tiers[k])
            else:
                worst[k] = max(worst[k], clock_s - (taken[k] + 1) * tiers[k])
    return worst


# --- without speculation ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "window_s", "expected"),
    [
        ((0, 0), 0.06, (50, 0.06)),  # one batch, as long as the window
        ((10, 0), 0.1, (60, 0.1)),  # two of 40 tokens, 10 of them decodes
        ((0, 10), 0.1, (80, 0.1)),  # one of 90
        ((10, 10), 0.1, (50, 0.1)),  # the loose ones take their token in the first of two batches
        ((10, 0), 0.13, (70, 0.13)),  # the third is cut to 20 tokens
        ((10, 0), 0.115, (60, 0.1)),  # 5 tokens would not even do for the decodes
        ((40, 0), 0.1, (0, 0.1)),  # just
        ((41, 0), 0.1, None),
        ((41, 0), 0.04, (0, 0.0)),  # nothing is due yet
        ((10, 0), 0.0, (0, 0.0)),
        ((10, 0), -1.0, (0, 0.0)),
    ],
)
def test_windows_by_hand(
    counts: tuple[int, ...], window_s: float, expected: tuple[int, float] | None
) -> None:
    found = ArPlanner(MS, TIERS).plan(window_s, counts)
    assert found == (None if expected is None else (expected[0], pytest.approx(expected[1])))


@settings(max_examples=300, deadline=None)
@given(
    roofline=rooflines,
    tight_s=st.floats(0.02, 0.1),
    factor=st.floats(1.1, 4),
    counts=pairs,
    window_s=st.floats(0.001, 1.0),
)
def test_it_is_the_simulation(
    roofline: Roofline, tight_s: float, factor: float, counts: tuple[int, int], window_s: float
) -> None:
    tiers = (tight_s, tight_s * factor)
    planner = ArPlanner(roofline, tiers)
    planner.plan(2 * window_s / 3, counts)  # what was asked before does not matter
    found = planner.plan(window_s, counts)
    reference = batches(roofline.seconds, roofline.most, tiers, counts, window_s)
    assume(reference is None or len(reference) < MOST_SLICES)
    if reference is None:
        assert found is None
    else:
        assert found is not None and found[0] == sum(prefill for _, _, prefill in reference)


@settings(max_examples=200, deadline=None)
@given(
    roofline=rooflines,
    tight_s=st.floats(0.02, 0.1),
    factor=st.floats(1.1, 4),
    counts=pairs,
    windows_s=st.lists(st.floats(0.001, 20.0), min_size=1, max_size=4),
)
def test_nobody_falls_behind_over_any_windows(
    roofline: Roofline,
    tight_s: float,
    factor: float,
    counts: tuple[int, int],
    windows_s: list[float],
) -> None:
    """Plans one behind the other: each decode has its m-th token by m times its pace. What `plan` says of them is what
    they hold."""
    tiers = (tight_s, tight_s * factor)
    planner = ArPlanner(roofline, tiers)
    made: list[list[Slice]] = []
    for window_s in windows_s:
        found = planner.plan(window_s, counts)
        assume(found is not None)
        made.append([*planner.slices(window_s, counts)])
        assert found == (
            sum(one.prefill for one in made[-1]),
            pytest.approx(sum(one.seconds for one in made[-1])),
        )
        assert found[1] <= window_s + 1e-6
    for one in chain(*made):
        used = sum(n * length for n, length in zip(counts, one.lengths, strict=True))
        assert one.size == used + one.prefill <= roofline.most and one.prefill >= 0
        assert one.seconds == roofline.seconds(one.size)
    for n, late_s in zip(counts, late_by_s(chain(*made), tiers), strict=True):
        assert not n or late_s <= 1e-6


@settings(max_examples=200, deadline=None)
@given(roofline=rooflines, counts=pairs, tokens=st.integers(1, 40_000))
def test_the_window_that_some_tokens_need(
    roofline: Roofline, counts: tuple[int, int], tokens: int
) -> None:
    planner = ArPlanner(roofline, TIERS)
    window_s = planner.reach(tokens, counts)
    if window_s == inf:
        assert planner.plan(100.0, counts) is None or planner.plan(100.0, counts) == (
            0,
            pytest.approx(100, abs=1),
        )
        return
    found = planner.plan(window_s + 1e-9, counts)
    assert found is not None and found[0] >= tokens
    less = planner.plan(window_s - max(0.011, 0.5 * window_s), counts)
    assert less is None or less[0] < tokens


def test_reach_by_hand() -> None:
    planner = ArPlanner(MS, TIERS)
    assert planner.reach(0, (3, 0)) == 0.0
    assert planner.reach(50, (0, 0)) == pytest.approx(0.06)
    assert planner.reach(35, (10, 0)) == pytest.approx(
        0.05 + 0.01 + 0.015
    )  # 30, then 5 and 10 decodes
    assert planner.reach(1, (41, 0)) == planner.reach(1, (40, 0)) == inf


def test_a_long_window_costs_no_more_than_its_beginning() -> None:
    planner = ArPlanner(MS, TIERS)
    assert planner.plan(3600.0, (10, 0)) == (72_000 * 30, pytest.approx(3600.0))
    assert planner.work == MOST_SLICES + 1
    assert planner.plan(3600.0, (10, 0)) and planner.work == MOST_SLICES + 1  # asked again
    assert sum(1 for _ in planner.slices(3600.0, (10, 0))) == 72_000


@settings(max_examples=300, deadline=None)
@given(
    roofline=rooflines,
    tight_s=st.floats(0.02, 0.1),
    factor=st.floats(1.1, 4),
    counts=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_steady_without_a_simulation_is_what_one_finds(
    roofline: Roofline, tight_s: float, factor: float, counts: tuple[int, int]
) -> None:
    """No batch is harder than the first."""
    tiers = (tight_s, tight_s * factor)
    found = batches(roofline.seconds, roofline.most, tiers, counts, steady_s(tiers))
    planner = ArPlanner(roofline, tiers)
    assert planner.is_steady(counts) == (found is not None)
    assert planner.is_steady(counts) == (planner.plan(steady_s(tiers), counts) is not None)


def test_steady_means_a_second_or_two_tokens_of_the_loosest() -> None:
    assert steady_s((0.05, 0.1)) == 1.0 and steady_s((0.9, 1.5)) == 3.0
    planner = ArPlanner(MS, (1.5, 3.0))
    assert planner.is_steady((1490, 0)) and not planner.is_steady((1491, 0))


# --- with speculation ------------------------------------------------------------------------------------------------


def test_tokens_that_drafts_bring() -> None:
    """alpha 0.6: 1, 1.6, 1.96, 2.176, ... 2.5 at most."""
    found = [accepted(s, 0.6) for s in (1, 2, 3, 4, 10)]
    assert found == pytest.approx([1, 1.6, 1.96, 2.176, 2.4848834])


@given(
    tpot_s=st.floats(0.01, 0.5),
    bottleneck_s=st.floats(0.01, 0.5),
    length=st.integers(1, 10),
    alpha=st.floats(0.3, 0.95),
    most=st.integers(1, 12),
)
def test_the_closed_form_is_the_smallest_length_that_keeps_up(
    tpot_s: float, bottleneck_s: float, length: int, alpha: float, most: int
) -> None:
    wanted_s = accepted(length, alpha) * bottleneck_s
    waits_s = [accepted(s, alpha) * tpot_s for s in range(1, most + 1)]
    assume(all(abs(one - wanted_s) > 1e-6 for one in waits_s) or tpot_s == bottleneck_s)
    enough = [s for s, one in enumerate(waits_s, 1) if one >= wanted_s - 1e-9]
    assert shortest(tpot_s, bottleneck_s, length, alpha, most) == (enough[0] if enough else 0)


def test_drafts_make_room_for_prompts() -> None:
    """OPT-13B on two A100s, 20 decodes of 50 ms. Without drafts a batch of 50 ms has 206 tokens: 186 for prompts, 372
    in 0.1 s. With 4 tokens each they can wait 0.1 s, in which 761 fit: 681 for prompts."""
    planner = SdPlanner(PUBLISHED["opt-13b-tp2"], (0.05,))
    assert planner.plan(0.1, (20,)) == (681, pytest.approx(0.1))
    assert planner.plan(0.35, (20,)) == (3 * 681, pytest.approx(0.3))
    assert [*planner.slices(0.2, (20,))] == 2 * [Slice(761, (4,), 681, 0.1)]
    alone = SdPlanner(PUBLISHED["opt-13b-tp2"], (0.05,), most=1)
    assert alone.plan(0.1, (20,)) == (372, pytest.approx(0.1))
    assert alone.plan(0.1, (207,)) is None and not alone.is_steady((207,))
    assert planner.is_steady((150,)) and alone.plan(0.1, (0,)) == planner.plan(0.1, (0,))


def test_decodes_have_a_context_with_drafts_too() -> None:
    """30 decodes whose context takes a millisecond each leave 10 of 50 ms: 100 tokens, 70 for prompts. With two that
    are verified (1.9 on average) nothing is won, with three (2.71, so 100 ms) 600, 510 for prompts."""
    roofline = Roofline((Piece(1e-4, 0.0, 0.01, per_decode_s=1e-3),))
    alone = SdPlanner(roofline, (0.05,), 0.9, most=1)
    assert alone.plan(0.05, (30,)) == ArPlanner(roofline, (0.05,)).plan(0.05, (30,))
    assert alone.plan(0.05, (30,)) == (70, pytest.approx(0.05))
    assert alone.is_steady((36,)) and not alone.is_steady((37,))
    assert alone.reach(70, (30,)) == pytest.approx(0.05)
    planner = SdPlanner(roofline, (0.05,), 0.9, most=3)
    assert planner.plan(0.1, (30,)) == (510, pytest.approx(0.1))


def test_a_window_shorter_than_any_batch_is_empty() -> None:
    """A batch takes 32 ms before its first token; in 5 ms nothing is due."""
    planner = SdPlanner(PUBLISHED["opt-13b-tp2"], (0.05, 0.1))
    assert planner.plan(0.005, (20, 0)) == (0, 0.0) == ArPlanner(MS, TIERS).plan(0.005, (20, 0))
    assert not [*planner.slices(0.005, (20, 0))]
    assert planner.plan(0.005, (9000, 0)) is None  # too many for any window


def slowly(planner: SdPlanner, window_s: float, counts: tuple[int, ...]) -> int | None:
    """The most prompt tokens over every bottleneck and length of it, the others by trial."""
    best = None
    used_tiers = [k for k, n in enumerate(counts) if n]
    for i in used_tiers:
        for length in range(1, planner.most + 1):
            wanted_s = accepted(length, planner.alpha) * planner.tiers[i]
            lengths = {}
            for k in used_tiers:
                for s in range(1, planner.most + 1):
                    if accepted(s, planner.alpha) * planner.tiers[k] >= wanted_s - 1e-9:
                        lengths[k] = s
                        break
            if len(lengths) < len(used_tiers):
                continue
            own_s = min(
                int(accepted(s, planner.alpha) + 1e-9) * planner.tiers[k]
                for k, s in lengths.items()
            )
            used = sum(counts[k] * s for k, s in lengths.items())
            for unit_s in (min(own_s, window_s), own_s):
                left = planner.roofline.time_to_batch(unit_s, max(lengths.values())) - used
                if left >= 0:
                    best = max(best or 0, left * int(window_s / unit_s + 1e-9))
                    break
    return best


@settings(max_examples=100, deadline=None)
@given(
    name=st.sampled_from(["opt-6.7b+opt-125m", "opt-13b-tp2", "opt-30b-tp4", "qwen2.5-32b-tp4"]),
    alpha=st.sampled_from([0.6, 0.8]),
    most=st.sampled_from([1, 6, 10]),
    counts=st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(0, 9)),
    window_s=st.floats(0.01, 2.0),
)
def test_the_best_lengths_of_all(
    name: str, alpha: float, most: int, counts: tuple[int, int, int], window_s: float
) -> None:
    assume(any(counts))
    planner = SdPlanner(PUBLISHED[name], (0.049, 0.099, 0.199), alpha, most)
    found, expected = planner.plan(window_s, counts), slowly(planner, window_s, counts)
    assert (found and found[0]) == expected
    if found is None:
        return
    made = [*planner.slices(window_s, counts)]
    assert found == (
        sum(one.prefill for one in made),
        pytest.approx(sum(one.seconds for one in made)),
    )
    assert found[1] <= window_s + 1e-9 or not made
    for one in made:
        assert planner.roofline.seconds(one.size, max(one.lengths)) <= one.seconds + 1e-8
        for k, length in enumerate(one.lengths):  # on average everybody keeps the pace
            assert not counts[k] or accepted(length, alpha) * planner.tiers[k] >= one.seconds - 1e-9


@settings(max_examples=100, deadline=None)
@given(counts=st.tuples(st.integers(0, 60), st.integers(0, 60)), tokens=st.integers(1, 20_000))
def test_the_window_that_some_tokens_need_with_drafts(counts: tuple[int, int], tokens: int) -> None:
    planner = SdPlanner(PUBLISHED["opt-13b-tp2"], (0.049, 0.099))
    window_s = planner.reach(tokens, counts)
    if window_s < inf:
        found = planner.plan(window_s * (1 + 1e-9), counts)
        assert found is not None and found[0] >= tokens


def test_what_cannot_be_a_planner() -> None:
    with pytest.raises(ValueError, match=r"alpha: 1.0, must be between 0 and 1"):
        SdPlanner(MS, TIERS, alpha=1.0)
    with pytest.raises(ValueError, match="most: 0 tokens, must be at least 1"):
        SdPlanner(MS, TIERS, most=0)


def test_a_window_may_be_taken_in_parts() -> None:
    """Iterators of long windows are lazy."""
    first = [*islice(ArPlanner(MS, TIERS).slices(1e6, (10, 0)), 3)]
    assert [one.prefill for one in first] == [30, 30, 30]
    assert sum(one.seconds for one in first) == pytest.approx(0.15)
