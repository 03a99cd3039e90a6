"""Entries that wait for blocks which are leaving: no policy takes them for served."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from world import World

from accelgen.proto.messages import Plan
from accelgen.scheduler.flight import Flight
from accelgen.scheduler.policies.qoserve import DECAY
from accelgen.scheduler.policy import Decision, is_decode
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.snapshot import Experience, unpacked
from accelgen.scheduler.table import WAITING


@dataclass
class Watched:
    """What a replica has decided and planned: by call of `plan`, when it was to start, how many entries the decision
    had, which ids had prompts in it, and tokens by id that run, without what the KV manager has dropped; what the
    policy was told of the decision before, and its state after."""

    starts_s: list[float] = field(default_factory=list)
    decided: list[int] = field(default_factory=list)
    ran: list[dict[int, int]] = field(default_factory=list)
    prompts: list[set[int]] = field(default_factory=list)
    told: list[Mapping[int, int]] = field(default_factory=list)
    states: list[Any] = field(default_factory=list)
    dropped: int = 0

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        decide, plan, drop = Replica._decide, Replica.plan, Replica._drop

        def deciding(replica: Replica, start_s: float) -> Decision:
            self.told.append({**replica.view().last})
            decision = decide(replica, start_s)
            self.states.append(replica.state)
            self.starts_s.append(start_s)
            self.decided.append(len(decision.slots))
            table, slots = replica.table, np.array(decision.slots, dtype=np.int64)
            prompts = ~is_decode(table, slots) | (table.state[slots] == WAITING)
            self.prompts.append({*table.ids[slots[prompts]].tolist()})
            return decision

        def planning(replica: Replica, now_s: float) -> Plan | None:
            found = plan(replica, now_s)
            ran = {} if found is None else dict(zip(found.ids, found.counts, strict=True))
            self.ran.append(ran)
            return found

        def dropping(replica: Replica, flight: Flight, dropped: set[int]) -> None:
            drop(replica, flight, dropped)
            assert flight.ids == [*self.ran[-1]]
            self.dropped += len(dropped)
            self.ran[-1] = {id: n for id, n in self.ran[-1].items() if id not in dropped}

        patch.setattr(Replica, "_decide", deciding)
        patch.setattr(Replica, "plan", planning)
        patch.setattr(Replica, "_drop", dropping)

    @property
    def held_back(self) -> int:
        """Entries."""
        return sum(self.decided) - sum(map(len, self.ran)) - self.dropped


def watched(policy: str, seed: int, depth: int, host_blocks: int = 1000) -> tuple[World, Watched]:
    """A load for which a cache of 20 blocks is far too small, to its end."""
    draw, found = random.Random(seed), Watched()
    world = World(
        policy, blocks=20, host_blocks=host_blocks, pipeline_depth=depth, memory="on-demand",
        preemption="swap" if host_blocks else "recompute",
    )  # fmt: skip
    for id in range(1, 9):
        prompt = [draw.randrange(1, 97) for _ in range(draw.randrange(8, 30))]
        world.submit(id, prompt, draw.randrange(10, 30), at_s=draw.random() * 0.2)
    with pytest.MonkeyPatch.context() as patch:
        found.watch(patch)
        world.run()
    world.check_idle()
    return world, found


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("policy", ["fastgen", "fastserve", "qoserve", "slos-serve", "vllm"])
def test_a_policy_is_told_what_runs_of_its_decision(policy: str, depth: int) -> None:
    held_back = 0
    for seed in range(4):
        _, found = watched(policy, seed, depth)
        assert found.told == [{}, *found.ran[:-1]]
        held_back += found.held_back
    assert held_back > 8


@pytest.mark.parametrize("depth", [0, 1])
def test_fastserve_counts_iterations_that_run(depth: int) -> None:
    idle = 0
    for seed in range(4):
        world, found = watched("fastserve", seed, depth)
        state = world.core.replicas[0].state
        assert state.iterations == sum(map(bool, found.ran[:-1]))
        calls = zip(found.decided, found.ran, strict=True)
        idle += sum(decided > 0 and not ran for decided, ran in calls)
    assert idle > 5


@pytest.mark.parametrize(("depth", "host_blocks"), [(0, 1000), (1, 1000), (0, 0), (1, 0)])
def test_qoserves_throughput_is_that_of_what_runs(depth: int, host_blocks: int) -> None:
    """Its moving average, from what each iteration processed of prompts until the next one began."""
    held_back = 0
    for seed in range(4):
        world, found = watched("qoserve", seed, depth, host_blocks)
        throughput, begun_s, tokens = 8500.0, 0.0, 0
        for start_s, prompts, ran in zip(found.starts_s, found.prompts, found.ran, strict=True):
            if tokens and start_s > begun_s:
                throughput = DECAY * throughput + (1 - DECAY) * tokens / (start_s - begun_s)
            begun_s, tokens = start_s, sum(ran.get(id, 0) for id in prompts)
        assert world.core.replicas[0].state.throughput == pytest.approx(throughput, rel=1e-9)
        held_back += found.held_back
    assert held_back > 20 or not host_blocks


@pytest.mark.parametrize("depth", [0, 1])
def test_slos_serve_goes_on_in_its_plan_when_a_batch_has_run(depth: int) -> None:
    """A batch of which nothing runs is still due."""
    held_back = 0
    for seed in range(6):
        _, found = watched("slos-serve", seed, depth)
        position, made_s = 0, -1.0
        for told, state in zip(found.told, found.states, strict=True):
            position = 0 if state.made_s != made_s else position + bool(told)
            made_s = state.made_s
            assert state.position == position
        calls = zip(found.decided, found.ran, strict=True)
        held_back += sum(decided > 0 and not ran for decided, ran in calls)
    assert held_back


@pytest.mark.parametrize("packed", [False, True])
def test_a_successor_is_told_of_the_last_iteration_before_it(packed: bool) -> None:
    """It goes with the state of the policy; another policy has decided nothing yet."""
    world, experience = World("fastserve"), Experience()
    world.submit(1, [1, 2, 3], 9)
    world.run(until_s=0.02)
    before = world.core.replicas[0]
    assert before.last == {1: 1}
    experience.take_from(world.core)
    policy = world.core.policy
    heir = World("fastserve").core
    data = experience.packed(policy)
    (unpacked(data, policy) if packed else experience).give_to(heir)
    after = heir.replicas[0]
    assert (after.state, after.view().last) == (before.state, {1: 1})
    other = World("vllm").core
    unpacked(data, other.policy).give_to(other)
    assert other.replicas[0].view().last == {}
