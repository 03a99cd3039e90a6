"""Memory policies: how they are found, what they are allowed to change, and that on-demand changes nothing."""

from __future__ import annotations

import random
import re
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from memory_world import MemoryWorld
from random_load import prompt_of
from scene import Scene
from world import POLICIES, World, expected

from accelgen.proto.config import Config
from accelgen.proto.messages import Objective, Plan
from accelgen.proto.policies import known_memories
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.memory.cacheopt import CacheOptMemory
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.memory.policy import load_memory, memory_of
from accelgen.scheduler.policies.accelgen import AccelGen
from accelgen.scheduler.policies.cacheopt import CacheOpt
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policy import Decision, Policy, UnknownPolicy, View, load_policy
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.snapshot import Experience, unpacked
from accelgen.scheduler.table import Ints

ROOT = Path(__file__).resolve().parents[2]
POINTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
    "entry-points"
]["accelgen.memory"]


def load(world: World, draw: random.Random, count: int = 12) -> dict[int, tuple[list[int], int]]:
    """Random requests of all kinds of objectives: (prompt, tokens) by id."""
    asked = {}
    for id in range(1, count + 1):
        prompt, tokens = prompt_of(draw.randrange(1, 30), draw.randrange(4)), draw.randrange(1, 25)
        slo = draw.choice([Objective(0.05, 0.01), Objective(5.0, 0.25), Objective(None, None, 2.0)])
        world.submit(id, prompt, tokens, at_s=draw.random() * 0.3, objective=slo, seed=id)
        asked[id] = (prompt, tokens)
    return asked


# --- finding them ----------------------------------------------------------------------------------------------------


def test_all_of_them_are_known() -> None:
    assert sorted(POINTS) == known_memories()


@pytest.mark.parametrize("name", POINTS)
def test_it_bears_its_name_and_says_where_it_comes_from(name: str) -> None:
    memory = load_memory(name)
    assert memory.name == name
    module = __import__(type(memory).__module__, fromlist=["__doc__"])
    assert (module.__doc__ or "").startswith(f"`{name}`")
    assert f"\n| {name} |" in (ROOT / "docs" / "policies.md").read_text()


@pytest.mark.parametrize(
    ("name", "params", "words"),
    [
        ("cacheop", {}, "there is no memory policy 'cacheop'; did you mean cacheopt?"),
        ("x", {}, "there is no memory policy 'x'; known: cacheopt, on-demand"),
        ("cacheopt", {"reserve": -1}, "reserve: -1 tokens, must be at least 0"),
        ("cacheopt", {"alpha": 1.0}, "alpha: 1.0, must be from 0.0 to 0.999999"),
        ("cacheopt", {"buffer": -1}, "buffer: -1 tokens, must be at least 0"),
        ("cacheopt", {"quantum": 0}, "quantum: 0 tokens, must be at least 1"),
        ("cacheopt", {"ahead": -1}, "ahead: -1 iterations, must be at least 0"),
        ("cacheopt", {"chunk_size": 0}, "chunk_size: 0 tokens, must be at least 1"),
        ("on-demand", {"x": 1}, "memory_params: on-demand: "),
    ],
)
def test_names_and_parameters_are_judged(name: str, params: dict[str, Any], words: str) -> None:
    with pytest.raises(UnknownPolicy, match=re.escape(words)):
        load_memory(name, params)


def test_which_one_works_beside_a_policy() -> None:
    assert memory_of(Sarathi(), Config()) is ON_DEMAND
    assert isinstance(memory_of(CacheOpt(), Config()), CacheOptMemory)
    assert memory_of(CacheOpt(), Config(memory="on-demand")) is ON_DEMAND
    chosen = memory_of(Sarathi(), Config(memory="cacheopt", memory_params={"reserve": 7}))
    assert isinstance(chosen, CacheOptMemory) and chosen.rule.reserve == 7
    own = memory_of(CacheOpt(), Config(memory_params={"reserve": 7}))
    assert isinstance(own, CacheOptMemory) and own.rule.reserve == 7
    with pytest.raises(UnknownPolicy, match="memory_params: on-demand"):
        memory_of(Sarathi(), Config(memory_params={"reserve": 7}))


