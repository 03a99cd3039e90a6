"""CacheOPT: its rules with worked numbers through the real scheduler and KV core, and random loads under any policy.

Published examples (a host of 160 tokens, arXiv 2503.13773, section 3.3.1) are run with blocks of 16 tokens.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from time import process_time
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, event, example, given, settings
from hypothesis import strategies as st
from memory_world import MemoryWorld
from msgspec import structs
from random_load import finish
from recorded_world import RecordedWorld, recording_to
from scene import Scene
from world import POLICIES, expected

from accelgen.proto.messages import Objective, Reason, SwapSample
from accelgen.proto.recording import read_recording
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.decision import check
from accelgen.scheduler.memory.cacheopt import CacheOptMemory, Remembered
from accelgen.scheduler.memory.crossover import Copies, Line, fit_copies
from accelgen.scheduler.memory.growth import Growth
from accelgen.scheduler.memory.lending import Stay, lend_to_running
from accelgen.scheduler.policies.cacheopt import CacheOpt
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, load_policy
from accelgen.scheduler.replay import replay
from accelgen.scheduler.snapshot import Experience
from accelgen.scheduler.speculation import Speculation

PARTS: list[dict[str, Any]] = [
    {},
    {"pad": False},
    {"embed": False},
    {"growth": False},
    {"reserve": 0},
    {"victims": False},
    {"crossover": False},
    {"pad": False, "embed": False, "growth": False, "reserve": 0, "victims": False},
]
EASY = Objective(1000.0, 100.0)


def prompt_of(length: int, seed: int) -> list[int]:
    draw = random.Random(seed)
    return [draw.randrange(1, 97) for _ in range(length)]


def world_of(blocks: int, policy: str = "cacheopt", **params: Any) -> MemoryWorld:
    """Blocks of 16 tokens; without reserve and growth unless asked for."""
    given = {"reserve": 0, "growth": False, **params}
    return MemoryWorld(policy, blocks=blocks, block_size=16, memory="cacheopt", memory_params=given)


def run_until(world: MemoryWorld, id: int, tokens: int) -> None:
    """Until request `id` has so many."""
    while len(world.delivered[id]) < tokens:
        world.run(until_s=world.now_s + 0.001)
        world.now_s += 0.001
        assert world.now_s < 100


def starts(world: MemoryWorld, id: int) -> int:
    """The plan in which it starts, by position."""
    return next(at for at, plan in enumerate(world.plans) if id in plan.ids)


# --- allocation and embedding ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [False, True])
def test_a_guest_in_a_full_cache(growth: bool) -> None:
    """10 blocks, all of them the host's: prompt 16, 16 generated, predicted 144 in all. A candidate of 16 and 16
    tokens: 160 - (32 + 16) - 32 = 80 are left, more than the buffer."""
    world = world_of(10, growth=growth)
    world.tell({144: 144, 16: 16})
    world.submit(1, prompt_of(16, 1), max_tokens=144, objective=EASY)
    run_until(world, 1, 16)
    assert world.plans[0].allocate_ids == [1] and world.plans[0].allocate_blocks == [10]
    assert world.core.replicas[0].free_blocks == 0
    world.submit(2, prompt_of(16, 2), max_tokens=16, objective=EASY)
    world.run()
    plan = world.plans[starts(world, 2)]
    assert (plan.embed_guests, plan.embed_hosts) == ([2], [1])
    assert plan.allocate_blocks[plan.allocate_ids.index(2)] == 2
    loans = world.kvs[0].tables.loans
    assert (loans.lent, loans.returned) == (2, 2) and world.core.replicas[0].preemptions == 0
    for id, tokens in ((1, 144), (2, 16)):
        assert world.delivered[id] == expected(prompt_of(16, id), tokens)
    assert world.token_times_s[2][-1] < world.token_times_s[1][-1]
    world.check_idle()


def test_one_new_guest_per_host_and_plan() -> None:
    """Two candidates could live in it side by side; the second one moves in an iteration later."""
    world = world_of(20)
    world.tell({304: 304, 16: 16})
    world.submit(1, prompt_of(16, 1), max_tokens=304, objective=EASY)
    run_until(world, 1, 16)
    assert world.core.replicas[0].free_blocks == 0
    for id in (2, 3):
        world.submit(id, prompt_of(16, id), max_tokens=16, objective=EASY)
    world.run()
    assert starts(world, 2) + 1 == starts(world, 3)
    for plan in world.plans:
        assert len(set(plan.embed_hosts)) == len(plan.embed_hosts)
    assert world.kvs[0].tables.loans.guests == 2
    for id in (2, 3):
        assert world.delivered[id] == expected(prompt_of(16, id), 16)
    world.check_idle()


def test_without_embedding_it_waits() -> None:
    world = world_of(10, embed=False)
    world.tell({144: 144, 16: 16})
    world.submit(1, prompt_of(16, 1), max_tokens=144, objective=EASY)
    run_until(world, 1, 16)
    world.submit(2, prompt_of(16, 2), max_tokens=16, objective=EASY)
    world.run()
    assert world.token_times_s[2][0] > world.token_times_s[1][-1]
    assert world.kvs[0].tables.loans.lent == 0
    world.check_idle()


@pytest.mark.parametrize("memory", ["cacheopt", "on-demand"])
def test_two_hosts_without_room(memory: str) -> None:
    """Both have 160 tokens, and 32 and 144 in use; one block of 21 is free. For a prompt of 96 and 32 tokens of output
    that is not enough: 160 - (32 + 32) - 128 < 0. It waits until one of them ends. On demand it would start at once."""
    params = {"reserve": 0, "growth": False} if memory == "cacheopt" else {}
    world = MemoryWorld("cacheopt", blocks=21, block_size=16, memory=memory, memory_params=params)
    world.tell({144: 144, 32: 32, 31: 31})
    world.submit(1, prompt_of(16, 1), max_tokens=144, objective=EASY)
    world.submit(2, prompt_of(128, 2), max_tokens=32, objective=EASY)
    run_until(world, 2, 16)
    table = world.core.replicas[0].table
    if memory == "cacheopt":
        assert table.blocks[[table.slot_of[1], table.slot_of[2]]].tolist() == [10, 10]
        assert world.core.replicas[0].free_blocks == 1
    world.submit(3, prompt_of(96, 3), max_tokens=31, objective=EASY)
    world.run()
    waits = world.token_times_s[3][0] > world.token_times_s[2][-1]
    assert waits is (memory == "cacheopt") and world.kvs[0].tables.loans.lent == 0
    for id, (length, tokens) in {1: (16, 144), 2: (128, 32), 3: (96, 31)}.items():
        assert world.delivered[id] == expected(prompt_of(length, id), tokens)
    world.check_idle()


def crowd(draw: random.Random, count: int) -> tuple[Scene, dict[int, Stay]]:
    """Running decodes: some have used up their blocks, some have more than they use, and some live in others."""
    scene = Scene(Sarathi())
    slots = [scene.running(tokens, tokens) for tokens in draw.choices(range(15, 36), k=count)]
    table = scene.table
    table.blocks[slots] += np.array(draw.choices([0, 0, 1, 3], k=count))
    hosts, guests = slots[: count // 2], draw.sample(slots[count // 2 :], count // 4)
    return scene, {
        int(table.ids[guest]): Stay(int(table.ids[draw.choice(hosts)]), 99) for guest in guests
    }


@given(seed=st.integers(0, 10**6), count=st.integers(1, 24), free=st.integers(0, 6))
def test_running_requests_live_in_the_tightest_host(seed: int, count: int, free: int) -> None:
    """Against the rule, host by host."""
    scene, stays = crowd(random.Random(seed), count)
    table, rule = scene.table, Growth()
    running, ids = table.running.tolist(), table.ids.tolist()
    lacks = {
        slot: max(0, -(-int(table.length[slot]) // 16) - int(table.blocks[slot]))
        for slot in running
    }
    spare = {
        slot: max(0, int(table.blocks[slot]) - -(-int(table.length[slot] + 2) // 16))
        for slot in running
    }
    lending = {stay.host for stay in stays.values()}
    right, left = {}, free
    for slot in running if sum(lacks.values()) > free else []:
        if lacks[slot] <= left:
            left -= lacks[slot]
            continue
        own = [table.slot_of[stays[ids[slot]].host]] if ids[slot] in stays else running
        if ids[slot] in lending:
            continue
        able = [host for host in own if ids[host] not in stays and spare[host] >= lacks[slot]]
        if able:
            right[slot] = min(able, key=lambda host: (spare[host], ids[host]))
            spare[right[slot]] -= lacks[slot]
            lending.add(ids[right[slot]])
    lend_to_running(table, stays, rule, free)
    assert table.lenders == right
    assert {slot: int(table.offered[slot]) for slot in right} == {
        slot: lacks[slot] for slot in right
    }


def test_a_crowd_of_running_requests_is_looked_through_once() -> None:
    """All have used up their blocks at once: eight times as many must not take 64 times as long."""

    def taken_s(count: int) -> float:
        scene, _ = crowd(random.Random(1), count)
        scene.table.length[scene.table.running] = 33
        scene.table.computed[scene.table.running] = 32
        scene.table.blocks[scene.table.running] = [2, 6] * (count // 2)
        times = []
        for _ in range(5):
            begin_s = process_time()
            lend_to_running(scene.table, {}, Growth(), 0)
            times.append(process_time() - begin_s)
            assert len(scene.table.lenders) == count // 2
            scene.table.clear_terms()
        return min(times)

    assert taken_s(1600) < 24 * taken_s(200)


def test_the_pad_is_part_of_what_is_allocated() -> None:
    """Predicted 40, range of errors 30: 40 + 30 * 1.2239 = 76.7 at a confidence of 0.95."""
    for pad, blocks in ((True, 6), (False, 4)):  # 16 + 77 tokens, 16 + 40
        world = world_of(20, pad=pad, beta=0.0)
        world.tell({200: 40}, spread=30)
        world.submit(1, prompt_of(16, 1), max_tokens=200, objective=EASY)
        run_until(world, 1, 1)
        assert world.plans[0].allocate_blocks == [blocks]
        world.run()
        world.check_idle()


def test_more_arrivals_less_pad() -> None:
    """beta 1 s: at 100 arrivals per second the confidence is below 0.02, and of the range of errors 0.1 is a lot."""
    world = world_of(800, beta=1.0, embed=False)
    world.tell({200: 40}, spread=200)
    for id in range(1, 101):
        world.submit(id, prompt_of(16, id), max_tokens=200, objective=EASY, at_s=id / 100)
    given: dict[int, int] = {}
    world.run(until_s=1.1)
    for plan in world.plans:
        for id, blocks in zip(plan.allocate_ids, plan.allocate_blocks, strict=True):
            given.setdefault(id, blocks)
    assert (
        given[1] == 14 and given[100] == 5
    )  # all 215 tokens that it can have; 16 + 40 + 200 * 0.07


def test_a_guest_that_outlives_its_prediction() -> None:
    """It has 2 blocks of its host and needs more, while nothing is free: those of its host come next, and when there
    is nothing any more it is the first to go."""
    for age, guest_tokens, preempted in ((16, 40, False), (60, 100, True)):
        world = world_of(10)
        world.tell({144: 144, guest_tokens: 16})
        world.submit(1, prompt_of(16, 1), max_tokens=144, objective=EASY)
        run_until(world, 1, age)
        world.submit(2, prompt_of(16, 2), max_tokens=guest_tokens, objective=EASY)
        world.run()
        for id, tokens in ((1, 144), (2, guest_tokens)):
            assert world.delivered[id] == expected(prompt_of(16, id), tokens)
        assert world.kvs[0].tables.loans.lent >= 3
        victims = Counter(id for plan in world.plans for id in plan.preempt)
        assert bool(victims) is preempted and set(victims) <= {2}
        world.check_idle()


def with_guest(tokens: int) -> MemoryWorld:
    """All ten blocks are a host's, which does not use them yet; its guest has so many `tokens`."""
    world = world_of(10)
    world.tell({144: 144, 16: 16})
    world.submit(1, prompt_of(16, 1), max_tokens=144, objective=EASY)
    run_until(world, 1, 16)
    world.submit(2, prompt_of(16, 2), max_tokens=16, objective=EASY)
    run_until(world, 2, tokens)
    return world


