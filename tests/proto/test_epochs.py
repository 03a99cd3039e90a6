"""Which scheduler is obeyed: only one that is listed, in a higher epoch, in whatever order the news comes."""

from __future__ import annotations

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.proto.epochs import MAX_PENDING, Claim, Fence, epoch_name, epoch_of
from accelgen.proto.frame import Header
from accelgen.proto.messages import Activate, Directory, Member, Resync, Role


def header(epoch: int, incarnation: int) -> Header:
    return Header(1, 0, epoch, incarnation, 0)


def peer_of(incarnation: int) -> bytes:
    return b"scheduler:%d" % incarnation


def claim(fence: Fence[Activate], epoch: int, incarnation: int) -> Claim[Activate] | None:
    return fence.claim(peer_of(incarnation), header(epoch, incarnation), Activate(epoch))


def listing(*incarnations: int, role: Role = Role.SCHEDULER, phase: str = "ready") -> Directory:
    members = [
        Member(role, 0, 1, "", one, 1, phase, 1, 1.0, 0.0, 1, None, {}) for one in incarnations
    ]
    return Directory(members, True, False)


def test_a_listed_one_takes_office() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    assert fence.learn(listing(7)) is None
    assert claim(fence, 3, 7) == Claim(peer_of(7), 3, 7, Activate(3))
    assert (fence.epoch, fence.peer) == (3, peer_of(7)) and not fence.counters
    assert fence.passes(peer_of(7), header(3, 7))


def test_a_repetition_is_obeyed_as_such() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    fence.learn(listing(7, 8))
    first = claim(fence, 3, 7)
    again = claim(fence, 3, 7)
    assert first is not None and again is not None
    assert (first.repeated, again.repeated) == (False, True)
    assert claim(fence, 3, 8) is None  # the epoch is taken
    assert claim(fence, 2, 7) is None and fence.epoch == 3
    assert fence.counters["stale"] == 2


@pytest.mark.parametrize("epoch, incarnation", [(2, 7), (4, 7), (3, 8)])
def test_others_do_not_pass(epoch: int, incarnation: int) -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    fence.learn(listing(7))
    claim(fence, 3, 7)
    assert not fence.passes(peer_of(incarnation), header(epoch, incarnation))
    assert fence.counters["stale"] == 1


def test_nobody_passes_before_the_first() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    assert not fence.passes(peer_of(7), header(0, 7))
    claim(fence, 1, 7)  # a stranger
    assert not fence.passes(peer_of(7), header(1, 7))


@pytest.mark.parametrize(
    "directory",
    [
        listing(),
        listing(8),
        listing(7, role=Role.WORKER),
        listing(7, phase="dead"),  # it cannot act any more
    ],
    ids=["nobody", "another", "not a scheduler", "dead"],
)
def test_strangers_wait_until_they_are_listed(directory: Directory) -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    fence.learn(directory)
    assert claim(fence, 9, 7) is None and fence.epoch == 0
    assert fence.counters == {"stranger": 1}
    assert fence.learn(directory) is None and fence.learn(None) is None
    found = fence.learn(listing(8, 7))
    assert found == Claim(peer_of(7), 9, 7, Activate(9)) and fence.epoch == 9
    assert fence.learn(listing(8, 7)) is None  # once


def test_only_the_one_of_the_same_index_counts() -> None:
    """A worker obeys its own KV manager."""
    for index, obeyed in ((0, True), (1, False)):
        fence = Fence[Resync](Role.KVMANAGER, index)
        fence.learn(listing(7, role=Role.KVMANAGER))
        assert (fence.claim(b"one", header(3, 7), Resync()) is not None) == obeyed


def test_a_member_that_was_not_born_yet_lists_nobody() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    fence.learn(listing(0))  # no Hello of it has come
    assert claim(fence, 1, 0) is None


def test_the_newest_of_those_who_waited_is_obeyed() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    for epoch, incarnation in ((4, 7), (6, 8), (5, 9), (99, 66)):
        assert claim(fence, epoch, incarnation) is None
    claim(fence, 8, 8)  # repeats itself in a higher epoch: that one counts
    found = fence.learn(listing(7, 8, 9))
    assert found is not None and (found.epoch, found.incarnation) == (8, 8)
    assert fence.passes(peer_of(8), header(8, 8))


def test_who_waited_in_vain_is_stale() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    claim(fence, 3, 7)
    fence.learn(listing(8))
    claim(fence, 4, 8)
    assert fence.learn(listing(7, 8)) is None and fence.epoch == 4
    assert fence.counters == {"stranger": 1, "stale": 1}


def test_strangers_cannot_fill_the_memory() -> None:
    fence = Fence[Activate](Role.SCHEDULER)
    claim(fence, 2, 7)
    for incarnation in range(100, 100 + MAX_PENDING - 1):
        for epoch in (3, 4):
            claim(fence, epoch, incarnation)
    found = fence.learn(listing(7))  # still known
    assert found is not None and found.incarnation == 7
    for incarnation in range(1000, 100_000, 99):
        claim(fence, 9, incarnation)
    assert len(fence._pending) <= MAX_PENDING


@given(
    st.lists(st.tuples(st.integers(1, 6), st.integers(1, 4)), min_size=1, max_size=4),
    st.sets(st.integers(1, 4)),
)
def test_order_does_not_matter(claims: list[tuple[int, int]], listed: set[int]) -> None:
    """The highest epoch of the listed ones ends up in office, wherever the Directory comes among the Activates."""
    best = max((epoch for epoch, one in claims if one in listed), default=0)
    for order in permutations(claims):
        for at in range(len(claims) + 1):
            fence = Fence[Activate](Role.SCHEDULER)
            for position in range(len(claims) + 1):
                if position == at:
                    fence.learn(listing(*listed))
                if position < len(claims):
                    claim(fence, *order[position])
            assert fence.epoch == best


def test_people_are_told_the_term() -> None:
    """As `accelgen status` shows it; an epoch as a number is 65,536 times as much."""
    assert epoch_name(epoch_of(3)) == "3" and epoch_name(epoch_of(3, 2)) == "3.2"
