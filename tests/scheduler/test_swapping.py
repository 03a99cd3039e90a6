"""KV of preempted requests goes to the host and comes back, under every policy, at any moment of a takeover."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from msgspec.msgpack import decode, encode
from random_load import finish, prompt_of, submit_some, upset
from recorded_world import RecordedWorld, recording_to
from scene import Scene, request
from world import POLICIES, World, expected

from accelgen.proto.messages import KvReport, Objective, Plan, Reason
from accelgen.proto.recording import read_recording
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.decision import BadDecision, check
from accelgen.scheduler.moves import Moves
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, View, load_policy
from accelgen.scheduler.replay import replay
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.table import MOVING, RUNNING, WAITING, RequestTable

PREEMPTING = [policy for policy in POLICIES if policy != "orca"]  # it reserves


def swapping(policy: str, host_blocks: int, **config: object) -> World:
    """Memory is given on demand, so that requests have to give way."""
    config = {"memory": "on-demand", "preemption": "swap", **config}
    return World(policy, host_blocks=host_blocks, **config)  # type: ignore[arg-type]


# --- the table -------------------------------------------------------------------------------------------------------


def table_with(*computed: int) -> RequestTable:
    """Running requests of 20 prompt tokens in blocks of 4, so many of them computed; slots in that order."""
    table = RequestTable(4)
    for id, tokens in enumerate(computed, 1):
        slot = table.add(request(id, 20, Objective()), 0.0)
        table.enqueue(slot, float(id))
        table.start(slot)
        table.plan(np.array([slot]), np.array([tokens]), 0.0)
    return table


def test_out_and_back_in_the_table() -> None:
    table = table_with(9)
    slot = table.slot_of[1]
    table.go_out(slot)
    assert table.state[slot] == MOVING and table.blocks[slot] == 3
    assert not len(table.running) and not table.waiting and table.waiting_tokens == 0
    table.went_out(slot, 5.0)
    assert table.state[slot] == WAITING and table.num_away == 1 and table.waiting_tokens == 11
    assert (table.computed[slot], table.away[slot], table.blocks[slot]) == (9, 9, 0)
    assert table.block_demand(np.array([slot]), np.array([4])).tolist() == [4]
    table.come_back(slot)
    assert table.state[slot] == MOVING and table.blocks[slot] == 3 and table.seated == 1
    assert table.returning.tolist() == [slot] and table.num_away == 0
    table.stayed(slot, 5.0)
    assert table.state[slot] == WAITING and table.away[slot] == 9 and not table.seated
    table.come_back(slot)
    table.came_back(slot)
    assert table.state[slot] == RUNNING and table.running.tolist() == [slot]
    table.go_out(slot)
    table.went_out(slot, 5.0, kept=False)
    assert table.computed[slot] == table.num_away == 0 and table.waiting_tokens == 20


@pytest.mark.parametrize("moment", ["out", "away", "back"])
def test_it_ends_at_any_moment(moment: str) -> None:
    table = table_with(9)
    slot = table.slot_of[1]
    table.go_out(slot)
    if moment != "out":
        table.went_out(slot, 5.0)
    if moment == "back":
        table.come_back(slot)
    table.remove(slot)
    assert table.num_away == table.seated == table.waiting_tokens == len(table) == 0
    assert table.add(request(2, 3, Objective()), 0.0) == slot and table.away[slot] == 0


# --- what is within reach --------------------------------------------------------------------------------------------


def test_entries_wait_for_blocks_that_leave() -> None:
    """Three requests of 2, 2 and 3 blocks and no block free. The first goes out; the others need one each, then."""
    scene = Scene(Sarathi())
    table = scene.table = table_with(8, 8, 12)
    first, second, third = (table.slot_of[id] for id in (1, 2, 3))
    decision = Decision([second, third], [1, 1], [first])
    entries = check(decision, table, "test")
    moves = Moves(swaps=True)
    found = moves.reach(decision, entries, table, 0, scene.limits)
    assert (found.out, found.drop, found.back) == ([first], [], [])
    assert found.entries.slots.tolist() == []
    assert moves.reach(decision, entries, table, 1, scene.limits).entries.slots.tolist() == [second]
    moves.out[1] = 2
    moves.finish(1, table, float)
    assert (moves.swapped_out, moves.freed) == (1, 2)
    both = moves.reach(decision, entries, table, 0, scene.limits)
    assert both.entries is entries
    assert moves.take_done() == [1] and not moves.pending and moves.freed == 0
    dropped = Moves(swaps=False).reach(decision, entries, table, 0, scene.limits)
    assert (dropped.out, dropped.drop) == ([], [first]) and dropped.entries is entries
    decision.swap = []  # whatever the server does with the others
    assert moves.reach(decision, entries, table, 0, scene.limits).drop == [first]


def test_what_starts_while_away_comes_back_first() -> None:
    scene = Scene(Sarathi(), seats=2)
    table = scene.table = table_with(8, 9, 12)
    slots = [table.slot_of[id] for id in (1, 2, 3)]
    for slot in slots[:2]:
        table.go_out(slot)
        table.went_out(slot, 1.0)
    decision = Decision([slots[2], slots[0], slots[1]], [1, 5, 5], [])
    entries = check(decision, table, "test")
    moves = Moves(swaps=True)
    for free, back in ((9, [slots[0]]), (2, []), (3, [slots[0]])):  # one seat; 1 + 2 blocks
        found = moves.reach(decision, entries, table, free, scene.limits)
        assert found.back == back and found.entries.slots.tolist() == [slots[2]]
    embedded = Decision([slots[0]], [5], [], embed={slots[0]: slots[2]})
    table.blocks[slots[2]] = 5  # uses 3
    found = moves.reach(embedded, check(embedded, table, "test"), table, 0, scene.limits)
    assert found.back == [slots[0]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"swap": [1]}, "swaps a request that it does not preempt"),
        ({"allocate": {2: 3}}, "allocates blocks for a request that does not run"),
        ({"allocate": {0: 3}}, "allocates blocks for a request that does not run"),
        ({"allocate": {1: -1}}, "allocates fewer than 0 blocks"),
        ({"embed": {2: 1}}, "embeds a request that does not run"),
        ({"embed": {1: 0}}, "embeds a request in one that does not run"),
        ({"embed": {1: 1}}, "embeds a request in itself"),
    ],
)
def test_a_decision_that_cannot_be(change: dict[str, Any], says: str) -> None:
    """Slot 0 is preempted, 1 runs, 2 waits."""
    table = table_with(8, 8, 8)
    by_id = {0: table.slot_of[1], 1: table.slot_of[2], 2: table.slot_of[3]}
    table.computed[by_id[2]] = table.blocks[by_id[2]] = 0
    table.enqueue(by_id[2], 1.0)
    decision = Decision([by_id[1]], [1], [by_id[0]])
    for name, value in change.items():
        if isinstance(value, list):
            value = [by_id[slot] for slot in value]
        elif name == "embed":
            value = {by_id[guest]: by_id[host] for guest, host in value.items()}
        else:
            value = {by_id[slot]: blocks for slot, blocks in value.items()}
        setattr(decision, name, value)
    with pytest.raises(BadDecision, match=says):
        check(decision, table, "test")


# --- whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", PREEMPTING)
def test_nothing_is_computed_twice(policy: str, depth: int) -> None:
    world = swapping(policy, 1000, blocks=20, block_size=4, pipeline_depth=depth)
    for id in range(1, 7):
        world.submit(id, prompt_of(8, id), max_tokens=30)
    world.run()
    for id in range(1, 7):
        assert world.delivered[id] == expected(prompt_of(8, id), 30)
    replica, worker = world.core.replicas[0], world.workers[0]
    assert replica.preemptions > 0 and worker.copied_out > 0
    assert not any(plan.preempt for plan in world.plans)
    assert worker.processed <= 6 * (8 + 29)  # less what they share
    assert replica.moves.swapped_out == replica.moves.swapped_in == replica.preemptions
    world.check_idle()


@pytest.mark.parametrize("host_blocks", [0, 8])
@pytest.mark.parametrize("policy", PREEMPTING)
def test_a_host_that_is_full(policy: str, host_blocks: int) -> None:
    world = swapping(policy, host_blocks, blocks=20, block_size=4)
    for id in range(1, 7):
        world.submit(id, prompt_of(8, id), max_tokens=30)
    world.run()
    for id in range(1, 7):
        assert world.delivered[id] == expected(prompt_of(8, id), 30)
    moves = world.core.replicas[0].moves
    assert moves.swapped_out == moves.swapped_in and (host_blocks or moves.unswapped)
    world.check_idle()


def test_requests_fail_while_others_move() -> None:
    """At any moment from the first copy on, also in the iteration that their own is planned behind."""
    failed = 0
    for seed in range(40):
        world = swapping("sarathi", 100, blocks=16, block_size=4)
        for id in range(1, 5):
            world.submit(id, prompt_of(12, 1), max_tokens=20, at_s=0.001 * id)
        world.run(until_s=0.02 + 0.002 * seed)
        world.workers[0].fails = {1 + seed % 4}
        world.run()
        failed += list(world.ended.values()).count(Reason.FAILED)
        for id in range(1, 5):
            if world.ended[id] is Reason.LENGTH:
                assert world.delivered[id] == expected(prompt_of(12, 1), 20)
        world.check_idle()
    assert failed > 10


@settings(deadline=None, max_examples=120, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@example(seed=234, policy="fastserve", depth=0, blocks=14, host_blocks=15, replicas=1)
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 40]),
    host_blocks=st.sampled_from([0, 6, 15, 200]),
    replicas=st.sampled_from([1, 2]),
)
def test_any_moment(
    seed: int, policy: str, depth: int, blocks: int, host_blocks: int, replicas: int
) -> None:
    """Takeovers at random moments of random loads, with siblings, aborts and memory pressure."""
    draw = random.Random(seed)
    world = swapping(
        policy, host_blocks, blocks=blocks, replicas=replicas, pipeline_depth=depth, max_num_seqs=8
    )
    asked = submit_some(world, draw, 24)
    upset(world, draw, draw.randrange(3))
    finish(world, asked)


def test_what_is_away_is_not_computed_again_after_a_takeover() -> None:
    for tenth_s in range(1, 8):
        world = swapping("sarathi", 1000, blocks=20, block_size=4)
        for id in range(1, 7):
            world.submit(id, prompt_of(8, id), max_tokens=30)
        world.crash(tenth_s / 10, kv=bool(tenth_s % 2))
        world.run()
        for id in range(1, 7):
            assert world.delivered[id] == expected(prompt_of(8, id), 30)
        assert world.workers[0].copied_out > 0
        # Besides what the scheduler had in flight: who ran may have to give way before he runs again.
        assert world.workers[0].processed <= 6 * (8 + 29) + 3 * (8 + 29)
        world.check_idle()


@pytest.mark.parametrize("policy", POLICIES)
def test_a_replay_decides_the_same(policy: str, tmp_path: Path) -> None:
    path, moved = tmp_path / "dump", 0
    for seed in range(6):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld(
                policy, blocks=draw.choice([18, 24]), host_blocks=draw.choice([8, 200]),
                pipeline_depth=draw.randrange(2), max_num_seqs=8, preemption="swap",
                memory="on-demand",
            )  # fmt: skip
            for id in range(1, draw.randrange(4, 20)):
                prompt = prompt_of(draw.randrange(1, 30), id)
                world.submit(id, prompt, draw.randrange(1, 20), at_s=draw.random() * 0.4)
            world.run()
        outcome = replay(read_recording(path), load_policy(policy, {}))
        assert not outcome.skipped and all(one.same for one in outcome.comparisons), seed
        assert sum(one.step >= 0 for one in outcome.comparisons) == len(world.plans)
        moved += sum(len(plan.swap_out) + len(plan.swap_in) for plan in world.plans)
    assert moved > (1 if policy == "slos-serve" else 4) or policy == "orca"


# --- allocations and embedding by a policy ---------------------------------------------------------------------------


class Generous(Sarathi):
    """Gives blocks ahead of need, lets newcomers live in others, swaps or drops: by dice. Nothing of it is sensible."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.draw = random.Random(seed)

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        decision, state = super().plan(view, state, start_s)
        draw, table = self.draw, view.table
        decision.swap = [slot for slot in decision.preempt if draw.random() < 0.6]
        stays = [slot for slot in table.running.tolist() if slot not in decision.preempt]
        for slot in {*stays, *decision.slots}:
            if draw.random() < 0.3:
                decision.allocate[slot] = draw.randrange(8)
        for slot in decision.slots:
            hosts = [other for other in stays if other != slot]
            if hosts and draw.random() < 0.3:
                decision.embed[slot] = draw.choice(hosts)
        return decision, state


