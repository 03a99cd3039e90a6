"""SLOs-Serve's performance model and tiers: the authors' constants worked out by hand, and the project's own model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scheduler.cost_model import Coefficients, CostModel, Work
from accelgen.scheduler.slos_serve.roofline import MOST_TOKENS, PUBLISHED, Piece, Roofline, fitted
from accelgen.scheduler.slos_serve.tiers import LEAST_S, joined, tier_of, tiers_of


@pytest.mark.parametrize(
    ("limit_s", "tokens"),
    [
        (0.02, 0),  # less than the fixed 24.8 ms
        (0.05, 366),  # (0.05 - 0.0248) / 6.878e-5 = 366.4; the other piece: 624
        (0.099, 1078),  # 1078.8 and 1275
        (
            0.5,
            6605,
        ),  # 6908 and (0.5 - 0.003033) / 7.523e-5 = 6605.97: beyond 3374 tokens the second piece is the roof
        (9.0, MOST_TOKENS),
    ],
)
def test_opt_6_7b_without_drafts(limit_s: float, tokens: int) -> None:
    assert PUBLISHED["opt-6.7b"].time_to_batch(limit_s) == tokens


def test_drafts_cost_their_steps() -> None:
    """OPT-6.7B, 4 steps in 0.1 s: (0.1 - 0.0248 - 4 * 1.249e-6) / 6.878e-5 = 1093.3, (0.1 - 0.003033 - 4 * 3.465e-3) /
    7.523e-5 = 1104.7. OPT-13B on two: (0.1 - 0.03173 - 4 * 3.341e-3) / 7.213e-5 = 761.2."""
    assert PUBLISHED["opt-6.7b+opt-125m"].time_to_batch(0.1, steps=4) == 1093
    assert PUBLISHED["opt-13b-tp2"].time_to_batch(0.1, steps=4) == 761
    assert PUBLISHED["opt-6.7b+opt-125m"].seconds(1000) == pytest.approx(0.0248 + 0.06878)
    assert PUBLISHED["opt-6.7b+opt-125m"].seconds(4000) == pytest.approx(0.003033 + 0.30092)


def test_a_piece_without_a_slope_limits_time_alone() -> None:
    """OPT-13B's second piece: 3.014 ms per step whatever the tokens are."""
    flat = Roofline((Piece(0.0, 3e-3, 1e-3),), most=100)
    assert flat.time_to_batch(0.0099, steps=3) == 0
    assert flat.time_to_batch(0.0101, steps=3) == 100


@given(
    pieces=st.lists(
        st.tuples(
            st.floats(1e-6, 1e-3), st.floats(0, 1e-2), st.floats(0, 0.05), st.floats(0, 1e-3)
        ),
        min_size=1,
        max_size=3,
    ),
    limit_s=st.floats(0, 3),
    steps=st.integers(0, 10),
    decodes=st.integers(0, 200),
)
def test_it_is_the_inverse(
    pieces: list[tuple[float, float, float, float]], limit_s: float, steps: int, decodes: int
) -> None:
    roofline = Roofline(tuple(Piece(*one) for one in pieces))
    size = roofline.time_to_batch(limit_s, steps, decodes)
    if size:
        assert roofline.seconds(size, steps, decodes) <= limit_s + 1e-8
    if size < MOST_TOKENS:
        assert roofline.seconds(size + 1, steps, decodes) > limit_s


@given(
    prefill=st.integers(0, 4000),
    decodes=st.integers(0, 300),
    context=st.integers(0, 3000),
    prior=st.integers(0, 3000),
    b2=st.sampled_from([0.0, 5e-5]),
    scale=st.floats(0.5, 2),
)
def test_the_fitted_model_is_one(
    prefill: int, decodes: int, context: int, prior: int, b2: float, scale: float
) -> None:
    """The knee form is a maximum of two lines: same seconds for batches with that context."""
    cost = CostModel(Coefficients(a=0.019, b=3e-5, b2=b2, c=5e-6, d=7e-7, e=4e-9, knee=96.0))
    cost.scale = scale
    work = Work(prefill, decodes, decodes * context, float(prefill * prior))
    roofline = fitted(cost, context, prior)
    assert roofline.seconds(prefill + decodes, decodes=decodes) == pytest.approx(cost.predict(work))


def test_limits_of_the_engine() -> None:
    roofline = Roofline((Piece(1e-4, 0.0, 0.01),))
    assert roofline.within(0.11, 8192).most == 1000
    assert roofline.within(9.0, 8192).most == 8192
    assert roofline.within(0.001, 8192).most == 1  # something must go on
    assert roofline.within(float("inf"), 1 << 20).most == MOST_TOKENS


def test_tiers_are_the_objectives_less_a_millisecond_and_a_loose_one() -> None:
    tiers = tiers_of([0.1, 0.05, 0.1])
    assert tiers == pytest.approx((0.049, 0.099, 0.199))
    assert [tier_of(tiers, s) for s in (0.01, 0.05, 0.0985, 0.1, 0.198, 1e9)] == [0, 0, 0, 1, 1, 2]
    assert tiers_of([]) == (0.1,)
    assert tiers_of([0.0015, 0.0]) == pytest.approx((LEAST_S, 0.00075, 0.10075))


def test_many_objectives_share_three_tiers() -> None:
    """The tightest is always one of them, so that nobody is served more slowly than it asks."""
    asked = [0.02 + 0.01 * i for i in range(9)]
    tiers = tiers_of(asked)
    assert tiers == pytest.approx((0.019, 0.049, 0.079, 0.179))
    assert all(tiers[tier_of(tiers, one)] <= one for one in asked)


def test_a_decode_joins_a_tier() -> None:
    assert joined((3, 0, 1), 1) == (3, 1, 1)
    assert joined((3, 0, 1), 2, 4) == (3, 0, 5)