def test_nobody_is_a_guest_any_more_after_a_takeover() -> None:
    """The KV manager has forgotten who lives inside whom: what the guest holds is its own, and would come free if it
    gave way."""
    world = with_guest(3)
    before = world.core.replicas[0].memory_state
    assert before.guests.keys() == {2}
    known = Experience()
    known.take_from(world.core)
    heir = SchedulerCore(world.config, load_policy("cacheopt", {}), world.specs)
    known.give_to(heir)
    kv, worker = world.kvs[0], world.workers[0]
    assert kv.on_inventory(worker.inventory()) == [] and not kv.tables.loans.any
    heir.inherit(kv.on_activate(), 0)
    assert heir.replicas[0].memory_state == structs.replace(before, guests={})


# --- reserve, growth, cuts -------------------------------------------------------------------------------------------


def test_the_reserve_is_for_critical_ones() -> None:
    """24 blocks, of which 3 are reserved (an eighth) and one request has 21. One that has time waits until that ends;
    one that has none starts with its prompt and B, 48 tokens, although it came later."""
    world = world_of(24, reserve=64, embed=False)
    world.tell({320: 320, 100: 100})
    world.submit(1, prompt_of(16, 1), max_tokens=320, objective=EASY)
    run_until(world, 1, 4)
    assert world.core.replicas[0].free_blocks == 3
    world.submit(2, prompt_of(16, 2), max_tokens=100, objective=EASY)
    run_until(world, 1, 8)
    world.submit(3, prompt_of(16, 3), max_tokens=100, objective=Objective(0.012, 100.0))
    run_until(world, 3, 1)
    plan = world.plans[starts(world, 3)]
    assert plan.allocate_blocks[plan.allocate_ids.index(3)] == 3
    assert not world.delivered[2]
    world.run()
    for id, tokens in ((1, 320), (2, 100), (3, 100)):
        assert world.delivered[id] == expected(prompt_of(16, id), tokens)
    world.check_idle()