# --- on demand: nothing is changed -----------------------------------------------------------------------------------


class Watched:
    """A policy that notes what it was shown and what it has answered."""

    def __init__(self, inner: Policy) -> None:
        self.inner, self.name = inner, inner.name
        self.initial, self.order_key = inner.initial, inner.order_key
        self.admit, self.observe = inner.admit, inner.observe
        self.core: SchedulerCore | None = None
        self.decided: list[tuple[list[int], list[int], list[int], bool]] = []

    def plan(self, view: View, state: Any, start_s: float) -> tuple[Decision, Any]:
        assert self.core is not None
        replica, table = self.core.replicas[0], view.table
        shown = (view.table, view.free_blocks, view.pinned_blocks, view.total_blocks)
        assert shown == (
            replica.table, replica.free_blocks, replica.pinned_blocks, replica.total_blocks
        )  # fmt: skip
        assert view.victims is None and not table.has_terms
        decision, state = self.inner.plan(view, state, start_s)
        plain = not (decision.allocate or decision.embed or decision.swap is not None)
        ids = table.ids
        entries = [int(ids[slot]) for slot in decision.slots]
        victims = [int(ids[slot]) for slot in decision.preempt]
        self.decided.append((entries, [*decision.counts], victims, plain))
        return decision, state


@settings(deadline=None, max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 60]),
)
def test_on_demand_is_the_identity(seed: int, policy: str, depth: int, blocks: int) -> None:
    """What a policy decides is what is planned, whatever happens, and it sees what there is. Nothing else could make a
    difference to before there were memory policies."""
    world = MemoryWorld(
        policy, blocks=blocks, pipeline_depth=depth, max_num_seqs=8, memory="on-demand"
    )
    watched = Watched(load_policy(policy, {}))
    watched.core = world.core = SchedulerCore(world.config, watched, world.specs)
    asked = load(world, random.Random(seed))
    world.run()
    for id, (prompt, tokens) in asked.items():
        assert world.delivered[id] == expected(prompt, tokens, id)
    decided = [one for one in watched.decided if one[0] or one[2]]
    planned = [plan for plan in world.plans if plan.ids or plan.preempt]
    assert len(decided) == len(planned)
    for (ids, counts, victims, plain), plan in zip(decided, planned, strict=True):
        assert plain and (plan.ids, plan.preempt) == (ids, victims)
        assert all(less <= count for less, count in zip(plan.counts, counts, strict=True))
        assert not (plan.allocate_ids or plan.embed_guests or plan.swap_out or plan.swap_in)
    assert world.core.replicas[0].memory_state is None
    world.check_idle()


@pytest.mark.parametrize("policy", POLICIES)
def test_on_demand_plans_as_without_memory_policies(policy: str) -> None:
    """Both roads, plan by plan: with `on-demand` around the policy, and with the policy alone, as it was before."""

    def plans(alone: bool, seed: int) -> list[Plan]:
        draw = random.Random(seed)
        world = World(
            policy, blocks=draw.choice([14, 20, 60]), pipeline_depth=draw.randrange(2),
            max_num_seqs=8, memory="on-demand",
        )  # fmt: skip
        load(world, draw)
        with pytest.MonkeyPatch.context() as patch:
            if alone:
                patch.setattr(Replica, "_decide", policy_alone)
            world.run()
        return world.plans

    def policy_alone(self: Replica, start_s: float) -> Decision:
        decision, self.state = self.policy.plan(self.view(), self.state, start_s)
        return decision

    for seed in range(5):
        assert plans(False, seed) == plans(True, seed)


# --- terms -----------------------------------------------------------------------------------------------------------


