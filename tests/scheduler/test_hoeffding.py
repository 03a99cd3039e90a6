"""CacheOPT's pad with its worked numbers, and the arrival rate that its confidence follows."""

from __future__ import annotations

from math import ceil, exp, log

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scheduler.memory.arrival_rate import ArrivalRate
from accelgen.scheduler.memory.hoeffding import Pad, deviation, padded
from accelgen.scheduler.predictors.estimate import Direction, Estimate

UNDER, OVER = Direction.UNDER, Direction.OVER
confidences = st.floats(0.0, 0.999)
rates = st.floats(0.0, 1e5)


@st.composite
def estimates(draw: st.DrawFn) -> Estimate:
    low = draw(st.integers(1, 3000))
    high = draw(st.integers(low, 4000))
    return Estimate(draw(st.integers(1, 4000)), low, high, draw(st.sampled_from(Direction)))


def test_worked_numbers() -> None:
    """The range of raw output lengths would make the pad useless: 2048 tokens at 0.95."""
    assert deviation(2048, 0.95) == pytest.approx(2506.49, abs=0.01)
    assert ceil(deviation(2048, 0.95)) == 2507
    assert deviation(100, 0.95) == pytest.approx(122.387, abs=0.001)
    assert deviation(100, 0.0) == deviation(0, 0.95) == 0


@given(st.floats(1.0, 1e4), confidences)
def test_it_is_the_bound_for_one_observation(spread: float, confidence: float) -> None:
    t = deviation(spread, confidence)
    assert exp(-2 * t**2 / spread**2) == pytest.approx(1 - confidence, rel=1e-9)


@pytest.mark.parametrize("confidence", np.linspace(0.01, 0.99, 50).tolist())
def test_it_bounds_what_lies_in_the_range(confidence: float) -> None:
    """Exact probabilities of two laws on a range 2 wide around their mean: even, and at its two ends."""
    t = deviation(2.0, confidence)
    even = max(0.0, (1 - t) / 2)
    ends = 0.5 if t <= 1 else 0.0
    assert even <= 1 - confidence and ends <= 1 - confidence


def test_confidence_falls_with_the_rate() -> None:
    pad = Pad()
    assert pad.confidence(0) == 0.95
    assert pad.confidence(8) == pytest.approx(0.942, abs=0.0005)
    assert pad.confidence(1000) == pytest.approx(0.475)
    assert Pad(0.9, 0.5).confidence(16) == pytest.approx(0.1)


def test_the_pad_has_the_sign_of_the_direction() -> None:
    pad = Pad()
    low, high = Estimate(200, 150, 250, UNDER), Estimate(200, 150, 250, OVER)
    assert pad.length(low, 0, 1000, 0.0) == 323  # 200 + 122.4
    assert pad.length(high, 0, 1000, 0.0) == 78  # 200 - 122.4
    assert pad.length(low, 0, 300, 0.0) == 300
    assert pad.length(high, 100, 1000, 0.0) == 101
    assert pad.length(low, 100, 100, 0.0) == 100  # the last token is in flight
    assert pad.length(Estimate(200, 200, 200), 0, 1000, 0.0) == 200
    assert Pad(alpha=0.0).length(low, 0, 1000, 0.0) == 200


@given(estimates(), st.integers(0, 4000), st.integers(1, 4000), rates, st.floats(0, 0.99))
def test_it_stays_within_what_is_possible(
    estimate: Estimate, generated: int, more: int, rate: float, alpha: float
) -> None:
    most = generated + more
    length = Pad(alpha).length(estimate, generated, most, rate)
    assert generated + 1 <= length <= most
    unbounded = estimate.tokens + estimate.direction * deviation(
        estimate.spread, Pad(alpha).confidence(rate)
    )
    if generated + 1 < length < most:
        assert -1e-6 <= length - unbounded < 1 + 1e-6


@given(estimates(), rates, rates)
def test_the_pad_shrinks_under_load(estimate: Estimate, one: float, other: float) -> None:
    calm, busy = sorted((one, other))
    pads = [
        abs(Pad(beta=0.1).length(estimate, 0, 100_000, rate) - estimate.tokens)
        for rate in (calm, busy)
    ]
    assert pads[1] <= pads[0]