def test_what_others_have_in_the_cache_is_promised_once() -> None:
    """10 blocks, 8 of them pinned for the last one that waits, which has time. Nothing runs, so that the first critical
    one may have them all; the second one, which needs 8, too, has to wait."""
    scene = Scene(CacheOpt(), blocks=10)
    slots = [scene.waiting(112, ttft_s=0.05 * i, max_tokens=2) for i in (1, 2)]
    last = scene.waiting(170, ttft_s=1000.0)
    scene.table.hit(last, 128)
    view = replace(scene.view, pinned_blocks=8)
    frame, _ = CacheOptMemory(embed=False).before(view, Remembered(), 0.0)
    decision, _ = scene.policy.plan(frame, scene.state, 0.0)
    assert decision.slots == slots[:1]


def test_unused_tails_are_cut_for_a_critical_one() -> None:
    """All 20 blocks are one request's. Another one has 30 ms for its first token: when it is nearly critical, 4 blocks
    (prompt and B, 64 tokens) are taken from the tail, and nobody is preempted."""
    world = world_of(20, embed=False)
    world.tell({304: 304, 40: 40})
    world.submit(1, prompt_of(16, 1), max_tokens=304, objective=EASY)
    run_until(world, 1, 4)
    assert world.core.replicas[0].free_blocks == 0
    world.submit(2, prompt_of(32, 2), max_tokens=40, objective=Objective(0.03, 100.0))
    run_until(world, 2, 1)
    cut = [plan for plan in world.plans[1:] if plan.allocate_ids == [1]]
    assert [plan.allocate_blocks for plan in cut] == [[16]]
    assert 1 <= starts(world, 2) - world.plans.index(cut[0]) <= 3
    assert world.core.replicas[0].preemptions == 0
    world.run()
    assert world.delivered[1] == expected(prompt_of(16, 1), 304)
    assert world.delivered[2] == expected(prompt_of(32, 2), 40)
    world.check_idle()


