"""A new scheduler goes on where the old one was: no token lost, repeated or different, little computed twice."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from random_load import finish, prompt_of, submit_some, upset
from world import POLICIES, World, expected

from accelgen.proto.messages import Reason


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kv", [False, True])
def test_nothing_is_lost_and_little_is_computed_again(policy: str, depth: int, kv: bool) -> None:
    """Also when the KV manager dies with the scheduler: its tables are built anew from the worker's inventory."""
    world = World(policy, blocks=256, pipeline_depth=depth)
    prompts = {id: prompt_of(30 + id, id) for id in range(1, 9)}
    for id, prompt in prompts.items():
        world.submit(id, prompt, max_tokens=40)
    world.crash(0.1, kv=kv)
    world.run()
    for id, prompt in prompts.items():
        assert world.delivered[id] == expected(prompt, 40)
        assert world.ended[id] is Reason.LENGTH
    assert world.adopted > sum(map(len, prompts.values()))  # all prompts, and what was generated
    whole = sum(len(prompt) + 39 for prompt in prompts.values())
    assert world.workers[0].processed <= whole + 3 * len(prompts)
    world.check_idle()


@pytest.mark.parametrize("depth", [0, 1])
def test_a_lost_batch(depth: int) -> None:
    """The KV manager counts on what the worker never ran: the worker's word is the truth."""
    lost = 0
    for hundredth_s in range(1, 30, 2):
        world = World(blocks=64, pipeline_depth=depth)
        for id in range(1, 5):
            world.submit(id, prompt_of(20, id), max_tokens=30, at_s=0.02 * id)
        world.lose_batch(hundredth_s / 100)
        world.run()
        lost += world.lost
        for id in range(1, 5):
            assert world.delivered[id] == expected(prompt_of(20, id), 30), hundredth_s
        world.check_idle()
    assert lost > 8


def test_what_ended_meanwhile_is_given_back() -> None:
    """An abort that got lost with the old scheduler: nobody claims the request any more."""
    world = World(blocks=64)
    world.submit(1, prompt_of(40, 1), max_tokens=100)
    world.submit(2, prompt_of(9, 2), max_tokens=30)
    world.run(until_s=0.1)
    del world.journal[1]
    world.crash(0.1)
    world.run()
    assert world.delivered[2] == expected(prompt_of(9, 2), 30)
    world.check_idle()


def test_only_the_word_of_the_end_was_missing() -> None:
    world = World()
    world.submit(1, prompt_of(9, 1), max_tokens=5)
    world.run(until_s=0.02)
    world.journal[1] = world.journal.get(1) or next(iter(world.journal.values()))
    world.delivered[1] = expected(prompt_of(9, 1), 5)
    world.crash(world.now_s)
    world.run()
    assert world.ended[1] is Reason.LENGTH and len(world.delivered[1]) == 5
    world.check_idle()


def test_siblings_at_every_moment() -> None:
    """Choices share their prompt's last block until they write: each keeps its own whenever the crash comes."""
    for tenth_ms in range(0, 600, 3):
        world = World("sarathi")
        world.submit(1, prompt_of(10, 1), max_tokens=8, siblings=[2, 3], seed=5)
        world.crash(tenth_ms * 1e-4)
        world.run()
        for i in range(3):
            assert world.delivered[1 + i] == expected(prompt_of(10, 1), 8, 5 + i), tenth_ms
        world.check_idle()


def test_the_worker_forgets_what_ends_before_it_runs_again() -> None:
    """Found by `test_any_moment`: adopted, then aborted at once."""
    world = World()
    world.submit(1, prompt_of(20, 1), max_tokens=50)
    world.crash(0.05)
    world.abort([1], at_s=0.05)
    world.run()
    world.check_idle()


@pytest.mark.parametrize("first_back", [0.06, 0.3])
def test_a_request_that_two_replicas_hold_is_given_back_by_one(first_back: float) -> None:
    """Found by an hour of chaos (12 blocks leaked): while one replica was away its requests went on at the other; back
    again it still held them, and only one of the two was asked to forget."""
    world = World(replicas=2)
    prompts = {id: prompt_of(30, id) for id in range(1, 5)}
    for id, prompt in prompts.items():
        world.submit(id, prompt, max_tokens=100)
    world.crash(0.05, without=0)
    world.crash(first_back)
    world.run()
    for id, prompt in prompts.items():
        assert world.delivered[id] == expected(prompt, 100)
    world.check_idle()


@settings(deadline=None, max_examples=80, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@example(278, "accelgen", 0, 14, 1, "")  # a pin withdrawn from who was adopted
@given(
    seed=st.integers(0, 10**6),
    policy=st.sampled_from(POLICIES),
    depth=st.sampled_from([0, 1]),
    blocks=st.sampled_from([14, 20, 40, 200]),
    replicas=st.sampled_from([1, 2]),
    drafter=st.sampled_from(["", "ngram"]),
)
def test_any_moment(
    seed: int, policy: str, depth: int, blocks: int, replicas: int, drafter: str
) -> None:
    """Crashes and swaps at random moments of random loads, with siblings, aborts, memory pressure, and drafts."""
    draw = random.Random(seed)
    world = World(
        policy, blocks=blocks, replicas=replicas, pipeline_depth=depth, max_num_seqs=8,
        drafter=drafter,
    )  # fmt: skip
    asked = submit_some(world, draw, 19)
    upset(world, draw, draw.randrange(1, 4))
    if replicas == 2 and draw.random() < 0.5:
        away_s = draw.random() * 0.5
        world.crash(away_s, without=draw.randrange(2))
        world.crash(away_s + draw.random() * 0.2)
    finish(world, asked)
