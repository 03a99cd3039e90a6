"""Swap or recompute: the fitted line, both curves against sums, and where they cross."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import LINEAR

from accelgen.scheduler.cost_model import Coefficients, CostModel, Work
from accelgen.scheduler.memory.crossover import Crossover, Line, Way, fit_line

MIB = 1 << 20


def crossover(start_s: float, byte_s: float, **options: int) -> Crossover:
    """Blocks of 16 tokens, 1 kB each; the same both ways."""
    given_ones = {"block_bytes": 16_000, "block_size": 16, "chunk": 8192, **options}
    line = Line(start_s, byte_s)
    return Crossover(line, line, **given_ones)


# --- the line --------------------------------------------------------------------------------------------------------


@given(st.floats(0, 0.1), st.floats(1e-11, 1e-8))
def test_a_line_is_found(start_s: float, byte_s: float) -> None:
    line = Line(start_s, byte_s)
    sizes = [MIB << i for i in range(10)]
    found = fit_line(sizes, [line.seconds(size) for size in sizes])
    for size in sizes:
        assert found.seconds(size) == pytest.approx(line.seconds(size), rel=1e-6)


def test_a_line_through_noise() -> None:
    """Twenty copies of each size, off by 10 %: standard errors of 2 %, and minimising relative errors of noisy times
    makes both 2 % too small (twice the variance). 15 % is six standard errors away."""
    draw = np.random.default_rng(3)
    sizes = [MIB << i for i in range(10)] * 20
    seconds = [(2e-3 + 1e-10 * size) * float(draw.normal(1, 0.1)) for size in sizes]
    found = fit_line(sizes, seconds)
    assert found.start_s == pytest.approx(2e-3, rel=0.15)
    assert found.byte_s == pytest.approx(1e-10, rel=0.15)


samples = st.lists(
    st.tuples(st.integers(1, 1000), st.floats(0.01, 10.0)),
    min_size=2, max_size=12, unique_by=lambda pair: pair[0],
)  # fmt: skip


@given(samples, st.floats(0, 20), st.floats(0, 20))
def test_no_line_is_nearer(pairs: list[tuple[int, float]], start_s: float, slope: float) -> None:
    sizes, seconds = zip(*pairs, strict=True)

    def error(line: Line) -> float:
        return sum((line.seconds(x) / y - 1) ** 2 for x, y in pairs)

    found = fit_line(sizes, seconds)
    assert found.start_s >= 0 and found.byte_s >= 0
    others = [Line(start_s, slope / 1000), Line(start_s, 0.0), Line(0.0, slope / 1000)]
    others += [Line(found.start_s * a, found.byte_s * b) for a in (0.9, 1.1) for b in (0.9, 1.1)]
    others += [Line(found.start_s + 0.01, found.byte_s), Line(found.start_s, found.byte_s + 1e-4)]
    assert all(error(found) <= error(other) + 1e-9 for other in others)


@pytest.mark.parametrize(
    ("sizes", "seconds", "fault"),
    [
        ([], [], "0 sizes"),
        ([5], [1.0], "1 sizes, 1 of them different"),
        ([5, 5], [1.0, 1.1], "2 sizes, 1 of them different"),
        ([5, 6], [1.0], "1 times"),
        ([5, 0], [1.0, 1.0], "least size 0"),
        ([5, 6], [1.0, 0.0], "least time 0.0 s"),
        ([5, 6], [1.0, float("nan")], "least time nan"),
    ],
)
def test_copies_that_give_no_line(sizes: list[int], seconds: list[float], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        fit_line(sizes, seconds)


# --- the curves ------------------------------------------------------------------------------------------------------


def test_swapping_moves_whole_blocks_both_ways() -> None:
    curves = Crossover(Line(0.001, 1e-9), Line(0.002, 2e-9), 16_000, 16, 8192)
    assert curves.swap_s(16) == curves.swap_s(1) == pytest.approx(0.003 + 3e-9 * 16_000)
    assert curves.swap_s(17) == pytest.approx(0.003 + 3e-9 * 32_000)


@given(st.integers(1, 5000), st.integers(16, 600), st.floats(0, 1e-6), st.floats(0.5, 2.0))
def test_recomputing_is_the_sum_of_its_chunks(
    tokens: int, chunk: int, e: float, scale: float
) -> None:
    cost = CostModel(Coefficients(a=0.01, b=1e-5, b2=1e-4, c=0.0, d=0.0, e=e, knee=64.0))
    cost.scale = scale
    seconds, done = 0.0, 0
    while done < tokens:
        size = min(chunk, tokens - done)
        seconds += cost.predict(Work(size, prefill_work=size * (done + size / 2)))
        done += size
    found = crossover(0.0, 0.0, chunk=chunk).recompute_s(tokens, cost)
    assert found == pytest.approx(seconds, rel=1e-9)


def test_the_longer_are_swapped() -> None:
    """Swapping takes 40 ms + 0.04 ms per token, in blocks; computing 10 ms + 0.1 ms: equal at 500 tokens."""
    curves, cost = crossover(0.02, 2e-8), CostModel(LINEAR)
    assert curves.way(496, cost) is Way.DROP
    assert curves.way(512, cost) is Way.SWAP
    assert curves.length(cost, 4000) == 512
    cost.scale = 2.0  # the device turns out to be slower: 20 ms + 0.2 ms, equal at 125
    assert curves.length(cost, 4000) == 128
    assert curves.way(512, cost) is Way.SWAP and curves.way(120, cost) is Way.DROP


def test_there_may_be_no_sweet_spot() -> None:
    cost = CostModel(LINEAR)
    slow = crossover(0.02, 1e-7)  # 0.2 ms per token
    assert slow.length(cost, 4000) is None and slow.way(4000, cost) is Way.DROP
    fast = crossover(0.001, 1e-9)
    assert fast.length(cost, 4000) == 16 and fast.way(1, cost) is Way.SWAP
    assert fast.length(cost, 15) is None


def test_equal_times_are_no_reason_to_swap() -> None:
    free = CostModel(Coefficients(a=0.04, b=0.0, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0))
    assert crossover(0.02, 0.0).way(100, free) is Way.DROP


def test_curves_may_cross_more_than_once() -> None:
    """One iteration takes 50 ms, and up to 256 tokens are free in it: the shortest are swapped as the long ones are."""
    cost = CostModel(Coefficients(a=0.05, b=0.0, b2=2e-4, c=0.0, d=0.0, e=0.0, knee=256.0))
    curves = crossover(0.02, 5e-8)  # 40 ms + 0.1 ms per token
    ways = [curves.way(tokens, cost) for tokens in range(16, 1025, 16)]
    swapped = [16 * (i + 1) for i, way in enumerate(ways) if way is Way.SWAP]
    # 40 + 0.1 n < 50 below 100 tokens, and 40 + 0.1 n < 50 + 0.2 (n - 256) above 412
    assert swapped == [*range(16, 97, 16), *range(416, 1025, 16)]
    assert curves.length(cost, 1024) == 416


@given(st.floats(0, 0.1), st.floats(0, 2e-7), st.floats(0, 3e-8), st.integers(64, 2000))
def test_the_sweet_spot_is_the_last_crossing(
    start_s: float, byte_s: float, e: float, chunk: int
) -> None:
    cost = CostModel(Coefficients(a=0.02, b=1e-5, b2=8e-5, c=0.0, d=0.0, e=e, knee=128.0))
    curves = crossover(start_s, byte_s, chunk=chunk)
    lengths = [*range(16, 1601, 16)]
    swaps = [curves.swap_s(n) < curves.recompute_s(n, cost) for n in lengths]
    assert [curves.way(n, cost) is Way.SWAP for n in lengths] == swaps
    expected = next((n for i, n in enumerate(lengths) if all(swaps[i:])), None)
    assert curves.length(cost, 1610) == expected


@pytest.mark.parametrize("name", ["block_bytes", "block_size", "chunk"])
def test_constants_out_of_range(name: str) -> None:
    options: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"{name}: 0"):
        crossover(0.0, 0.0, **options)