def test_a_victim_for_a_critical_one() -> None:
    """Nothing is unused; the one that bears it best gives way, and the other one does not."""
    world = world_of(6, embed=False)
    world.tell({32: 32, 33: 33, 20: 20})
    world.submit(1, prompt_of(15, 1), max_tokens=33, objective=EASY)
    world.submit(2, prompt_of(16, 2), max_tokens=32, objective=Objective(1000.0, 0.5))
    run_until(world, 1, 25)
    assert world.core.replicas[0].free_blocks == 0
    world.submit(3, prompt_of(16, 3), max_tokens=20, objective=Objective(0.03, 100.0))
    world.run()
    victims = [id for plan in world.plans for id in plan.preempt]
    assert victims == [1] and world.token_times_s[3][0] < world.token_times_s[1][-1]
    for id, (length, tokens) in {1: (15, 33), 2: (16, 32), 3: (16, 20)}.items():
        assert world.delivered[id] == expected(prompt_of(length, id), tokens)
    world.check_idle()


def note_needs(world: MemoryWorld) -> list[int]:
    """How many blocks each entry needs, but for the first of a request, beyond those held before its plan."""
    needed: list[int] = []
    held: dict[int, int] = {}

    def note() -> None:
        last, size = world.plans[-1], world.workers[0].block_size
        for id, start, count in zip(last.ids, last.starts, last.counts, strict=True):
            used = -(-(start + count) // size)
            needed.append(used - held.get(id, 0) if start else 0)
        held.update({one.id: len(one.table) for one in world.kvs[0]._requests.values()})

    world.each_plan = note
    return needed


def test_growth_before_exhaustion() -> None:
    """Predicted 8, and 100 come: 2 iterations before each allocation is used up two blocks are asked for. So no decode
    ever needs a block in the plan that it is in."""
    for growth in (True, False):
        world = world_of(60, growth=growth, embed=False, pad=False)
        world.tell({100: 8, 101: 8, 102: 8})
        for id in (1, 2, 3):
            world.submit(id, prompt_of(16, id), max_tokens=99 + id, objective=EASY)
        needed = note_needs(world)
        world.run()
        grown = [plan.allocate_blocks for plan in world.plans if plan.allocate_ids]
        assert (max(needed) <= 0) is growth
        assert len(grown) > 3 if growth else len(grown) <= 3
        world.check_idle()


# --- victims, swap or recompute --------------------------------------------------------------------------------------


def test_who_gives_way_first() -> None:
    """Guests that have outlived their prediction, then the longest TBT objective, then most output left."""
    scene = Scene(Sarathi(), blocks=0)
    hasty = scene.running(16, 16, tpot_s=0.1)
    patient = scene.running(16, 16, tpot_s=1.0, max_tokens=100)
    long = scene.running(16, 16, tpot_s=1.0, max_tokens=300)
    guest = scene.running(16, 16, tpot_s=0.1, at_s=0.5)
    ids = scene.table.ids
    memory = CacheOptMemory()
    view = replace(scene.view, free_blocks=0)

    def order(tokens: int) -> list[int]:
        state = Remembered(guests={int(ids[guest]): Stay(int(ids[hasty]), tokens)})
        frame, _ = memory.before(view, state, 1.0)
        scene.table.clear_terms()
        assert frame.victims is not None
        return frame.victims(frame).tolist()

    assert order(17) == [long, patient, guest, hasty]  # of equals the later one
    assert order(16) == [guest, long, patient, hasty]
    frame, _ = CacheOptMemory(victims=False).before(view, Remembered(), 1.0)
    scene.table.clear_terms()
    assert frame.victims is None


def test_a_policy_sees_all_else_as_it_is() -> None:
    """Free blocks and victims are the memory policy's; also what is known of drafts and of the last iteration stays."""
    scene = Scene(Sarathi(), blocks=100)
    scene.running(16, 16)
    speculation, copies = Speculation(most=4), Copies(Line(0.0, 1e-9), Line(0.0, 1e-9), 4096)
    view = replace(scene.view, host_free=7, copies=copies, speculation=speculation, last={1: 16})
    frame, _ = CacheOptMemory().before(view, Remembered(), 1.0)
    scene.table.clear_terms()
    assert replace(frame, free_blocks=100, victims=None) == view


@pytest.mark.parametrize(
    ("block_s", "crossover", "swaps"),
    [(1e-6, True, True), (10.0, True, False), (10.0, False, True), (None, True, False)],
)
def test_swap_or_recompute(block_s: float | None, crossover: bool, swaps: bool) -> None:
    """By what copies take; without measurements, recompute; without this part, as the server is configured."""
    world = MemoryWorld(
        "sarathi", blocks=20, block_size=4, host_blocks=100, preemption="swap", memory="cacheopt",
        memory_params={"crossover": crossover, "pad": False},
    )  # fmt: skip
    if block_s is not None:
        line = Line(0.0, block_s / 64)
        world.specs[0] = replace(world.specs[0], copies=Copies(line, line, 64))
    world.core = SchedulerCore(world.config, load_policy("sarathi", {}), world.specs)
    world.tell({30: 1})
    for id in range(1, 7):
        world.submit(id, prompt_of(8, id), max_tokens=30)
    world.run()
    dropped = sum(len(plan.preempt) for plan in world.plans)
    out = sum(len(plan.swap_out) for plan in world.plans)
    assert (out > 0, dropped > 0) == (swaps, not swaps)
    for id in range(1, 7):
        assert world.delivered[id] == expected(prompt_of(8, id), 30)
    world.check_idle()


def test_copies_from_measurements() -> None:
    samples = [
        SwapSample(blocks, blocks * 1000, out, (2e-3 if out else 1e-3) + blocks * 1e-4)
        for blocks in (1, 4, 64)
        for out in (True, False)
    ]
    copies = fit_copies(samples)
    assert copies is not None and copies.block_bytes == 1000
    assert copies.out.seconds(10_000) == pytest.approx(3e-3)
    assert copies.back.seconds(10_000) == pytest.approx(2e-3)
    assert fit_copies([]) is None
    assert fit_copies([one for one in samples if one.out]) is None


def test_victims_whose_copy_is_cheaper_are_swapped() -> None:
    """A start-up of 0.1 s each way, and an iteration takes 10 ms + 0.1 ms per token: 2000 tokens take 0.22 s in chunks
    of 512, 100 tokens 0.02 s."""
    scene = Scene(Sarathi(), blocks=1000)
    short, long = scene.running(100, 100), scene.running(2000, 2000)
    line = Line(0.1, 0.0)
    view = replace(scene.view, copies=Copies(line, line, 64), host_free=1000)
    decision, _ = CacheOptMemory().after(view, Decision([], [], [short, long]), Remembered(), 0.0)
    assert decision.swap == [long]


# --- beside drafts ---------------------------------------------------------------------------------------------------


def test_a_policy_hears_of_the_drafter() -> None:
    """It sees everything that it would see without a memory policy, but for blocks and victims."""
    speculation = Speculation(4, hits=90.0, trials=100.0)
    scene = Scene(Sarathi())
    scene.running(16, 16)
    view = replace(scene.view, speculation=speculation, host_free=3)
    frame, _ = CacheOptMemory().before(view, Remembered(), 0.0)
    scene.table.clear_terms()
    assert frame.speculation is speculation
    same = {"free_blocks", "victims"}
    for name in {field.name for field in fields(view)} - same:
        assert getattr(frame, name) is getattr(view, name), name


def test_a_victim_for_a_critical_one_takes_its_drafts_along() -> None:
    """Both that run are in the batch, with drafts; the one that gives way is in it no more, and the other one keeps
    its own."""
    scene = Scene(Sarathi(), blocks=0)
    patient = scene.running(64, 64, tpot_s=100.0)
    hasty = scene.running(64, 64, tpot_s=0.1)
    scene.waiting(16, ttft_s=0.1)  # an iteration takes 61 ms
    decision = Decision([patient, hasty], [1, 1], [], drafts=[3, 2])
    memory = CacheOptMemory(reserve=0, growth=False, embed=False)
    decision, _ = memory.after(scene.view, decision, Remembered(), 0.0)
    assert decision.preempt == [patient]
    assert (decision.slots, decision.counts, decision.drafts) == ([hasty], [1], [2])
    check(decision, scene.table, "test")


# --- waiting order ---------------------------------------------------------------------------------------------------


def test_requests_wait_by_slack() -> None:
    """TTFT of new ones; TBT of those that had begun to answer; longer prompts take more iterations."""
    scene = Scene(CacheOpt())
    late, soon = scene.waiting(100, ttft_s=2.0), scene.waiting(100, ttft_s=1.0, at_s=0.5)
    long = scene.waiting(5000, ttft_s=2.0)  # 10 iterations
    back = scene.running(100, 100, last_s=1.0, tpot_s=0.2)
    scene.table.computed[back] = scene.table.blocks[back] = 0
    scene.table.enqueue(back, scene.policy.order_key(scene.view, back, scene.state))
    assert scene.rank([late, soon, long, back]) == [back, long, soon, late]
    assert scene.policy.order_key(scene.view, late, scene.state) == pytest.approx(2.0 - 0.0612)


def test_a_large_one_does_not_hold_up_a_small_one() -> None:
    scene = Scene(CacheOpt(), blocks=10)
    running = scene.running(16, 16)
    large, small = scene.waiting(200, ttft_s=1.0), scene.waiting(64, ttft_s=2.0)
    assert scene.plan() == {running: 1, small: 64} and large not in scene.preempted


def test_one_out_of_patience_holds_up_those_behind_it_that_need_blocks_of_their_own() -> None:
    """Ten times 1 s: it could have started by 0.968."""
    scene = Scene(CacheOpt(), blocks=10)
    running = scene.running(16, 16)
    large, small = scene.waiting(200, ttft_s=1.0), scene.waiting(64, ttft_s=20.0)
    assert scene.plan(10.9) == {running: 1, small: 64}
    assert scene.plan(11.0) == {running: 1}
    guest = scene.waiting(16, ttft_s=30.0)
    scene.table.offer(guest, 1)  # kept back for it: others must do without
    assert scene.plan(11.0) == {running: 1}
    scene.table.offer(guest, 1, running)  # it lives inside another one
    assert scene.plan(11.0) == {running: 1, guest: 16}
    scene.free_blocks = 20
    assert large in scene.plan(11.0)
    patient = Scene(CacheOpt(patience=20.0), blocks=10)
    patient.waiting(200, ttft_s=1.0)
    small = patient.waiting(64, ttft_s=20.0)
    assert [*patient.plan(11.0)] == [small]


def test_who_was_preempted_is_out_of_patience_by_its_pace() -> None:
    """If that is all that it states: ten times 50 ms behind its next token."""
    scene = Scene(CacheOpt(), blocks=10)
    running = scene.running(16, 16)
    large = scene.running(200, 200, ttft_s=None, tpot_s=0.05)
    scene.table.computed[large] = scene.table.blocks[large] = 0
    scene.table.enqueue(large, scene.policy.order_key(scene.view, large, scene.state))
    small = scene.waiting(64, ttft_s=20.0)
    assert scene.plan(0.4) == {running: 1, small: 64}
    assert scene.plan(0.6) == {running: 1}


@pytest.mark.parametrize("known", [0, 160])
@pytest.mark.parametrize("memory", ["cacheopt", "on-demand"])
def test_a_large_one_does_not_wait_for_ever_behind_a_stream_of_small_ones(
    memory: str, known: int
) -> None:
    """It needs nearly all blocks, half of which small ones would always have, none of which can afford to give way.
    What it finds of itself in the cache leaves more of the reserve to others."""
    world = MemoryWorld("cacheopt", blocks=64, block_size=16, memory=memory)
    world.tell({})
    slo = Objective(0.1 if known else 0.5, 0.02)
    if known:
        world.submit(2, [*prompt_of(800, 1)[:known], 5], 1, 0.0, seed=9, objective=slo)
    for at in range(400):
        world.submit(
            10 + 4 * at, prompt_of(48, at + 7), 48, 0.3 + at * 0.025, seed=at, objective=slo
        )
    world.submit(1, prompt_of(800, 1), 8, 0.5, seed=1, objective=Objective(0.2, 0.02))
    run_until(world, 1, 1)
    assert 2.5 < world.now_s < 3.5  # without the rule when the stream ends, at 10


# --- any load, any policy --------------------------------------------------------------------------------------------


def random_load(
    world: MemoryWorld, draw: random.Random, siblings: bool, hosts: bool = False
) -> dict[int, Any]:
    """Requests by id: (prompt, tokens, seed). `hosts`: behind one or two that are given most of the cache and fill it
    slowly; short ones that could live inside them follow, some of which outlive what is predicted of them."""
    asked: dict[int, tuple[list[int], int, int]] = {}
    id = 1
    if hosts:
        world.tell({tokens: draw.choice([1, tokens]) for tokens in range(1, 25)})
        room = world.kvs[0].pool.num_blocks * world.workers[0].block_size
        for seconds in ([0.0], [0.0, 0.02])[draw.randrange(2)]:
            prompt, tokens = prompt_of(draw.randrange(1, 6), id), int(room * draw.uniform(0.6, 0.9))
            world.submit(id, prompt, tokens, seconds, seed=id, objective=EASY)
            asked[id] = (prompt, tokens, id)
            id += 3
    for _ in range(draw.randrange(1, 14)):
        most = (10, 25) if hosts else (30, 25)
        length, tokens = draw.randrange(1, most[0]), draw.randrange(1, most[1])
        prompt = [7] * (length // 2) + prompt_of(length - length // 2, draw.randrange(4))
        others = [id + 1, id + 2][: draw.choice([0, 0, 1, 2])] if siblings else []
        seconds = draw.random() * 0.3
        slo = draw.choice(
            [
                Objective(0.03, 0.01),
                Objective(0.2, 1.0),
                Objective(5.0, 0.25),
                Objective(None, None, 1.0),
            ]
        )
        slo_class = draw.choice(["chat", "standard"])
        world.submit(
            id,
            prompt,
            tokens,
            seconds,
            siblings=others,
            seed=id,
            objective=slo,
            slo_class=slo_class,
        )
        for i, choice in enumerate([id, *others]):
            asked[choice] = (prompt, tokens, id + i)
        if draw.random() < 0.15:
            world.abort([id], at_s=seconds + draw.random() * 0.2)
            del asked[id]
        id += 3
    return asked


def note_guests(world: MemoryWorld) -> None:
    """For the statistics: how often the random loads have requests live inside others."""
    guests = sum(len(plan.embed_guests) for plan in world.plans)
    event("guests: " + ("none" if not guests else "1 to 4" if guests < 5 else "5 or more"))


@settings(deadline=None, max_examples=80, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    params=st.sampled_from(PARTS),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 40]),
    host_blocks=st.sampled_from([0, 6, 100]),
    copies_s=st.sampled_from([None, 1e-6, 3e-3]),
    siblings=st.booleans(),
    hosts=st.booleans(),
)
@example(  # a forked choice was lent what it could not use, and started in vain for ever
    seed=72508, policy="vllm", params={"crossover": False}, depth=1, blocks=14, host_blocks=6,
    copies_s=None, siblings=True, hosts=True,
)  # fmt: skip
def test_any_load_under_any_policy(
    seed: int, policy: str, params: dict[str, Any], depth: int, blocks: int, host_blocks: int,
    copies_s: float | None, siblings: bool, hosts: bool,
) -> None:  # fmt: skip
    """Nothing is lost: every request ends with its own tokens, and after each plan every block is where it is said to
    be."""
    draw = random.Random(seed)
    world = MemoryWorld(
        policy, blocks=blocks, host_blocks=host_blocks, pipeline_depth=depth, max_num_seqs=8,
        memory="cacheopt", memory_params={**params, "quantum": draw.choice([1, 4, 32])},
        preemption="swap" if host_blocks else "recompute", compares=not siblings,
        max_num_batched_tokens=draw.choice([8, 8192]),
    )  # fmt: skip
    if copies_s is not None:
        line = Line(0.0, copies_s / 64)
        world.specs[0] = replace(world.specs[0], copies=Copies(line, line, 64))
        world.core = SchedulerCore(world.config, load_policy(policy, {}), world.specs)
    finish(world, random_load(world, draw, siblings, hosts), most_events=60_000)
    note_guests(world)


