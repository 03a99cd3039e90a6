"""FastServe: levels by quantum, demotion, promotion of the starved, memory from the lowest level's end."""

from __future__ import annotations

import pytest
from scene import Scene

from accelgen.scheduler.policies.fastserve import FastServe
from accelgen.scheduler.policies.feedback_queue import SPAN, Job, Queues, begun, charge, in_order


def level(scene: Scene, slot: int) -> int:
    job = scene.state.jobs.get(int(scene.table.ids[slot]))
    return int(scene.table.key[slot] // SPAN) if job is None else job.level


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [(1, 1), (99, 1), (101, 2), (300, 2), (301, 3), (700, 3), (701, 4), (1501, 5)],
)
def test_a_prompt_joins_the_first_level_with_time_enough(prompt: int, expected: int) -> None:
    """10 ms + 0.1 ms per token: 10.1 ms exceed the quantum of level 0, 20 ms that of level 1 are 100 tokens, ..."""
    scene = Scene(FastServe())
    assert level(scene, scene.waiting(prompt)) == expected


def test_higher_levels_first_then_by_arrival() -> None:
    scene = Scene(FastServe(max_batch_size=3))
    long = scene.waiting(600, at_s=0.0)
    late, early = scene.waiting(20, at_s=2.0), scene.waiting(50, at_s=1.0)
    middle = scene.waiting(200, at_s=0.5)
    assert list(scene.plan()) == [early, late, middle]
    assert long not in scene.plan()


def test_prompts_of_a_batch_are_limited_and_decodes_do_not_count() -> None:
    scene = Scene(FastServe(max_tokens_per_batch=120))
    first, second = scene.waiting(60, at_s=0.0), scene.waiting(60, at_s=0.1)
    scene.step(run_s=0.001)
    third, fourth = scene.waiting(100, at_s=0.2), scene.waiting(90, at_s=0.3)
    taken = scene.plan()
    assert taken == {second: 1, first: 1, third: 100}
    assert fourth not in taken


def test_a_prompt_longer_than_the_limit_is_cut() -> None:
    scene = Scene(FastServe(max_tokens_per_batch=500))
    long = scene.waiting(700)
    assert scene.step() == {long: 500}
    assert scene.step() == {long: 200}


def test_what_is_pinned_for_others_that_wait_drops_nobody_that_runs() -> None:
    """They would take turns for ever: in, and out again."""
    scene = Scene(FastServe(), blocks=4)
    running = scene.running(20, 20)
    scene.waiting(100)
    scene.pinned_blocks = 5
    assert scene.plan() == {running: 1} and not scene.preempted


def test_time_in_a_level_is_charged_and_exceeding_the_quantum_demotes() -> None:
    """Level 1 has 20 ms: 15 ms stay below, 15 more do not; the time begins anew one level down."""
    queues = Queues({7: Job(1, 0.0, 0), 8: Job(1, 0.010, 0)}, front=-1)
    queues = charge(queues, [7, 8], 0.015, 0.010)
    assert queues.jobs == {7: Job(1, 0.015, -2), 8: Job(2, 0.0, -3)}
    queues = charge(queues, [7], 0.015, 0.010)
    assert queues.jobs[7] == Job(2, 0.0, -4)
    assert (
        queues.jobs[7].key < queues.jobs[8].key
    )  # the front of the level, before who came earlier


def test_demoted_ones_wait_behind_newcomers() -> None:
    scene = Scene(FastServe(max_batch_size=1))
    old = scene.waiting(20)
    assert scene.step(run_s=0.03) == {old: 20}  # more than the 20 ms of level 1
    assert level(scene, old) == 2
    new = scene.waiting(20, at_s=0.03)
    assert scene.step(0.03) == {new: 20}


def test_the_starved_are_promoted_every_so_often() -> None:
    """Idle for 3 s at the second iteration: to the front of level 0, the lowest level first; those of the batch go
    before them when it has ended."""
    scene = Scene(FastServe(max_batch_size=1, starvation_period=2, quantum_s=100.0))
    busy = scene.waiting(20)
    scene.state = Queues({1: Job(0, 0.0, -1)})
    scene.step(0.0)
    idle, idler = scene.waiting(20, at_s=0.5), scene.waiting(20, at_s=0.1)
    fresh = scene.waiting(20, at_s=3.0)
    scene.table.move(idle, 5 * SPAN + 0.5)
    scene.table.move(idler, 4 * SPAN + 0.1)
    assert scene.step(4.0) == {busy: 1}  # the iteration that promotes
    assert scene.state.starved_s == pytest.approx(1.0)
    order = [slot for _, _, slot in in_order(scene.table, scene.state, 10)]
    assert order == [busy, idle, idler, fresh]
    assert begun(scene.table, scene.state, [idle])[int(scene.table.ids[idle])].level == 0


def test_a_promotion_counts_once() -> None:
    """Who has run since stands where it was left, though it still has no token."""
    scene = Scene(FastServe(max_batch_size=1), blocks=200)
    scene.state = Queues({}, front=-10, starved_s=5.0, promoted=-10)
    first = scene.waiting(2000, at_s=0.1)
    second = scene.waiting(2000, at_s=0.2)
    scene.state.jobs[int(scene.table.ids[first])] = Job(6, 0.0, -50)
    scene.table.move(first, Job(6, 0.0, -50).key)
    assert list(scene.plan(0.3)) == [second]


def test_kv_is_dropped_from_the_end_of_the_lowest_level() -> None:
    scene = Scene(FastServe(), blocks=1)
    low, high = scene.running(64, 64), scene.running(64, 64)
    scene.state = Queues({1: Job(5, 0.0, -1), 2: Job(3, 0.0, -2)})
    scene.policy.max_batch_size = 1  # type: ignore[attr-defined]
    new = scene.waiting(20)
    assert scene.plan() == {new: 20}
    assert scene.preempted == [low] and high not in scene.preempted


def test_then_from_the_end_of_the_batch() -> None:
    scene = Scene(FastServe(), blocks=0)
    low, high = scene.running(64, 64), scene.running(64, 64)
    scene.state = Queues({1: Job(5, 0.0, -1), 2: Job(3, 0.0, -2)})
    assert scene.plan() == {high: 1}
    assert scene.preempted == [low]


def test_a_seat_is_taken_from_the_lowest_level_too() -> None:
    scene = Scene(FastServe(max_batch_size=1), seats=1)
    low = scene.running(64, 64)
    scene.state = Queues({1: Job(5, 0.0, -1)})
    new = scene.waiting(20)
    assert scene.plan() == {new: 20} and scene.preempted == [low]
