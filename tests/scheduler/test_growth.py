"""Growth ahead of need, the reserve, and what critical requests get from others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scheduler.memory.growth import Growth, cuts, serve
from accelgen.scheduler.table import Ints


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


growths = st.builds(
    Growth, st.integers(0, 5), st.integers(1, 70), st.integers(0, 200), st.sampled_from([1, 8, 16])
)
rooms = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), min_size=1, max_size=12)


def test_the_reserve_is_not_for_newcomers() -> None:
    growth = Growth()  # 64 tokens: 4 blocks of 16
    assert growth.reserve_blocks == 4
    assert [growth.spare(free) for free in (0, 4, 5, 100)] == [0, 0, 1, 96]
    assert Growth(reserve=64, block_size=8).reserve_blocks == 8
    assert Growth(reserve=65).reserve_blocks == 5
    assert Growth(reserve=0).spare(3) == 3


def test_who_asks_for_more() -> None:
    growth = Growth()  # 2 iterations ahead, 32 tokens
    allocated, used = ints(4, 4, 4, 4, 4), ints(61, 62, 64, 64, 63)
    most = ints(500, 500, 500, 70, 64)  # the last two end before they need a whole quantum, or any
    assert growth.asks(allocated, used, most).tolist() == [0, 2, 2, 1, 0]
    assert Growth(ahead=0).asks(allocated, used, most).tolist() == [0, 0, 2, 1, 0]
    assert Growth(quantum=40).asks(allocated, used, most).tolist() == [0, 3, 3, 1, 0]


def test_what_a_critical_request_needs() -> None:
    growth = Growth()
    assert growth.least_demand(100, 1000) == 9  # 132 tokens
    assert growth.least_demand(100, 110) == 7
    assert growth.least_demand(1, 1000) == 3


def test_what_can_be_cut() -> None:
    growth = Growth()
    assert growth.unused(ints(10, 10, 10, 2), ints(30, 31, 159, 32)).tolist() == [8, 7, 0, 0]


def test_growth_is_served_by_need() -> None:
    asks, left, ids = ints(2, 2, 2, 2), ints(2, 0, 1, 1), ints(1, 2, 4, 3)
    assert serve(asks, left, ids, 8).tolist() == [2, 2, 2, 2]
    assert serve(asks, left, ids, 5).tolist() == [0, 2, 1, 2]
    assert serve(asks, left, ids, 0).tolist() == [0, 0, 0, 0]
    assert serve(ints(), ints(), ints(), 3).tolist() == []


def test_whoever_can_wait_longest_pays() -> None:
    unused, slack_s = ints(3, 5, 4, 1), np.array([0.1, 2.0, -1.0, 2.0])
    assert cuts(unused, slack_s, ints(4, 3, 2, 1), 4).tolist() == [0, 3, 0, 1]
    assert cuts(unused, slack_s, ints(4, 3, 2, 1), 8).tolist() == [2, 5, 0, 1]
    assert cuts(unused, slack_s, ints(4, 3, 2, 1), 99).tolist() == [3, 5, 4, 1]


@given(rooms, st.integers(0, 60), st.randoms(use_true_random=False))
def test_blocks_go_round_in_order(pairs: list[tuple[int, int]], blocks: int, shuffle: Any) -> None:
    asks, left = (ints(*column) for column in zip(*pairs, strict=True))
    ids = np.arange(1, len(pairs) + 1)
    granted = serve(asks, left, ids, blocks)
    assert granted.sum() == min(blocks, asks.sum())
    assert (granted >= 0).all() and (granted <= asks).all()
    for i in range(len(pairs)):
        for j in range(len(pairs)):
            if (left[i], ids[i]) < (left[j], ids[j]) and granted[i] < asks[i]:
                assert granted[j] == 0
    slack_s = -left.astype(float)
    assert cuts(asks, slack_s, ids, blocks).tolist() == granted.tolist()
    mixed = [*range(len(pairs))]
    shuffle.shuffle(mixed)
    assert serve(asks[mixed], left[mixed], ids[mixed], blocks).tolist() == granted[mixed].tolist()


@given(growths, st.lists(st.tuples(st.integers(0, 20), st.integers(0, 320), st.integers(0, 400))))
def test_asks_and_cuts_fit_together(growth: Growth, rows: list[tuple[int, int, int]]) -> None:
    """Who asks has nothing to cut; nobody asks beyond what it can ever have, or to run out at once again."""
    size = growth.block_size
    for blocks, tokens, more in rows:
        tokens = min(tokens, blocks * size)
        most = tokens + more
        ask = int(growth.asks(ints(blocks), ints(tokens), ints(most))[0])
        unused = int(growth.unused(ints(blocks), ints(tokens))[0])
        assert not (ask and unused)
        room = blocks * size - tokens
        if room > growth.ahead or most <= blocks * size:
            assert ask == 0
        else:
            assert ask >= 1
            assert (blocks + ask) * size >= min(blocks * size + growth.quantum, most)
            assert (blocks + ask - 1) * size < min(blocks * size + growth.quantum, most)
        if unused:
            assert (blocks - unused) * size - tokens >= growth.ahead


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"ahead": -1}, "ahead: -1 iterations, must be at least 0"),
        ({"quantum": 0}, "quantum: 0 tokens, must be at least 1"),
        ({"reserve": -5}, "reserve: -5 tokens, must be at least 0"),
        ({"block_size": 0}, "block_size: 0 tokens, must be at least 1"),
    ],
)
def test_constants_out_of_range(params: dict[str, int], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Growth(**params)