@settings(deadline=None, max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    memory=st.sampled_from(["", "cacheopt"]),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 40]),
    host_blocks=st.sampled_from([0, 15]),
    replicas=st.sampled_from([1, 2]),
    hosts=st.booleans(),
)
def test_takeovers_at_any_moment(
    seed: int, policy: str, memory: str, depth: int, blocks: int, host_blocks: int, replicas: int,
    hosts: bool,
) -> None:  # fmt: skip
    """Between any policies, memory policies among them: without one chosen each policy brings its own."""
    draw = random.Random(seed)
    world = MemoryWorld(
        policy, blocks=blocks, host_blocks=host_blocks, pipeline_depth=depth, max_num_seqs=8,
        replicas=replicas, memory=memory, preemption="swap" if host_blocks else "recompute",
        compares=False,
    )  # fmt: skip
    asked = random_load(world, draw, siblings=True, hosts=hosts)
    for _ in range(draw.randrange(1, 3)):
        if draw.random() < 0.3:
            world.lose_batch(draw.random() * 0.5)
        else:
            after = draw.choice(["cacheopt", *POLICIES])
            world.crash(draw.random() * 0.5, after, kv=draw.random() < 0.4)
    finish(world, asked, most_events=60_000)
    note_guests(world)


def test_every_part_happens() -> None:
    """The random loads reach what they are to test."""
    seen: Counter[str] = Counter()
    for seed in range(40):
        draw, hosts = random.Random(seed), bool(seed % 2)
        world = MemoryWorld(
            "cacheopt", blocks=draw.choice([20, 40]), memory_params={"quantum": 4},
            memory="cacheopt", max_num_seqs=8, host_blocks=100, preemption="swap",
        )  # fmt: skip
        line = Line(0.0, 1e-8)
        world.specs[0] = replace(world.specs[0], copies=Copies(line, line, 64))
        world.core = SchedulerCore(world.config, load_policy("cacheopt", {}), world.specs)
        finish(world, random_load(world, draw, siblings=False, hosts=hosts), most_events=60_000)
        loans, guests = world.kvs[0].tables.loans, set()
        for plan in world.plans:
            guests |= {*plan.embed_guests}
            seen["guest preempted"] += len(guests & {*plan.preempt, *plan.swap_out})
            seen["swapped"] += len(plan.swap_out)
            seen["allocated"] += len(plan.allocate_ids)
            seen["preempted"] += len(plan.preempt) + len(plan.swap_out)
        seen["runs with guests"] += bool(guests)
        seen["guests"] += len(guests)
        seen["lent"] += loans.lent
        seen["returned"] += loans.returned
    assert seen["runs with guests"] > 15 and seen["guests"] > 50, seen
    assert seen["allocated"] > 50 and min(seen["lent"], seen["returned"]) > 50, seen
    assert min(seen["preempted"], seen["swapped"]) > 5 and seen["guest preempted"] > 1, seen