@given(st.lists(estimates(), min_size=1, max_size=20), confidences, st.data())
def test_columns_are_padded_one_by_one(
    given_ones: list[Estimate], confidence: float, data: st.DataObject
) -> None:
    number = len(given_ones)
    generated = data.draw(st.lists(st.integers(0, 500), min_size=number, max_size=number))
    most = [tokens + data.draw(st.integers(1, 3000)) for tokens in generated]
    columns = [
        np.array(column, dtype=np.int64)
        for column in zip(*((e.tokens, e.spread, e.direction) for e in given_ones), strict=True)
    ]
    found = padded(*columns, np.array(generated), np.array(most), confidence)
    pad = Pad(alpha=confidence, beta=0.0)
    assert found.dtype == np.int64
    assert found.tolist() == [
        pad.length(*one, 0.0) for one in zip(given_ones, generated, most, strict=True)
    ]


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"alpha": 1.0}, "alpha: 1.0, must be from 0.0 to 0.999999"),
        ({"alpha": -0.1}, "alpha: -0.1"),
        ({"beta": -1.0}, "beta: -1.0 s, must be at least 0.0"),
        ({"beta": float("inf")}, "beta: inf"),
    ],
)
def test_constants_out_of_range(params: dict[str, float], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Pad(**params)


# --- the arrival rate ------------------------------------------------------------------------------------------------


def after(times_s: list[float], tau_s: float = 10.0) -> ArrivalRate:
    rate = ArrivalRate(tau_s)
    for at_s in times_s:
        rate = rate.arrived(at_s)
    return rate


def test_a_rate_by_hand() -> None:
    assert ArrivalRate().per_s(5.0) == 0
    one = after([100.0])
    assert one.per_s(100.0) == one.per_s(200.0) == 0  # it only opens the history
    two = after([100.0, 110.0])
    assert two.per_s(110.0) == pytest.approx(1 / (10 * (1 - exp(-1))))
    assert two.per_s(120.0) == pytest.approx(exp(-1) / (10 * (1 - exp(-2))))
    at_once = ArrivalRate(10.0).arrived(100.0, count=4)
    assert at_once.per_s(100.0) == pytest.approx(3 / (10 * (1 - exp(-0.1))))  # 3 in a second
    assert after([100.0, 110.0, 105.0]) == after([100.0, 110.0, 110.0])


@given(st.lists(st.floats(0, 30), min_size=1, max_size=40), st.floats(0, 30))
def test_each_arrival_fades(gaps_s: list[float], later_s: float) -> None:
    times_s = (1000.0 + np.cumsum(gaps_s)).tolist()
    now_s = times_s[-1] + later_s
    weight = sum(exp(-(now_s - at_s) / 10.0) for at_s in times_s[1:])
    history_s = max(now_s - times_s[0], 1.0)
    expected = weight / (10.0 * (1 - exp(-history_s / 10.0)))
    found = msgspec.msgpack.decode(msgspec.msgpack.encode(after(times_s)), type=ArrivalRate)
    assert found.per_s(now_s) == pytest.approx(expected, rel=1e-9)


def test_a_poisson_stream_is_found() -> None:
    """Standard deviation sqrt(8 / 60) = 0.37: five of them, one false alarm in a million."""
    draw = np.random.default_rng(11)
    times_s = np.cumsum(draw.exponential(1 / 8, 4000)).tolist()
    rate = after(times_s, tau_s=30.0)
    assert rate.per_s(times_s[-1]) == pytest.approx(8, abs=5 * (8 / 60) ** 0.5)
    busier_s = (times_s[-1] + np.cumsum(draw.exponential(1 / 80, 16_000))).tolist()
    for at_s in busier_s:
        rate = rate.arrived(at_s)
    assert rate.per_s(busier_s[-1]) == pytest.approx(80, abs=5 * (80 / 60) ** 0.5 + 1)
    half_s = 30.0 * log(2)
    assert rate.per_s(busier_s[-1] + half_s) == pytest.approx(
        rate.per_s(busier_s[-1]) / 2, rel=0.01
    )


def test_a_time_constant_out_of_range() -> None:
    with pytest.raises(ValueError, match="tau_s: 0.0 s, must be at least 0.1"):
        ArrivalRate(0.0)