def test_blocks_ahead_of_need_and_guests() -> None:
    lent = 0
    for seed in range(40):
        draw = random.Random(seed)
        depth = draw.randrange(2)
        world = swapping(
            "sarathi", draw.choice([0, 10, 100]), blocks=draw.choice([16, 24]), pipeline_depth=depth
        )
        world.core = SchedulerCore(world.config, Generous(seed), world.specs)
        prompts = {
            id: prompt_of(draw.randrange(1, 25), id) for id in range(1, draw.randrange(3, 9))
        }
        for id, prompt in prompts.items():
            world.submit(id, prompt, max_tokens=20, at_s=draw.random() * 0.2)
        world.run()
        for id, prompt in prompts.items():
            assert world.delivered[id] == expected(prompt, 20), seed
        lent += world.kvs[0].tables.loans.lent
        world.check_idle()
    assert lent > 40


class Greedy(Sarathi):
    """Asks for `blocks` for everybody, in every plan."""

    blocks: Any = 0

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        decision, state = super().plan(view, state, start_s)
        decision.allocate = dict.fromkeys(decision.slots, self.blocks)
        return decision, state


@pytest.mark.parametrize("blocks", [2**31, 2**70, np.int64(2**40), float("inf")])
def test_nobody_is_given_more_than_there_is(blocks: Any) -> None:
    """A number that the wire does not carry would lead to a takeover, and then again."""
    world = World("sarathi", blocks=8, block_size=4)
    policy = Greedy()
    policy.blocks = blocks
    world.core = SchedulerCore(world.config, policy, world.specs)
    world.submit(1, prompt_of(9, 1), max_tokens=4)
    world.run()
    assert world.plans[0].allocate_blocks == [8]
    for plan in world.plans:
        assert decode(encode(plan), type=Plan) == plan
    assert world.delivered[1] == expected(prompt_of(9, 1), 4)