@pytest.mark.parametrize("policy", ["accelgen", "cacheopt", "sarathi", "vllm"])
def test_a_replay_decides_the_same(policy: str, tmp_path: Path) -> None:
    """The recorded policy with its memory: blocks given, lent and taken included. With another memory it differs."""
    path, different = tmp_path / "dump", 0
    for seed in range(8):
        draw = random.Random(seed)
        swaps = bool(seed % 2)
        with recording_to(path):
            world = RecordedWorld(
                policy, blocks=draw.choice([18, 24]), host_blocks=100 * swaps, max_num_seqs=8,
                pipeline_depth=draw.randrange(2), memory="cacheopt", memory_params={"quantum": 4},
                preemption="swap" if swaps else "recompute",
            )  # fmt: skip
            if swaps:
                line = Line(0.0, 1e-8)
                world.specs[0] = replace(world.specs[0], copies=Copies(line, line, 64))
                world.core = type(world.core)(world.config, load_policy(policy, {}), world.specs)
            asked = random_load(world, draw, siblings=bool(seed % 3))  # type: ignore[arg-type]
            world.run(most_events=60_000)
        assert {world.ended[id] for id in asked} <= {Reason.LENGTH}
        outcome = replay(read_recording(path), load_policy(policy, {}))
        assert not outcome.skipped, (seed, outcome.skipped)
        assert all(one.same for one in outcome.comparisons), seed
        assert sum(one.step >= 0 for one in outcome.comparisons) == len(world.plans)
        assert any(one.recorded.blocks for one in outcome.comparisons)
        other = "sarathi" if policy != "sarathi" else "vllm"
        outcome = replay(read_recording(path), load_policy(other, {}))
        different += sum(not one.same for one in outcome.comparisons)
    assert different > 10


