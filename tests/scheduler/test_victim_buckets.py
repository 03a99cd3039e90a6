"""CacheOPT's order of victims: three keys in buckets, and the same whoever is named first."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scheduler.memory.buckets import Widths, victim_order
from accelgen.scheduler.table import FAR_S


@dataclass(frozen=True)
class Running:
    id: int
    arrival_s: float = 0.0
    tbt_s: float = 0.1
    remaining: int = 100
    blocks: int = 10


running = st.builds(
    Running,
    st.integers(1, 10**12),
    st.floats(0, 3),
    st.sampled_from([0.05, 0.06, 0.0624, 0.1, 0.2, 1.0, FAR_S]),
    st.integers(1, 400),
    st.integers(0, 60),
)
lists = st.lists(running, max_size=30, unique_by=lambda one: one.id)
widths = st.builds(Widths, st.sampled_from([0.25, 1.0]), st.integers(1, 100), st.integers(1, 20))


def order(ones: list[Running], widths: Widths | None = None) -> list[int]:
    """Ids, the first victim first."""
    ids, remaining, blocks = (
        np.array([getattr(one, name) for one in ones], dtype=np.int64)
        for name in ("id", "remaining", "blocks")
    )
    arrival_s, tbt_s = (
        np.array([getattr(one, name) for one in ones], dtype=np.float64)
        for name in ("arrival_s", "tbt_s")
    )
    return [ones[i].id for i in victim_order(ids, arrival_s, tbt_s, remaining, blocks, widths)]


def test_the_longest_objective_gives_way_first() -> None:
    """Buckets of a quarter of the tightest one, 12.5 ms: 0.05 is the first of its bucket, 0.0624 the last."""
    ones = [Running(1, tbt_s=0.05), Running(2, tbt_s=0.1), Running(3, tbt_s=FAR_S)]
    assert order(ones) == [3, 2, 1]
    near = [Running(1, tbt_s=0.0624, remaining=10), Running(2, tbt_s=0.05, remaining=100)]
    assert order(near) == [2, 1]
    apart = [Running(1, tbt_s=0.0626, remaining=10), Running(2, tbt_s=0.05, remaining=100)]
    assert order(apart) == [1, 2]


def test_then_the_most_output_to_come() -> None:
    assert order([Running(1, remaining=63), Running(2, remaining=64)]) == [2, 1]
    same = [Running(1, remaining=64, blocks=8), Running(2, remaining=127, blocks=16)]
    assert order(same) == [1, 2]


def test_then_the_least_memory() -> None:
    assert order([Running(1, blocks=8), Running(2, blocks=7)]) == [2, 1]
    assert order([Running(1, blocks=15, arrival_s=2), Running(2, blocks=8)]) == [1, 2]


def test_of_equals_the_latest() -> None:
    assert order([Running(1, arrival_s=1), Running(2, arrival_s=3), Running(3)]) == [2, 1, 3]
    assert order([Running(7), Running(5)]) == [5, 7]


def test_without_objectives_the_rest_decides() -> None:
    ones = [Running(1, tbt_s=FAR_S, remaining=10), Running(2, tbt_s=FAR_S, remaining=300)]
    assert order(ones) == [2, 1]
    assert order([]) == []


def test_an_objective_of_nothing() -> None:
    assert order([Running(1, tbt_s=0.0), Running(2, tbt_s=0.1), Running(3, tbt_s=FAR_S)]) == [
        3,
        2,
        1,
    ]


@given(lists, widths)
def test_it_is_the_order_of_the_keys(ones: list[Running], widths: Widths) -> None:
    stated = [one.tbt_s for one in ones if one.tbt_s < FAR_S]
    width_s = widths.tbt_share * min(stated, default=FAR_S)

    def key(one: Running) -> tuple[float, ...]:
        by_tbt = floor(one.tbt_s / width_s)
        by_remaining, by_blocks = one.remaining // widths.remaining, one.blocks // widths.blocks
        return -by_tbt, -by_remaining, by_blocks, -one.arrival_s, one.id

    assert order(ones, widths) == [one.id for one in sorted(ones, key=key)]


@given(lists, st.randoms(use_true_random=False))
def test_it_does_not_depend_on_who_is_named_first(ones: list[Running], shuffle: object) -> None:
    found = order(ones)
    assert sorted(found) == sorted(one.id for one in ones)
    mixed = [*ones]
    shuffle.shuffle(mixed)  # type: ignore[attr-defined]
    assert order(mixed) == found


@pytest.mark.parametrize(
    ("params", "fault"),
    [
        ({"tbt_share": 0.0}, "tbt_share: 0.0, must be at least 0.01"),
        ({"remaining": 0}, "remaining: 0 tokens, must be at least 1"),
        ({"blocks": 0}, "blocks: 0, must be at least 1"),
    ],
)
def test_widths_out_of_range(params: dict[str, float], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        Widths(**params)  # type: ignore[arg-type]