@pytest.mark.parametrize(("blocks", "held"), [(3, 6), (1, 4), (4, 8), (7, 8), (100, 8)])
def test_allocations_that_change_nothing_keep_nothing_going(blocks: int, held: int) -> None:
    """A policy that repeats them while nothing can run must not have plans go round for ever: neither those that are
    carried out, nor less than is used, more than there is, or more than is free."""

    class Idle(Sarathi):
        def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
            running = view.table.running.tolist()
            return Decision([], [], [], allocate=dict.fromkeys(running, blocks)), state

    scene = World("sarathi", blocks=8, block_size=4)
    for id in (1, 2):
        scene.submit(id, prompt_of(5, id), max_tokens=4)
    scene.run(until_s=0.004)
    replica = scene.core.replicas[0]
    replica.policy = Idle()
    scene.run(until_s=1.0)
    assert len(scene.plans) < 10
    assert sum(replica.table.blocks[replica.table.running]) == held


def test_only_what_a_copy_frees_is_counted() -> None:
    """8 blocks held and 3 used: 5 come back at once, and of the 3 the KV manager says how many are nobody else's."""
    world = swapping("sarathi", 100, blocks=16, block_size=4)
    world.submit(1, prompt_of(9, 1), max_tokens=4)
    world.run(until_s=0.003)
    replica = world.core.replicas[0]
    slot = replica.table.slot_of[1]
    replica.table.blocks[slot] = 8
    replica.moves.send_out(slot, replica.table)
    assert replica.moves.out == {1: 3}
    told = KvReport(9, 2, 0, 0, [], [], [], [], swapped_out=[1, 7], freeing=[1, 4])
    replica.on_report(told, 0.0)
    assert replica.moves.out == {1: 1}