def test_replay_goes_by_the_memory_that_was_recorded(tmp_path: Path) -> None:
    """With "" each policy has its own: `sarathi` would have given nothing ahead of need."""
    path = tmp_path / "dump"
    with recording_to(path):
        world = RecordedWorld("cacheopt", blocks=40)
        random_load(world, random.Random(5), siblings=False)  # type: ignore[arg-type]
        world.run()
    recording = read_recording(path)
    same = replay(recording, load_policy("cacheopt", {}))
    assert all(one.same for one in same.comparisons)
    assert any(one.recorded.blocks for one in same.comparisons)
    plain = replay(recording, load_policy("sarathi", {}))
    assert not any(one.other.blocks for one in plain.comparisons if one.other is not None)


def test_on_a_crowded_cache_it_preempts_less() -> None:
    """What the padding is for: with lengths known, nobody is preempted at all; on demand, many are."""
    preempted = {}
    for memory in ("cacheopt", "on-demand"):
        world = MemoryWorld("cacheopt", blocks=40, memory=memory, max_num_seqs=16)
        world.tell({})
        for id in range(1, 30):
            tokens = 10 + id
            world.submit(id, prompt_of(8, id), tokens, at_s=id / 100, objective=EASY)
        world.run(most_events=60_000)
        preempted[memory] = world.core.replicas[0].preemptions
        for id in range(1, 30):
            assert world.delivered[id] == expected(prompt_of(8, id), 10 + id)
    assert preempted["cacheopt"] == 0 < preempted["on-demand"]


def test_terms_are_gone_after_every_plan() -> None:
    world = with_guest(1)
    table = world.core.replicas[0].table
    assert not table.has_terms and not np.any(table.padding) and not np.any(table.offered)