def test_terms_change_what_a_request_needs_until_the_plan_is_made() -> None:
    scene = Scene(Sarathi(), blocks=10)
    first, second = scene.waiting(40), scene.waiting(40)
    table, slots = scene.table, np.array([0, 0])
    slots = np.array([first, second])
    pending = np.array([40, 40])
    assert table.block_demand(slots, pending).tolist() == [3, 3]
    table.pad(slots, np.array([4, 2]))
    table.offer(second, 5, lender=first)
    assert table.block_demand(slots, pending).tolist() == [7, 0]
    assert scene.plan() == {first: 40, second: 40}  # 7 of 10 blocks, and none
    table.offer(second, 1)
    assert scene.plan() == {first: 40}  # 4 more
    table.clear_terms()
    assert table.block_demand(slots, pending).tolist() == [3, 3] and table.lenders == {}


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "fastserve"])
def test_padding_keeps_newcomers_out(policy: str) -> None:
    """Of 10 blocks, 6 are enough for the first one only if 4 more are not asked for."""
    for padding, starts in ((4, True), (5, False)):
        scene = Scene(load_policy(policy, {}), blocks=10)
        scene.table.pad(np.array([scene.waiting(90)]), np.array([padding]))
        assert bool(scene.plan()) is starts


# --- victims ---------------------------------------------------------------------------------------------------------


class Asked(Scene):
    """A Scene whose memory policy says who gives way."""

    order: list[int]

    @property
    def view(self) -> View:
        def victims(view: View) -> Ints:
            return np.array(self.order, dtype=np.int64)

        return replace(super().view, victims=victims)


@pytest.mark.parametrize("policy", ["sarathi", "vllm", "edf", "cacheopt", "qoserve"])
def test_victims_of_decodes(policy: str) -> None:
    """No block is free, and the first decode needs one."""
    scene = Asked(load_policy(policy, {}), blocks=0)
    scene.order = []
    slots = [scene.running(16, 16, at_s=0.1 * i) for i in range(4)]
    for chosen in (slots[1], slots[2]):
        scene.order = [chosen, *(slot for slot in slots if slot != chosen)]
        taken = scene.plan(1.0)
        assert scene.preempted[0] == chosen and chosen not in taken


def test_victims_of_urgent_requests() -> None:
    """The first one misses its objective unless it runs, and needs a block; the others have time."""
    scene = Asked(AccelGen(), blocks=0)
    scene.order = []
    urgent = scene.running(16, 16, tpot_s=0.01)
    others = [scene.running(16, 16, tpot_s=50.0 + i) for i in range(3)]
    for chosen in others:
        scene.order = [chosen, urgent, *(slot for slot in others if slot != chosen)]
        assert urgent in scene.plan(1.0) and scene.preempted == [chosen]


def test_victims_that_make_room() -> None:
    """Nothing fits: two prompts have begun, and there is no block for a further token of either."""
    for policy in (Sarathi(), AccelGen()):
        scene = Asked(policy, blocks=0)
        scene.order = []
        slots = [scene.running(32, 16) for _ in range(2)]
        for chosen in slots:
            scene.order = [chosen, *(slot for slot in slots if slot != chosen)]
            assert scene.plan(1.0) == {} and scene.preempted == [chosen]


# --- what it remembers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTS)
def test_what_it_remembers_can_be_handed_over(name: str) -> None:
    world = MemoryWorld("cacheopt", blocks=30, max_num_seqs=6, memory=name)
    for id in range(1, 12):
        slo = Objective(0.05, 0.02) if id % 3 else Objective(None, None, 1.0)
        world.submit(id, [id] * (5 + 3 * id), max_tokens=25, at_s=id / 100, objective=slo)
    world.run(until_s=0.25)
    replica, core = world.core.replicas[0], world.core
    experience = Experience()
    experience.take_from(core)
    packed = experience.packed(core.policy)
    found = unpacked(packed, core.policy, core.memory)
    assert found.memory == name and found.memory_states == {0: replica.memory_state}
    assert type(found.memory_states[0]) is type(replica.memory_state)
    other = ON_DEMAND if name != ON_DEMAND.name else CacheOptMemory()
    assert unpacked(packed, core.policy, other).memory_states == {}
    heir = MemoryWorld("cacheopt", memory=name)
    found.give_to(heir.core)
    assert heir.core.replicas[0].memory_state == replica.memory_state
    stranger = MemoryWorld("cacheopt", memory=other.name)
    found.give_to(stranger.core)
    assert stranger.core.replicas[0].memory_state == other.initial()
