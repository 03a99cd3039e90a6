"""The scheduler core with the real KV core and a contract-checking worker: every request ends once, with the right
tokens, and nothing stays held; whatever the policy, pipeline depth, memory, aborts and siblings."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from world import POLICIES, World, expected

from accelgen.proto.messages import Objective, Reason
from accelgen.scheduler.predictors.class_quantiles import ClassMedian


def prompt_of(length: int, seed: int = 0, shared: int = 0) -> list[int]:
    draw = random.Random(seed)
    return [7] * shared + [draw.randrange(1, 97) for _ in range(length - shared)]


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [0, 1])
def test_one_request(policy: str, depth: int) -> None:
    world = World(policy, pipeline_depth=depth)
    world.submit(1, prompt_of(10), max_tokens=5)
    world.run()
    assert world.delivered[1] == expected(prompt_of(10), 5)
    assert world.ended == {1: Reason.LENGTH}
    world.check_idle()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [0, 1])
def test_a_report_that_is_slower_than_its_result(policy: str, depth: int) -> None:
    """Two links have no common order: a step of which everything was dropped comes back at once."""
    world = World(policy, blocks=10, report_s=0.01, pipeline_depth=depth)
    prompts = {1: prompt_of(33, 1), 11: prompt_of(33, 2)}
    for id, prompt in prompts.items():
        world.submit(id, prompt, max_tokens=6, siblings=list(range(id + 1, id + 8)), seed=id)
    world.run()
    for id, prompt in prompts.items():
        for i in range(8):
            assert world.delivered[id + i] == expected(prompt, 6, id + i)
    world.check_idle()


@pytest.mark.parametrize("policy", POLICIES)
def test_stop_token_ends_and_the_token_in_flight_is_dropped(policy: str) -> None:
    prompt = prompt_of(6)
    stop = expected(prompt, 4)[3]
    world = World(policy)
    world.submit(1, prompt, max_tokens=20, stop=[stop])
    world.run()
    assert world.delivered[1] == expected(prompt, 20, stop=[stop])
    assert world.ended == {1: Reason.STOP}
    world.check_idle()


requests = st.lists(
    st.tuples(
        st.integers(1, 40),  # prompt length
        st.integers(1, 12),  # max_tokens
        st.floats(0, 0.2),  # arrival
        st.integers(0, 3),  # siblings
        st.sampled_from([None, 0.0, 0.01, 0.1]),  # aborted so long after arrival
        st.sampled_from(
            [(0.05, 0.01, None), (5.0, 0.25, None), (None, None, 2.0), (None, None, None)]
        ),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    policy=st.sampled_from(POLICIES),
    depth=st.integers(0, 1),
    blocks=st.integers(14, 40),
    limit=st.sampled_from([4, 16, 8192]),
    seats=st.integers(4, 12),
    replicas=st.integers(1, 2),
    drawn=requests,
)
def test_every_request_ends_once_with_its_own_tokens(
    policy: str, depth: int, blocks: int, limit: int, seats: int, replicas: int, drawn: list[tuple]
) -> None:
    world = World(
        policy, blocks, 4, replicas,
        pipeline_depth=depth, max_num_batched_tokens=limit, max_num_seqs=seats,
    )  # fmt: skip
    wanted: dict[int, tuple[list[int], int, int]] = {}
    aborted: set[int] = set()
    for i, (length, max_tokens, at_s, siblings, abort_s, slo) in enumerate(drawn):
        ids = [100 * (i + 1) + j for j in range(1 + siblings)]
        prompt = prompt_of(length, seed=i % 3, shared=min(length, 8))
        world.submit(ids[0], prompt, max_tokens, at_s, ids[1:], Objective(*slo), seed=i)
        for j, id in enumerate(ids):
            wanted[id] = (prompt, max_tokens, i + j)
        if abort_s is not None:
            aborted.add(ids[0])
            world.abort([ids[0]], at_s + abort_s)
    world.run()
    assert set(world.ended) == set(wanted)
    for id, (prompt, max_tokens, seed) in wanted.items():
        right = expected(prompt, max_tokens, seed)
        if world.ended[id] is Reason.LENGTH:
            assert world.delivered[id] == right
        else:
            assert world.ended[id] is Reason.ABORTED and id in aborted
            assert world.delivered[id] == right[: len(world.delivered[id])]
    world.check_idle()


@pytest.mark.parametrize("policy", POLICIES)
def test_memory_pressure_preempts_and_recomputes(policy: str) -> None:
    world = World(policy, blocks=20, block_size=4, memory="on-demand")
    for id in range(1, 7):
        world.submit(id, prompt_of(8, id), max_tokens=30)
    world.run()
    for id in range(1, 7):
        assert world.delivered[id] == expected(prompt_of(8, id), 30)
    assert (world.core.replicas[0].preemptions > 0) == (policy != "orca")  # it reserves
    world.check_idle()


def test_prefix_hits_are_found_at_arrival() -> None:
    world = World("sarathi")
    prompt = prompt_of(32)
    world.submit(1, prompt, at_s=0.0)
    world.submit(2, prompt, at_s=1.0)
    world.run()
    assert world.admitted[1].cached_tokens == 0
    assert (
        world.admitted[2].cached_tokens == 28
    )  # whole blocks, and at least one token is processed
    assert world.delivered[1] == world.delivered[2] == expected(prompt, 8)
    world.check_idle()


def test_siblings_share_the_prompt() -> None:
    world = World("accelgen")
    prompt = prompt_of(33)
    world.submit(1, prompt, siblings=[2, 3, 4], seed=5)
    world.run()
    for i, id in enumerate([1, 2, 3, 4]):
        assert world.delivered[id] == expected(prompt, 8, seed=5 + i)
    assert world.workers[0].processed < 33 + 4 * 9  # the prompt once, not four times
    world.check_idle()


def test_siblings_of_an_aborted_request_go_on_alone() -> None:
    world = World("sarathi", params={"chunk_size": 4})
    world.submit(1, prompt_of(40), siblings=[2, 3])
    world.abort([1], at_s=0.012)
    world.run()
    assert world.ended == {1: Reason.ABORTED, 2: Reason.LENGTH, 3: Reason.LENGTH}
    assert world.delivered[2] == expected(prompt_of(40), 8, seed=1)
    world.check_idle()


def test_plans_run_one_ahead_and_never_two() -> None:
    world = World("sarathi")
    for id in range(1, 5):
        world.submit(id, prompt_of(8, id), max_tokens=20)
    deepest = 0
    for _ in range(200):
        world.run(until_s=world.now_s + 0.001)
        world.now_s += 0.001
        deepest = max(deepest, len(world.core.replicas[0].flights))
    assert deepest == 2  # one at the worker, one ahead
    world.run()
    world.check_idle()


def test_queue_bounds_refuse_with_reason_and_time() -> None:
    world = World("vllm", max_queued_requests=2, max_num_seqs=1)
    for id in range(1, 6):
        world.submit(id, prompt_of(8, id), at_s=0.001 * id)
    world.run()
    refused = [id for id, reason in world.ended.items() if reason is Reason.REFUSED_SATURATED]
    assert refused == [4, 5]
    world.check_idle()


def test_a_request_that_can_never_fit_is_refused_with_numbers() -> None:
    world = World(blocks=16, block_size=4)
    world.submit(1, prompt_of(60), max_tokens=5)
    world.run()
    assert world.ended == {1: Reason.REFUSED_TOO_LONG}


def test_waiting_too_long_expires() -> None:
    world = World("vllm", max_num_seqs=1)
    world.submit(1, prompt_of(4), max_tokens=50)
    world.submit(2, prompt_of(4), slo_class="impatient")
    from accelgen.proto.config import SloClass

    world.core.config.slo_classes["impatient"] = SloClass(max_queue_ms=100)
    world.run()
    assert world.ended == {1: Reason.LENGTH, 2: Reason.REFUSED_EXPIRED}
    world.check_idle()


def test_replicas_share_the_load() -> None:
    world = World("sarathi", replicas=2)
    for id in range(1, 9):
        world.submit(id, prompt_of(12, id))
    world.run()
    assert all(worker.processed > 40 for worker in world.workers)
    world.check_idle()


def test_two_small_choices_of_the_same_prompt_with_one_token() -> None:
    world = World("accelgen")
    world.submit(1, [5], siblings=[2])
    world.run()
    assert world.delivered[2] == expected([5], 8, seed=1)
    world.check_idle()


def test_a_preempted_request_keeps_what_nobody_took() -> None:
    """19 blocks: request 1 needs its twelfth when both hold all. Request 2 goes, and loses only the block taken."""
    world = World("sarathi", blocks=19, block_size=4)
    world.submit(1, prompt_of(40, 1), max_tokens=6)
    world.submit(2, prompt_of(28, 2), max_tokens=12, at_s=0.0001)
    world.run()
    assert world.delivered[2] == expected(prompt_of(28, 2), 12)
    [resumed] = [i for i, plan in enumerate(world.plans) if plan.preempt]
    starts = [
        plan.starts[plan.ids.index(2)] for plan in world.plans[resumed + 1 :] if 2 in plan.ids
    ]
    assert starts[0] == 28
    world.check_idle()


def test_a_failed_request_leaves_nothing_in_the_prefix_cache() -> None:
    """The worker says that it could not compute request 1; request 2 has the same prompt and must not read its KV."""
    world = World("sarathi")
    prompt = prompt_of(32)
    world.workers[0].fails = {1}
    world.submit(1, prompt, at_s=0.0)
    world.submit(2, prompt, at_s=1.0)
    world.run()
    assert world.ended == {1: Reason.FAILED, 2: Reason.LENGTH}
    assert world.admitted[2].cached_tokens == 0
    assert world.delivered[2] == expected(prompt, 8)
    world.check_idle()


def test_a_request_that_fails_says_nothing_of_lengths() -> None:
    """It ended with the device's trouble, not with its answer."""
    world = World(blocks=64)
    world.submit(1, [1] * 9, max_tokens=40)
    world.submit(2, [2] * 9, max_tokens=6)
    world.run(until_s=0.03)
    world.workers[0].fails = {1}
    world.run()
    assert world.ended == {1: Reason.FAILED, 2: Reason.LENGTH}
    assert isinstance(world.core.predictor, ClassMedian)
    assert world.core.predictor.learnt().outputs == {"standard": [6]}


def test_choices_were_queued_as_long_as_the_prompt_that_they_share() -> None:
    """Not as long as they lived: who forks is planned with its prompt."""
    world = World(blocks=64)
    world.submit(1, prompt_of(20, 1), max_tokens=30, siblings=[2, 3])
    world.run()
    assert set(world.ended) == {1, 2, 3}
    assert world.queue_s[1] == world.queue_s[2] == world.queue_s[3] < 0.01
