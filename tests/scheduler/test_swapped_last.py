"""A request is sent out to the host while its last token is in flight: it ends, and its copy goes on without it."""

from __future__ import annotations

import random
from typing import Any

import pytest
from world import World, expected

from accelgen.proto.messages import Reason
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, View

PROMPT, ANSWER, HOST_BLOCKS = [5, 6, 7, 8, 9, 10, 11, 12, 13], 5, 40


class SendsOut(Sarathi):
    """Preempts request 1 once the token that its answer ends with is in flight."""

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        decision, state = super().plan(view, state, start_s)
        slot = view.table.slot_of.get(1)
        is_last = slot is not None and view.table.length[slot] == len(PROMPT) + ANSWER
        if is_last and slot in view.table.running:
            if slot in decision.slots:
                at = decision.slots.index(slot)
                del decision.slots[at], decision.counts[at]
            decision.preempt = [slot]
        return decision, state


def swapping(policy: str, **config: Any) -> World:
    return World(
        policy,
        host_blocks=HOST_BLOCKS,
        block_size=4,
        memory="on-demand",
        preemption="swap",
        **config,
    )


@pytest.mark.parametrize("others", [0, 1, 3])
@pytest.mark.parametrize("end", [Reason.LENGTH, Reason.STOP])
def test_it_ends_and_all_is_given_back(end: Reason, others: int) -> None:
    """Also with a stop token, of which nobody knows yet when it is sent out."""
    world = swapping("sarathi", pipeline_depth=1)
    world.core = SchedulerCore(world.config, SendsOut(), world.specs)
    answer = expected(PROMPT, ANSWER)
    stop, most = ([answer[-1]], 50) if end is Reason.STOP else ([], ANSWER)
    assert answer[-1] not in answer[:-1]
    world.submit(1, PROMPT, most, stop=stop)
    for id in range(2, 2 + others):
        world.submit(id, [id] * 7, 30)
    moves, kv = world.core.replicas[0].moves, world.kvs[0]
    until_s = 0.0
    while 1 not in world.ended:
        world.run(until_s=(until_s := until_s + 0.0005))
        assert kv.check() == []
    sent = next(plan for plan in world.plans if plan.swap_out)
    assert sent.swap_out == [1] and 1 in world.plans[sent.step - 1].ids and 1 not in sent.ids
    assert world.delivered[1] == answer and world.ended[1] is end
    assert moves.out.keys() == {1} and not moves.swapped_out  # the copy is under way
    blocks = -(-(len(PROMPT) + ANSWER - 1) // 4)
    assert kv.pool.leaving == kv.tables.host.used == blocks
    world.run()
    assert (moves.swapped_out, moves.swapped_in, moves.unswapped) == (1, 0, 0)
    assert (kv.counters["swapped_out"], kv.counters["swapped_in"]) == (blocks, 0)
    assert kv.tables.host.free == HOST_BLOCKS and kv.pool.leaving == 0
    assert kv.pool.free + kv.pool.cached == kv.pool.num_blocks
    assert all(world.delivered[id] == expected([id] * 7, 30) for id in range(2, 2 + others))
    world.check_idle()


@pytest.mark.parametrize("policy", ["cacheopt", "edf", "sarathi", "slidingserve", "srpf", "vllm"])
def test_nobody_else_stays_away(policy: str) -> None:
    """Loads with answers of all lengths: as many more have gone out than come back as went with their last token in
    flight, under the policy's own choice of victims (the other policies choose among those who have work)."""
    ended = 0
    for seed in range(12):
        draw = random.Random(seed)
        world = swapping(policy, blocks=20, pipeline_depth=1)
        asked = {id: ([id] * draw.randrange(4, 12), draw.randrange(4, 30)) for id in range(1, 9)}
        for id, (prompt, tokens) in asked.items():
            world.submit(id, prompt, tokens, at_s=0.002 * id)
        world.run()
        away: dict[int, int] = {}  # id -> step of the plan that sent it out
        for plan in world.plans:
            away |= dict.fromkeys(plan.swap_out, plan.step)
            for id in plan.swap_in:
                del away[id]
        moves = world.core.replicas[0].moves
        assert not moves.unswapped and moves.swapped_out - moves.swapped_in == len(away), seed
        for id, step in away.items():
            assert id in world.plans[step - 1].ids
            assert all(id not in plan.ids for plan in world.plans[step:])
        assert {id: world.delivered[id] for id in asked} == {
            id: expected(prompt, tokens) for id, (prompt, tokens) in asked.items()
        }
        ended += len(away)
        world.check_idle()
    assert ended
