"""What was projected of drafts is taken back whatever comes in between: results one after the other, lengths that
change from plan to plan, no blocks for them, KV that goes to the host."""

from __future__ import annotations

from itertools import cycle
from typing import Any

import numpy as np
import pytest
from drafting_world import DRAFTS, CheckedWorld, Stating, prompt_of
from scene import Scene
from world import FakeWorker, expected

from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policies.slack import next_token_due_s


class Turns(Stating):
    """States drafts in turn."""

    def __init__(self, *lengths: int) -> None:
        super().__init__()
        self.lengths = cycle(lengths)

    def wanted(self, start_s: float) -> int:
        return next(self.lengths)


class Wrong(FakeWorker):
    """Its drafts are always wrong."""

    def _guess(self, id: int, drafts: int) -> list[int]:
        return [-1] * drafts


def world_of(policy: Sarathi, worker: FakeWorker | None = None, **options: Any) -> CheckedWorld:
    world = CheckedWorld("sarathi", **{**DRAFTS, **options})
    world.core.replicas[0].policy = policy
    if worker is not None:
        world.workers = [worker]
    return world


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("lengths", [(3, 1, 0), (3, 1), (3, 0), (1, 3), (3, 3, 0, 0)])
def test_lengths_that_change_while_one_is_in_flight(lengths: tuple[int, ...], depth: int) -> None:
    """A result takes more back than the plan behind it has added: that one's own is not forgotten."""
    world = world_of(Turns(*lengths), Wrong(4), pipeline_depth=depth)
    world.submit(1, prompt_of(9), max_tokens=30)
    world.run()
    assert world.delivered[1] == expected(prompt_of(9), 30)
    assert world.workers[0].planned > 10 and not world.workers[0].accepted
    world.check_idle()


def test_a_result_before_the_plan_behind_the_next() -> None:
    """The plan behind an iteration in flight comes late: two results, one after the other."""
    world = world_of(Turns(3, 1, 0), Wrong(4), pipeline_depth=1, report_s=0.02)
    for id in range(1, 4):
        world.submit(id, prompt_of(5 + id, id), max_tokens=25, seed=id)
    world.run()
    for id in range(1, 4):
        assert world.delivered[id] == expected(prompt_of(5 + id, id), 25, id)
    world.check_idle()


@pytest.mark.parametrize("depth", [0, 1])
def test_stated_drafts_that_there_are_no_blocks_for(depth: int) -> None:
    """Two requests have all 14 blocks of 4 tokens between them and room for two tokens more each: with three drafts the
    entries would be dropped each time, for ever."""
    world = world_of(Turns(3), Wrong(4), blocks=14, pipeline_depth=depth)
    for id in (1, 2):
        world.submit(id, prompt_of(24, id), max_tokens=16, seed=id)
    world.run()
    for id in (1, 2):
        assert world.delivered[id] == expected(prompt_of(24, id), 16, id)
    assert world.core.replicas[0].dropped == 0
    world.check_idle()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("host_blocks", [0, 8, 200])
@pytest.mark.parametrize("right", [False, True])
def test_swapped_out_with_drafts_in_flight(right: bool, host_blocks: int, depth: int) -> None:
    """The victim's KV goes to the host before it is known what of it are tokens that stand."""
    swapped = 0
    for seed in range(4):
        worker = FakeWorker(4) if right else Wrong(4)
        world = world_of(
            Turns(3), worker, blocks=20, host_blocks=host_blocks, pipeline_depth=depth,
            preemption="swap",
        )  # fmt: skip
        for id in range(1, 7):
            world.submit(id, prompt_of(8, seed + id), max_tokens=30, seed=seed)
        world.run()
        for id in range(1, 7):
            assert world.delivered[id] == expected(prompt_of(8, seed + id), 30, seed)
        world.check_idle()
        swapped += world.core.replicas[0].moves.swapped_in
    assert swapped > 3 or host_blocks == 0


def test_drafts_in_flight_are_no_tokens_yet() -> None:
    """The deadline of the next token goes by those that are sure: else a decode looks ahead of its pace."""
    scene = Scene(Sarathi())
    slot = np.array([scene.running(20, 20)])
    before = next_token_due_s(scene.table, slot, 0.4)
    scene.table.plan(slot, np.array([1]), 0.1, np.array([3]))
    assert scene.table.generated(slot).tolist() == [2]
    assert next_token_due_s(scene.table, slot, 0.4) == pytest.approx(before + 0.2)
    scene.table.settle(int(slot[0]), 24, 3, 2)
    assert (scene.table.length[slot], scene.table.computed[slot]) == (23, 22)
    assert scene.table.generated(slot).tolist() == [3]
    scene.table.plan(slot, np.array([1]), 0.2, np.array([2]))
    scene.table.roll_back(int(slot[0]), 3, 3, 2)
    assert scene.table.generated(slot).tolist() == [3]