def test_a_start_that_a_lookup_has_overtaken() -> None:
    """The KV manager has pinned a prefix, and the scheduler begins at 0, not having heard of it: the entry is refused.
    Then it must hear of it, or the two never agree."""
    world = World("sarathi", blocks=16, block_size=4)
    world.submit(1, prompt_of(20, 1), max_tokens=3)
    world.run()
    world.submit(2, prompt_of(20, 1), max_tokens=3, seed=0)
    take_up = Replica.take_up

    def forgetful(self: Replica, slot: int, now_s: float) -> None:
        self.table.hit(slot, 0)
        take_up(self, slot, now_s)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Replica, "take_up", forgetful)
        world.run(until_s=5.0)
    assert world.core.replicas[0].dropped == 1
    assert world.delivered[2] == world.delivered[1]
    world.check_idle()


def test_the_table_hears_of_other_numbers_of_blocks() -> None:
    world = World("sarathi", blocks=8, block_size=4)
    world.submit(1, prompt_of(9, 1), max_tokens=4)
    world.run(until_s=0.003)
    replica = world.core.replicas[0]
    slot = replica.table.slot_of[1]
    assert replica.table.blocks[slot] == 3
    replica.on_report(KvReport(-1, 2, 0, 0, [], [], [], [], short_ids=[1], short_blocks=[6]), 0.0)
    assert replica.table.blocks[slot] == 6
    assert replica.table.block_demand(np.array([slot]), np.array([12])).tolist() == [0]
