"""Embedding: the published inequality with worked numbers, and no guest that its host grows into."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scheduler.memory.embedding import Embedding, Guest, left_over
from accelgen.scheduler.table import Ints


def ints(*values: int) -> Ints:
    return np.array(values, dtype=np.int64)


guests = st.builds(Guest, st.integers(1, 200), st.integers(1, 200), st.integers(1, 4))
rules = st.builds(Embedding, st.integers(0, 20), st.sampled_from([1, 7, 16]))


@st.composite
def hosts(draw: st.DrawFn) -> tuple[Ints, Ints]:
    """Allocated and used tokens; whole blocks of 112 tokens are whole ones of 1, 7 and 16."""
    blocks = draw(st.lists(st.integers(1, 12), max_size=8))
    allocated = ints(*(112 * count for count in blocks))
    used = ints(*(draw(st.integers(0, 112 * count)) for count in blocks))
    return allocated, used


def test_a_host_with_room() -> None:
    """Prompt 16 and 16 generated of 160 allocated: 160 - (32 + 16) - 32 = 80."""
    guest = Guest(prompt=16, output=16)
    assert left_over(ints(160), ints(32), guest).tolist() == [80]
    assert Embedding().best_host(ints(160), ints(32), guest) == 0
    assert Embedding(buffer=80).best_host(ints(160), ints(32), guest) == 0
    assert Embedding(buffer=81).best_host(ints(160), ints(32), guest) is None


def test_two_hosts_without() -> None:
    """160 - (32 + 32) - 128 = -32 and 160 - (144 + 32) - 128 = -144: it waits."""
    guest = Guest(prompt=96, output=32)
    allocated, used = ints(160, 160), ints(32, 144)
    assert left_over(allocated, used, guest).tolist() == [-32, -144]
    assert Embedding(buffer=0).best_host(allocated, used, guest) is None


def test_best_fit() -> None:
    guest = Guest(prompt=16, output=16)
    allocated, used = ints(400, 160, 160, 96, 160), ints(32, 32, 60, 32, 60)
    assert left_over(allocated, used, guest).tolist() == [320, 80, 52, 16, 52]
    assert Embedding().best_host(allocated, used, guest) == 3
    assert Embedding(buffer=17).best_host(allocated, used, guest) == 2  # the first of equals
    assert Embedding().best_host(ints(), ints(), guest) is None


def test_blocks_are_whole() -> None:
    """33 + 113 tokens leave 14 of 160, but take 3 + 8 blocks, and there are 10."""
    guest = Guest(prompt=112, output=1)
    allocated, used = ints(160), ints(32)
    assert left_over(allocated, used, guest).tolist() == [14]
    assert Embedding(block_size=1).best_host(allocated, used, guest) == 0
    assert Embedding(block_size=16).best_host(allocated, used, guest) is None


def test_a_prompt_in_chunks_lets_its_host_grow() -> None:
    allocated, used = ints(160), ints(32)
    assert left_over(allocated, used, Guest(16, 16, chunks=5)).tolist() == [76]


def test_one_guest_after_the_other() -> None:
    allocated, used = ints(160, 96), ints(32, 32)
    given_ones = [Guest(16, 16)] * 5
    # 80 and 16 left; then 80, 48, and 16 at the first host, and room nowhere
    assert Embedding().assign(allocated, used, given_ones) == [1, 0, 0, 0, None]
    assert Embedding(buffer=17).assign(allocated, used, given_ones) == [0, 0, None, None, None]
    assert allocated.tolist() == [160, 96]


@given(hosts(), guests, rules)
def test_the_best_host_is_feasible_and_minimal(
    columns: tuple[Ints, Ints], guest: Guest, rule: Embedding
) -> None:
    allocated, used = columns
    left = {}
    for j in range(len(allocated)):
        a, u = int(allocated[j]), int(used[j])
        rest = a - (u + guest.life) - (guest.prompt + guest.output)
        size = rule.block_size
        whole = -(-(u + guest.life) // size) + -(-guest.tokens // size)
        if rest >= rule.buffer and whole * size <= a:
            left[j] = rest
    found = rule.best_host(allocated, used, guest)
    if not left:
        assert found is None
    else:
        assert found is not None and left[found] == min(left.values())
        assert found == min(j for j in left if left[j] == left[found])


@given(hosts(), st.lists(guests, max_size=6), rules)
def test_no_host_grows_into_a_guest(
    columns: tuple[Ints, Ints], given_ones: list[Guest], rule: Embedding
) -> None:
    """Iteration by iteration, every host gains a token, and guests hold their blocks until they end."""
    allocated, used = columns
    chosen = rule.assign(allocated, used, given_ones)
    for host in {host for host in chosen if host is not None}:
        inside = [g for g, h in zip(given_ones, chosen, strict=True) if h == host]
        for step in range(max(guest.life for guest in inside) + 1):
            own = -(-(int(used[host]) + step) // rule.block_size)
            lent = sum(g.blocks(rule.block_size) for g in inside if g.life >= step)
            if lent:
                assert (own + lent) * rule.block_size <= allocated[host]


def fits_the_pool(
    hosts: list[tuple[int, int]], guest: Guest, capacity: int, block_size: int = 1
) -> bool:
    """Packing by pooled peaks, which the inequality is compared with: whether, token by token, all requests together
    stay below `capacity` tokens. hosts: (allocated, used), each grows until its allocation is full, and ends."""
    for step in range(guest.life + 1):
        growing = [used + step for allocated, used in hosts if used + step <= allocated]
        tokens = [*growing, min(guest.prompt + step, guest.tokens)]
        if sum(-(-count // block_size) for count in tokens) * block_size > capacity:
            return False
    return True


def test_pooled_peaks_admit_what_no_host_can_take() -> None:
    """The published pair: hosts with 160 allocated, 32 and 144 used, and one unallocated block of 16. The second one
    ends before the newcomer is large; the inequality does not see that."""
    guest, hosts = Guest(prompt=96, output=32), [(160, 32), (160, 144)]
    assert fits_the_pool(hosts, guest, 336) and fits_the_pool(hosts, guest, 336, block_size=16)
    assert not fits_the_pool(hosts, guest, 312)  # at its fullest: 48 + 160 + 112 = 320
    assert Embedding(buffer=0).best_host(ints(160, 160), ints(32, 144), guest) is None


@given(hosts(), guests, rules)
def test_no_host_is_found_where_the_pool_is_too_small(
    columns: tuple[Ints, Ints], guest: Guest, rule: Embedding
) -> None:
    """Step by step, by a count that knows nothing of the inequality: with no unallocated block at all."""
    allocated, used = columns
    if rule.best_host(allocated, used, guest) is not None:
        pairs = [*zip(allocated.tolist(), used.tolist(), strict=True)]
        assert fits_the_pool(pairs, guest, int(allocated.sum()), rule.block_size)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (lambda: Guest(0, 1), "prompt: 0 tokens, must be at least 1"),
        (lambda: Guest(1, 0), "output: 0 tokens"),
        (lambda: Guest(1, 1, 0), "chunks: 0, must"),
        (lambda: Embedding(buffer=-1), "buffer: -1 tokens, must be at least 0"),
        (lambda: Embedding(block_size=0), "block_size: 0 tokens"),
    ],
)
def test_out_of_range(make: Callable[[], object], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        make()
