"""SlidingServe's parts: two iterations together against greed, the knapsack against all subsets, the order."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scene import Scene

from accelgen.scheduler.cost_model import Coefficients, CostModel
from accelgen.scheduler.policies.slidingserve import LOST_S, SlidingServe
from accelgen.scheduler.policies.two_steps import Backlog, TwoSteps, first_chunk, knapsack

# 10 ms, then 0.01 ms per token up to 1000, beyond that 0.11 ms
KNEE = Coefficients(a=0.01, b=1e-5, b2=1e-4, c=0.0, d=0.0, e=0.0, knee=1000.0)


def together(steps: TwoSteps, first: int, next_slack_s: float) -> int:
    """Tokens of both iterations if the first one has `first`."""
    second = 0
    while (
        first + second < steps.backlog.tokens
        and steps.first_s(first) + steps.second_s(first, second + 1) <= next_slack_s
    ):
        second += 1
    return first + second


def greedy(steps: TwoSteps, slack_s: float, next_slack_s: float) -> int:
    """As much now as the slack allows."""
    first = 0
    while first < steps.backlog.tokens and steps.first_s(first + 1) <= slack_s:
        if steps.first_s(first + 1) + steps.second_s(first + 1, 0) > next_slack_s:
            break
        first += 1
    return first


def test_attention_work_of_a_backlog() -> None:
    backlog = Backlog(np.array([100, 50]), np.array([10, 0]))
    assert backlog.tokens == 150
    assert backlog.work(60) == 60 * (10 + 30)
    assert backlog.work(100) == 100 * (10 + 50)
    assert backlog.work(130) == 100 * 60 + 30 * 15


def test_two_steps_beat_greed() -> None:
    """90 ms now, 105 ms for both iterations (a decode with slack now, another one that is due soon again).

    Greed takes 90 = 10 + 0.01 n + 0.1 (n - 1000): 1636 tokens, which leaves 15 ms for about 500 more.
    Tokens below the knee are almost free: twice 10 + 0.01 n + 0.1 (n - 1000) = 52.5 is 1295 each, 2590 together."""
    pending, prior = np.array([1500, 1500]), np.array([0, 0])
    steps = TwoSteps(CostModel(KNEE), Backlog(pending, prior), 0, 200)
    greed = greedy(steps, 0.09, 0.105)
    assert greed == 1636 and together(steps, greed, 0.105) == 1636 + 503  # 1636 end a bit earlier
    chosen = first_chunk(steps, 0.09, 0.105, 2552, 1)
    assert chosen is not None and 1000 <= chosen < greed
    assert together(steps, chosen, 0.105) in (2589, 2590)


@settings(max_examples=60, deadline=None)
@given(
    a=st.floats(0.001, 0.02), b=st.floats(1e-6, 1e-4), e=st.floats(0, 1e-7), knee=st.integers(1, 300),
    pending=st.lists(st.integers(1, 800), min_size=1, max_size=5), slack_s=st.floats(0.001, 0.2),
    more_s=st.floats(0.001, 0.2),
)  # fmt: skip
def test_never_worse_than_greed_and_always_in_time(
    a: float, b: float, e: float, knee: int, pending: list[int], slack_s: float, more_s: float
) -> None:
    cost = CostModel(Coefficients(a, b, b, 0.0, 0.0, e, float(knee)))
    steps = TwoSteps(cost, Backlog(np.array(pending), np.zeros(len(pending))), 4, 400)
    next_s = slack_s + more_s
    chosen = first_chunk(steps, slack_s, next_s, 10_000, 1)
    if chosen is None:
        assert steps.first_s(0) > slack_s or steps.first_s(0) + steps.second_s(0, 0) > next_s
        return
    assert steps.first_s(chosen) <= slack_s
    greed = greedy(steps, slack_s, next_s)
    assert together(steps, chosen, next_s) >= together(steps, greed, next_s)


def test_without_slack_there_is_no_choice() -> None:
    steps = TwoSteps(CostModel(KNEE), Backlog(np.array([100]), np.array([0])), 2, 200)
    assert first_chunk(steps, 0.001, 1.0, 2552, 32) is None
    assert first_chunk(steps, 0.5, 0.02, 2552, 32) is None
    assert first_chunk(steps, 0.5, 1.0, 2552, 32) == 100


@given(weights=st.lists(st.integers(1, 128), min_size=1, max_size=8), capacity=st.integers(1, 128))
def test_the_knapsack_takes_as_many_as_any_subset(weights: list[int], capacity: int) -> None:
    chosen = knapsack(np.array(weights) / capacity * 1.0, 1.0)
    scaled = np.ceil(np.array(weights) / capacity * 128)
    assert scaled[chosen].sum() <= 128
    most = max(
        n
        for n in range(len(weights) + 1)
        if any(sum(c) <= 128 for c in combinations(scaled.tolist(), n))
    )
    assert chosen.sum() == most


def test_order_by_urgency_then_remaining_work() -> None:
    """Slack beyond the prefill is 4.94 and 4.95 s, the same whole second: there the shorter one goes first."""
    scene = Scene(SlidingServe(urgency_s=1.0), blocks=1000)
    longer, shorter = scene.waiting(500, ttft_s=5.0), scene.waiting(400, ttft_s=5.0)
    urgent = scene.waiting(900, ttft_s=2.0)
    assert list(scene.plan()) == [urgent, shorter, longer]


def test_what_is_lost_comes_last_and_stays_there() -> None:
    scene = Scene(SlidingServe(), blocks=1000, tokens=200)
    lost, kept = scene.waiting(900, ttft_s=0.05), scene.waiting(150, ttft_s=60.0)
    assert scene.plan() == {kept: 150, lost: 50}
    scene.table.length[kept] += 100
    assert scene.plan() == {kept: 200}
    assert scene.requeued == [lost] and scene.state.ids == {1}
    assert scene.table.key[lost] > LOST_S


def test_the_knapsack_saves_most_when_not_all_can_be() -> None:
    """At 8500 tokens/s the most urgent prompt takes 1 s; after it one of two short ones would be late: both go first,
    since two of them end within 1.05 s, but not it and one of them."""
    scene = Scene(SlidingServe(), blocks=2000, tokens=100_000)
    long = scene.waiting(8500, ttft_s=1.3)
    short = [scene.waiting(850, ttft_s=1.05), scene.waiting(850, ttft_s=1.06)]
    assert list(scene.plan())[:2] == short
    scene.table.first_due_s[short] = 60.0
    assert next(iter(scene.plan())) == long


def test_decodes_are_kept_in_time() -> None:
    """Due at 5 + 2 * 0.05 s, the next at + 0.05 s: at 5.06 s 40 ms now and 90 ms for both."""
    scene = Scene(SlidingServe(step=1), blocks=1000)
    decode = scene.running(32, 32, last_s=4.0, tpot_s=0.05)
    prompt = scene.waiting(4000, ttft_s=60.0)
    taken = scene.plan(5.06)
    assert taken[decode] == 1
    assert 0.01 + 1e-4 * (1 + taken[prompt]) <= 0.04
    assert scene.plan(5.2) == {decode: 1, prompt: 127}  # too late already: 128 tokens
