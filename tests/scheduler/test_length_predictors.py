"""Length predictors: the class median as it always was, quantiles with the range of errors, and a regression that is
believed only where it is better."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from zlib import crc32

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import request

from accelgen.proto.messages import Objective
from accelgen.scheduler.predictors.class_quantiles import ClassMedian, ClassQuantiles
from accelgen.scheduler.predictors.estimate import (
    Direction,
    Estimate,
    LengthPredictor,
    Traits,
)
from accelgen.scheduler.predictors.kinds import is_learner, make_predictor
from accelgen.scheduler.predictors.learnt import Learner, Learnt, Regression
from accelgen.scheduler.predictors.least_squares import LeastSquares
from accelgen.scheduler.predictors.regressor import (
    CLASSES,
    JUDGED,
    TRAINED,
    WIDTH,
    LengthRegressor,
    features,
)
from accelgen.scheduler.predictors.residuals import FEWEST, Residuals, bucket_of

CHAT = Traits("chat", 100, 1000)
Observations = list[tuple[Traits, int]]

lengths = st.integers(1, 3000)
traits = st.builds(
    Traits,
    st.sampled_from(["chat", "code", "batch"]),
    st.integers(1, 5000),
    st.integers(1, 3000),
    st.sampled_from([Objective(), Objective(0.5, 0.1), Objective(None, None, 20.0)]),
)


def feed(predictor: LengthPredictor, seen: Iterable[int], about: Traits = CHAT) -> None:
    for tokens in seen:
        predictor.observe(about, tokens)


# --- classes ---------------------------------------------------------------------------------------------------------


class ByHand:
    """The class median, as it was before there were other predictors."""

    def __init__(self) -> None:
        self.outputs: dict[str, deque[int]] = {}
        self.median: dict[str, int] = {}

    def predict(self, slo_class: str, max_tokens: int) -> int:
        return max(1, min(max_tokens, self.median.get(slo_class, max_tokens // 2)))

    def observe(self, slo_class: str, tokens: int) -> None:
        outputs = self.outputs.setdefault(slo_class, deque(maxlen=500))
        outputs.append(tokens)
        if len(outputs) < 16 or len(outputs) % 16 == 0:
            self.median[slo_class] = int(np.median(outputs))


@given(st.lists(st.tuples(traits, lengths), max_size=60))
def test_the_class_median_is_as_it_was(observations: Observations) -> None:
    predictor, by_hand = ClassMedian(), ByHand()
    for about, tokens in observations:
        estimate = predictor.predict(about)
        assert estimate.tokens == by_hand.predict(about.slo_class, about.max_tokens)
        assert 1 <= estimate.low <= about.max_tokens and 1 <= estimate.high <= about.max_tokens
        predictor.observe(about, tokens)
        by_hand.observe(about.slo_class, tokens)


def test_the_class_median_follows_beyond_its_window() -> None:
    median = ClassMedian()
    feed(median, [10] * 500)
    feed(median, [700] * 500)
    assert median.predict(CHAT).tokens == 700
    heir = ClassMedian(median.learnt())
    feed(heir, [40] * 500)
    assert heir.predict(CHAT).tokens == 40


def test_nothing_is_known_at_first() -> None:
    for predictor in (ClassMedian(), ClassQuantiles(quantile=0.9), LengthRegressor()):
        assert predictor.predict(CHAT) == Estimate(500, 1, 1000, Direction.UNDER)
        assert predictor.predict(Traits("chat", 5, 1)) == Estimate(1, 1, 1)


def test_quantiles_with_the_range_of_their_errors() -> None:
    seen = np.random.default_rng(1).permutation(np.arange(1, 97)).tolist()
    median, high = ClassQuantiles(), ClassQuantiles(quantile=0.9)
    feed(median, seen)
    feed(high, seen)
    assert median.predict(CHAT) == Estimate(48, 1, 96, Direction.UNDER)  # their mean is 48.5
    assert median.predict(CHAT).spread == 95
    assert high.predict(CHAT) == Estimate(86, 1, 96, Direction.OVER)
    trimmed = ClassQuantiles(trim=10.0)
    feed(trimmed, seen)
    assert trimmed.predict(CHAT) == Estimate(48, 10, 87, Direction.UNDER)  # 10.5 to 86.5
    assert median.predict(Traits("chat", 1, 20)) == Estimate(20, 1, 20)
    assert median.predict(Traits("code", 1, 20)) == Estimate(10, 1, 20)  # another class


def test_traits_do_not_change_while_a_request_runs() -> None:
    one = request(1, 30, Objective(0.5), max_tokens=7)
    before = Traits.of(one)
    one.generated += [5, 6]
    assert Traits.of(one) == before == Traits("standard", 30, 7, Objective(0.5))


@pytest.mark.parametrize(
    ("name", "params", "fault"),
    [
        ("median", {}, "median.*class-median, class-quantiles, regressor"),
        ("class-median", {"trim": 1}, "class-median.*trim"),
        ("class-quantiles", {"quantile": 1.5}, "quantile: 1.5, must be from 0.0 to 1.0"),
        ("class-quantiles", {"trim": 50.0}, "trim: 50.0 %, must be from 0.0 to 49.0"),
        ("class-quantiles", {"trim": "a"}, "class-quantiles"),
        ("regressor", {"forgetting": 0.4}, "forgetting: 0.4"),
        ("regressor", {"ridge": float("nan")}, "ridge: nan, must be at least 1e-06"),
        ("regressor", {"trim": -1.0}, "trim: -1.0 %"),
    ],
)
def test_what_cannot_be_made(name: str, params: dict[str, object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make_predictor(name, params)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_errors_count_in_their_bucket() -> None:
    residuals = Residuals()
    assert residuals.around(100, 9000) == Estimate(100, 1, 9000)  # everything is possible
    for error in range(-20, 31):
        residuals.add(100, 100 + error)
    assert residuals.around(120, 9000) == Estimate(120, 100, 150, Direction.UNDER)  # 64 to 127
    assert residuals.around(1000, 9000) == Estimate(1000, 980, 1030)  # nothing of its own yet
    for _ in range(FEWEST):
        residuals.add(1000, 400)
    assert residuals.around(1000, 9000) == Estimate(1000, 400, 400, Direction.OVER)
    assert residuals.around(120, 9000).spread == 50
    assert residuals.around(120, 125) == Estimate(120, 100, 125)


@given(st.lists(st.tuples(st.integers(1, 40), lengths), max_size=100), st.integers(1, 70))
def test_ranges_are_those_of_the_errors(pairs: list[tuple[int, int]], predicted: int) -> None:
    residuals = Residuals()
    for said, tokens in pairs:
        residuals.around(said, 9000)  # asked between, nothing outdated is kept
        residuals.add(said, tokens)
    everything = [tokens - said for said, tokens in pairs]
    own = [tokens - said for said, tokens in pairs if int(np.log2(said)) == int(np.log2(predicted))]
    errors = own if len(own) >= FEWEST else everything
    if len(errors) < FEWEST:
        expected = Estimate(predicted, 1, 9000)
    else:
        direction = Direction.UNDER if sum(errors) >= 0 else Direction.OVER
        low, high = predicted + min(errors), predicted + max(errors)
        expected = Estimate(predicted, max(1, low), max(1, high), direction)
    assert residuals.around(predicted, 9000) == expected
    assert Residuals(0.0, residuals.errors()).around(predicted, 9000) == expected


def test_buckets_are_powers_of_two() -> None:
    assert [bucket_of(n) for n in (0, 1, 2, 3, 4, 7, 8, 1024)] == [1, 1, 2, 2, 3, 3, 4, 11]


# --- least squares ---------------------------------------------------------------------------------------------------


def test_least_squares_solves_the_weighted_problem() -> None:
    draw = np.random.default_rng(5)
    rows, sides = draw.normal(size=(60, 4)), draw.normal(size=60)
    line = LeastSquares(4, forgetting=0.97, ridge=0.3)
    assert line.predict(rows[0]) == 0
    for x, y in zip(rows, sides, strict=True):
        line.add(x, float(y))
    roots = np.sqrt(0.97 ** np.arange(59, -1, -1))
    stacked = np.vstack([roots[:, None] * rows, np.sqrt(0.3) * np.eye(4)])
    expected = np.linalg.lstsq(stacked, np.concatenate([roots * sides, np.zeros(4)]), rcond=None)[0]
    assert line.weights == pytest.approx(expected, rel=1e-9)
    other = LeastSquares(4, forgetting=0.97, ridge=0.3)
    other.restore(line.gram.tolist(), line.moment.tolist())
    assert other.weights == pytest.approx(line.weights, rel=1e-12)


def test_what_is_not_seen_any_more_fades() -> None:
    line = LeastSquares(2, forgetting=0.99, ridge=0.1)
    line.add(np.array([0.0, 1.0]), 3.0)
    assert line.weights[1] == pytest.approx(3 / 1.1)
    for _ in range(5000):
        line.add(np.array([1.0, 0.0]), 2.0)
    assert line.weights == pytest.approx([2 * 100 / 100.1, 0.0], abs=1e-6)


@pytest.mark.parametrize(
    ("gram", "moment"),
    [
        ([], []),
        ([[1.0, 0.0]], [1.0, 0.0]),
        ([[1.0, 0.0], [0.0]], [1.0, 0.0]),
        ([[1.0, 0.0], [0.0, float("inf")]], [1.0, 0.0]),
        ([[1.0, 0.0], [0.0, 1.0]], [1.0, float("nan")]),
        ([[1.0, 0.5], [0.0, 1.0]], [1.0, 0.0]),
        ([[-1.0, 0.0], [0.0, 1.0]], [1.0, 0.0]),
    ],
)
def test_sums_that_no_observations_have(gram: list[list[float]], moment: list[float]) -> None:
    line = LeastSquares(2)
    with pytest.raises(ValueError):
        line.restore(gram, moment)
    assert line.predict(np.ones(2)) == 0


# --- the regression --------------------------------------------------------------------------------------------------


def log_normal(middle: float, sigma: float, draw: np.random.Generator) -> int:
    return max(1, min(4000, round(middle * float(np.exp(draw.normal(0, sigma))))))


def by_prompt(number: int, seed: int) -> Observations:
    """Answers a quarter as long as their prompts, about."""
    draw = np.random.default_rng(seed)
    prompts = np.exp(draw.uniform(np.log(40), np.log(4000), number)).astype(int).tolist()
    return [(Traits("chat", p, 4000), log_normal(p / 4, 0.2, draw)) for p in prompts]


def by_nothing(number: int, seed: int) -> Observations:
    """Answers that have nothing to do with what is known."""
    draw = np.random.default_rng(seed)
    prompts = draw.integers(1, 4000, number).tolist()
    return [(Traits("chat", p, 4000), log_normal(150, 0.8, draw)) for p in prompts]


def run(predictor: LengthPredictor, observations: Observations) -> list[Estimate]:
    """What is said of each request before it ends."""
    said = []
    for about, tokens in observations:
        said.append(predictor.predict(about))
        predictor.observe(about, tokens)
    return said


def mean_error(said: list[Estimate], observations: Observations) -> float:
    pairs = zip(said, observations, strict=True)
    return float(np.mean([abs(estimate.tokens - tokens) for estimate, (_, tokens) in pairs]))


@given(st.lists(st.tuples(traits, lengths), max_size=30))
def test_untrained_it_is_the_class_median(observations: Observations) -> None:
    assert run(LengthRegressor(), observations) == run(ClassMedian(), observations)


@pytest.mark.parametrize("make", [by_prompt, by_nothing])
def test_until_it_has_been_judged_it_is_the_class_median(
    make: Callable[[int, int], Observations],
) -> None:
    observations = make(TRAINED + JUDGED, 3)
    assert run(LengthRegressor(), observations) == run(ClassMedian(), observations)


def test_it_learns_what_lengths_depend_on() -> None:
    observations = by_prompt(900, 7)
    regressor = LengthRegressor()
    said, medians = run(regressor, observations), run(ClassMedian(), observations)
    late, late_said = observations[600:], said[600:]
    assert regressor.leads
    assert mean_error(late_said, late) < 0.5 * mean_error(medians[600:], late)
    # There are some 80 errors in a bucket, and the next one lies beyond their range with probability 2 / 81: 7 of 300;
    # more than 30 (Poisson) once in 100 million.
    pairs = zip(late_said, late, strict=True)
    assert sum(estimate.low <= tokens <= estimate.high for estimate, (_, tokens) in pairs) >= 270
    spread = np.mean([estimate.spread for estimate in late_said])
    assert spread < np.mean([estimate.spread for estimate in medians[600:]])


def test_it_follows_a_change() -> None:
    before = by_prompt(600, 8)
    after = [(about, max(1, tokens // 4)) for about, tokens in by_prompt(2000, 9)]
    observations = before + after
    said, medians = run(LengthRegressor(), observations), run(ClassMedian(), observations)
    late = observations[2200:]
    assert mean_error(said[2200:], late) < 0.6 * mean_error(medians[2200:], late)


@pytest.mark.parametrize("seed", range(4))
def test_where_nothing_can_be_learnt_it_costs_little(seed: int) -> None:
    """The weights are off by noise: their 2 free directions, known from 112 to 1000 observations, add to the squared
    error of the logarithm a share of 2 / 112 to 2 / 1000. Five per cent of the mean error would be far outside."""
    observations = by_nothing(2000, seed)
    said, medians = run(LengthRegressor(), observations), run(ClassMedian(), observations)
    assert mean_error(said, observations) < 1.05 * mean_error(medians, observations)


def test_it_is_not_believed_where_the_median_is_better() -> None:
    """Two classes that share a place among the features: the regression cannot tell them apart, the median can."""
    names = (f"class {i}" for i in count())
    first = next(names)
    second = next(n for n in names if (crc32(n.encode()) - crc32(first.encode())) % CLASSES == 0)
    regressor = LengthRegressor()
    for _ in range(TRAINED + JUDGED):
        regressor.observe(Traits(first, 100, 1000), 10)
        regressor.observe(Traits(second, 100, 1000), 900)
    assert not regressor.leads
    assert regressor.predict(Traits(first, 100, 1000)) == Estimate(10, 10, 10)
    assert regressor.predict(Traits(second, 100, 1000)) == Estimate(900, 900, 900)


def test_features() -> None:
    about = Traits("chat", 0, 1, Objective(None, 0.1, None))
    place = 6 + crc32(b"chat") % CLASSES
    expected = [float(i in (0, 4, place)) for i in range(WIDTH)]
    assert features(about).tolist() == expected
    longer = features(Traits("chat", 2980, 2981, Objective(None, 0.1, None)))
    assert longer[1:3] == pytest.approx([1.0, 1.0], abs=1e-4)  # e^8 = 2980.96


def trained(**params: float) -> LengthRegressor:
    regressor = LengthRegressor(**params)
    run(regressor, by_prompt(304, 1))  # a multiple of 16: the class median is up to date
    assert regressor.leads
    return regressor


@pytest.fixture(scope="module", params=[0.0, 5.0])
def trimmed(request: pytest.FixtureRequest) -> LengthRegressor:
    return trained(trim=request.param)


@given(about=traits)
def test_what_is_predicted_is_possible(trimmed: LengthRegressor, about: Traits) -> None:
    estimate = trimmed.predict(about)
    for tokens in (estimate.tokens, estimate.low, estimate.high):
        assert 1 <= tokens <= about.max_tokens
    assert estimate.spread >= 0


# --- what travels ----------------------------------------------------------------------------------------------------


def learners() -> list[Learner]:
    quantiles = ClassQuantiles(quantile=0.8, trim=1.0)
    run(quantiles, by_prompt(96, 2))
    median = ClassMedian()
    run(median, by_prompt(96, 2))
    return [median, quantiles, trained()]


@pytest.mark.parametrize("index", range(3))
def test_what_was_learnt_travels(index: int) -> None:
    before = learners()[index]
    assert is_learner(before)
    data = msgspec.msgpack.encode(before.learnt())
    assert len(data) < 50_000
    learnt = msgspec.msgpack.decode(data, type=Learnt)
    after = make_predictor(before.name, before.params, learnt)
    assert type(after) is type(before)
    more = by_prompt(48, 4)
    assert run(before, more) == run(after, more)
    assert after.learnt() == before.learnt()


def test_one_kind_goes_on_with_what_another_has_learnt() -> None:
    median, regressor = ClassMedian(), trained()
    feed(median, range(1, 33))
    heir = make_predictor("regressor", {}, median.learnt())
    assert heir.predict(CHAT) == median.predict(CHAT) != ClassMedian().predict(CHAT)
    back = make_predictor("class-median", {}, regressor.learnt())
    assert back.predict(CHAT) == ClassMedian(regressor.learnt()).predict(CHAT)
    assert back.learnt().outputs == regressor.learnt().outputs


def test_a_regression_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 14"):
        LengthRegressor(Learnt({}, Regression(3, 0.1, [[1.0]], [1.0], {})))
