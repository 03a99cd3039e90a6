"""Orca: whole prompts beside decodes, first come, first served, the longest possible sequence reserved."""

from __future__ import annotations

from scene import Scene, request

from accelgen.proto.messages import Objective
from accelgen.scheduler.policies.orca import Orca


def test_whole_prompts_join_the_decodes_in_order_of_arrival() -> None:
    scene = Scene(Orca(), blocks=1000)
    decode = scene.running(32, 32)
    late = scene.waiting(900, at_s=2.0)
    early = scene.waiting(4000, at_s=1.0)
    taken = scene.plan()
    assert taken == {decode: 1, early: 4000, late: 900}
    assert list(taken) == [decode, early, late]


def test_the_longest_possible_sequence_is_reserved() -> None:
    """32 prompt and 100 output tokens can become 132, 9 blocks: 11 requests fit into 100 blocks, though the prompts of
    all would take 2 blocks each."""
    scene = Scene(Orca(), blocks=100)
    slots = [scene.waiting(32, at_s=float(i)) for i in range(12)]
    assert list(scene.step()) == slots[:11]
    assert scene.step() == dict.fromkeys(slots[:11], 1)


def test_the_same_for_all_is_reserved_with_a_model_length() -> None:
    scene = Scene(Orca(max_model_len=800), blocks=100)
    slots = [scene.waiting(32, at_s=float(i)) for i in range(12)]
    assert list(scene.plan()) == slots[:2]


def test_choices_still_to_be_forked_are_reserved_for() -> None:
    scene = Scene(Orca(), blocks=30)
    first, second = scene.waiting(32, at_s=0.0), scene.waiting(32, at_s=1.0)
    scene.table.request(first).children = [
        request(9, 32, Objective()),
        request(10, 32, Objective()),
    ]
    assert scene.policy.reserved_blocks(scene.view, first) == 27  # type: ignore[attr-defined]
    assert list(scene.plan()) == [first]
    scene.table.request(first).children = []
    assert list(scene.plan()) == [first, second]


def test_who_comes_back_from_the_host_has_a_reservation() -> None:
    """After a takeover from a policy that preempts: what is on its way back will run."""
    scene = Scene(Orca(), blocks=15)
    away, other = scene.running(32, 32), scene.waiting(32, at_s=1.0)
    scene.table.go_out(away)
    scene.table.went_out(away, 0.0)
    scene.table.come_back(away)
    assert scene.plan() == {}  # 9 blocks each
    scene.table.remove(away)
    assert scene.plan() == {other: 32}


def test_what_exceeds_the_cache_runs_alone() -> None:
    scene = Scene(Orca(max_model_len=100_000), blocks=100)
    slots = [scene.waiting(32, at_s=float(i)) for i in range(3)]
    assert list(scene.plan()) == slots[:1]


def test_the_engine_cuts_what_exceeds_its_limit_and_goes_on_there() -> None:
    scene = Scene(Orca(), tokens=100)
    first, second = scene.waiting(150, at_s=0.0), scene.waiting(80, at_s=1.0)
    assert scene.step() == {first: 100}
    assert scene.step() == {first: 50, second: 50}
