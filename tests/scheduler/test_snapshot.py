"""What one scheduler has learnt arrives at the next; what cannot travel stays behind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from msgspec import Struct
from world import World

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policies.accelgen import AccelGen
from accelgen.scheduler.policies.vllm import Vllm
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.predictors.class_quantiles import ClassMedian, ClassQuantiles
from accelgen.scheduler.predictors.estimate import Traits
from accelgen.scheduler.predictors.learnt import Learnt
from accelgen.scheduler.predictors.regressor import LengthRegressor
from accelgen.scheduler.snapshot import MOST_BYTES, Experience, Snapshot, unpacked

WORK = Work(100, 8, 3000, 20_000.0)
CHAT = Traits("chat", 50, 1000)


def experienced(policy: Policy | None = None) -> Experience:
    """What a scheduler knows that has served."""
    world, experience = World(policy="accelgen"), Experience()
    experience.give_to(world.core)
    cost = world.core.replicas[0].cost
    for i in range(48):  # the median is taken anew at each 16th
        cost.observe(WORK, 0.010 + 0.0001 * i)
        world.core.predictor.observe(CHAT, 20 + i)
    experience.take_from(world.core)
    if policy is not None:
        experience.states = {0: policy.initial()}
    return experience


def test_cost_model_predictor_and_state_arrive() -> None:
    before = experienced()
    after = unpacked(before.packed(AccelGen()), AccelGen())
    heir = World(policy="accelgen")
    assert heir.core.replicas[0].cost.predict(WORK) != before.costs[0].predict(WORK)
    after.give_to(heir.core)
    cost = heir.core.replicas[0].cost
    assert cost.predict(WORK) == before.costs[0].predict(WORK)
    assert cost.predict_upper(WORK) == before.costs[0].predict_upper(WORK)
    assert vars(cost) == vars(before.costs[0])
    predicted = heir.core.predictor.predict(CHAT)
    assert predicted == before.predictor.predict(CHAT)
    assert predicted.tokens != 500
    assert heir.core.replicas[0].state == before.states[0]


def test_a_predictor_of_another_kind_arrives() -> None:
    for kind in (LengthRegressor(trim=2.0), ClassQuantiles(quantile=0.8)):
        for i in range(208):  # a multiple of 16: what was seen is what is known
            kind.observe(Traits("chat", 10 + i, 1000), 10 + i)
        after = unpacked(Experience(kind).packed(Vllm()), Vllm()).predictor
        assert type(after) is type(kind) and after.params == kind.params
        assert after.learnt() == kind.learnt()
        assert after.predict(CHAT) == kind.predict(CHAT)


def test_a_predictor_that_cannot_be_made_leaves_its_lengths() -> None:
    whole = msgspec.msgpack.decode(experienced().packed(Vllm()), type=Snapshot)
    regression = LengthRegressor().learnt().regression
    assert regression is not None
    narrow = msgspec.structs.replace(regression, gram=[[1.0]], moment=[1.0])
    for change in (
        {"predictor": "of tomorrow"},
        {"predictor_params": {"x": 1}},
        {"predictor": "regressor", "regression": narrow},
    ):
        data = msgspec.msgpack.encode(msgspec.structs.replace(whole, **change))
        found = unpacked(data, Vllm())
        assert type(found.predictor) is ClassMedian and found.costs[0].observed == 48
        assert found.predictor.learnt().outputs == {"chat": list(range(20, 68))}


def test_a_snapshot_from_before_there_were_other_predictors() -> None:
    whole = msgspec.msgpack.decode(experienced().packed(Vllm()))
    for later in ("predictor", "predictor_params", "regression"):
        del whole[later]
    found = unpacked(msgspec.msgpack.encode(whole), Vllm()).predictor
    assert type(found) is ClassMedian and found.learnt().outputs == {"chat": list(range(20, 68))}


def test_the_state_of_another_policy_does_not() -> None:
    after = unpacked(experienced().packed(AccelGen()), Vllm())
    assert after.states == {} and after.costs[0].observed == 48


class Odd(Vllm):
    """A policy whose state is what a test says."""

    name = "odd"

    def __init__(self, state: Any) -> None:
        super().__init__()
        self.state = state

    def initial(self) -> Any:
        return self.state


class Small(Struct):
    x: int


@dataclass
class Circle:
    inside: Any = None


@pytest.mark.parametrize("state", [object(), "x" * MOST_BYTES, 2**70, 1j])
def test_a_state_that_does_not_travel_stays_behind(state: Any) -> None:
    policy = Odd(state)
    packed = experienced(policy).packed(policy)
    assert len(packed) < MOST_BYTES
    after = unpacked(packed, policy)
    assert after.states == {} and after.costs[0].observed == 48


def test_a_state_that_contains_itself() -> None:
    circle = Circle()
    circle.inside = circle
    policy = Odd(circle)
    assert unpacked(experienced(policy).packed(policy), policy).costs[0].observed == 48


def test_a_state_of_another_shape_is_not_taken() -> None:
    after = unpacked(experienced(Odd("text")).packed(Odd("text")), Odd(Small(3)))
    assert after.states == {} and after.costs[0].observed == 48


@pytest.mark.parametrize("data", [b"", b"nonsense", msgspec.msgpack.encode({"version": 0})])
def test_nonsense_is_nothing(data: bytes) -> None:
    found = unpacked(data, Vllm())
    assert (found.costs, found.states, found.predictor.learnt()) == ({}, {}, Learnt())
