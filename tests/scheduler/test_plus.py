"""The parts of accelgen-plus against brute force and what was put in."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from scene import Scene

from accelgen.proto.config import Config
from accelgen.proto.messages import Objective, Reason
from accelgen.scheduler.cost_model import Coefficients, CostModel, Work, evaluate, with_prompt
from accelgen.scheduler.plus import claims
from accelgen.scheduler.plus.price import LEAST, SHARE, Arrivals
from accelgen.scheduler.plus.shedding import keepable
from accelgen.scheduler.plus.timing import Fitted, Timing
from accelgen.scheduler.policies.accelgen_plus import AccelGenPlus
from accelgen.scheduler.policy import UnknownPolicy, load_policy
from accelgen.scheduler.table import Floats
from accelgen.simulator.device import Device
from accelgen.simulator.run import Run, Simulation
from accelgen.simulator.workload import Arrival, Workload

MODEL = Coefficients(a=9e-3, b=4e-5, b2=3e-5, c=1e-6, d=1e-8, e=1e-9, knee=64)


def most_in_time(jobs: list[tuple[float, float]]) -> int:
    """By trying all orders: the most jobs (time, deadline) that one machine can finish in time."""
    best = 0
    for order in permutations(jobs):
        at, done = 0.0, 0
        for take, due in order:
            if at + take <= due:
                at, done = at + take, done + 1
        best = max(best, done)
    return best


@given(
    st.lists(
        st.tuples(st.integers(1, 20).map(lambda n: n / 4), st.integers(1, 60).map(lambda n: n / 4)),
        min_size=1,
        max_size=6,
    )
)
def test_as_many_are_kept_as_by_any_order(jobs: list[tuple[float, float]]) -> None:
    jobs.sort(key=lambda job: job[1])
    takes, dues = np.array([t for t, _ in jobs]), np.array([d for _, d in jobs])
    kept = keepable(takes, dues, 0.0)
    assert (np.cumsum(takes[kept]) <= dues[kept]).all()  # in the order of deadlines
    assert kept.sum() == most_in_time(jobs)


def test_the_longest_is_given_up_first() -> None:
    kept = keepable(np.array([3.0, 1.0, 1.0]), np.array([3.0, 3.5, 4.0]), 0.0)
    assert kept.tolist() == [False, True, True]


def works() -> list[Work]:
    source = np.random.default_rng(3)
    return [
        Work(int(p), int(d), int(d) * 300, float(p) * float(p) / 2)
        for p, d in zip(source.integers(0, 2000, 400), source.integers(1, 64, 400), strict=True)
    ]


def test_host_time_and_speed_are_told_apart() -> None:
    """Iterations take 3 ms of the host and 1.25 times the model's time: a factor alone cannot say that."""
    cost, timing = CostModel(MODEL), Timing()
    for work in works():
        run_s = 0.003 + 1.25 * evaluate(MODEL, work)
        cost.observe(work, run_s)
        timing = timing.hear(work, run_s).told(cost)
    fitted = timing.fitted(cost)
    assert fitted.host_s == pytest.approx(0.003, rel=0.05)
    assert fitted.slope == pytest.approx(1.25, rel=0.01)
    assert fitted.spread_s < 2e-4
    small = Work(0, 1, 300, 0.0)
    real_s = 0.003 + 1.25 * evaluate(MODEL, small)
    assert abs(fitted.seconds(small) - real_s) < 0.2 * abs(cost.predict(small) - real_s)


def test_without_iterations_the_cost_model_speaks() -> None:
    cost = CostModel(MODEL)
    fitted = Timing().fitted(cost)
    work = Work(500, 10, 3000, 500.0 * 250)
    assert fitted.seconds(work) == pytest.approx(cost.predict(work))
    assert Fitted.of(cost).seconds(work) == pytest.approx(cost.predict_upper(work))


@given(st.integers(0, 40), st.floats(0.001, 0.3), st.integers(0, 5000))
def test_a_batch_is_filled_to_the_last_token(decodes: int, limit_s: float, prior: int) -> None:
    fitted, work = Fitted(MODEL, 0.002, 1.1, 0.0), Work(0, decodes, 100 * decodes, 0.0)
    tokens = fitted.tokens_within(limit_s, work, prior, 4000)
    if tokens:
        assert fitted.seconds(with_prompt(work, tokens, prior)) <= limit_s
    if tokens < 4000:
        assert fitted.seconds(with_prompt(work, tokens + 1, prior)) > limit_s


@pytest.mark.parametrize("e2e_s", [None, 30.0])
def test_drafts_in_flight_are_no_tokens_yet(e2e_s: float | None) -> None:
    """Four of them, at 0.2 s a token, would put the next deadline off by 0.8 s, though none may be accepted."""
    due_s = []
    for drafts in (0, 4):
        scene = Scene(AccelGenPlus(), 100)
        slot = scene.running(40, 40, last_s=1.0, e2e_s=e2e_s)
        one = np.array([slot])
        scene.table.plan(one, np.array([1]), 1.1, np.array([drafts]))
        due_s.append(claims.due_s(scene.table, one, False, 0.05)[0])
    assert due_s[0] == due_s[1]


@pytest.mark.parametrize("drafts", [0, 4])
def test_nobody_has_missed_what_drafts_in_flight_may_keep(drafts: int) -> None:
    """10 ms a token where an iteration takes 10.1 ms: without drafts the third token is late for good."""
    scene = Scene(AccelGenPlus(), 100)
    slot = scene.running(40, 40, last_s=1.0, ttft_s=1.0, tpot_s=0.01)
    scene.table.plan(np.array([slot]), np.array([1]), 1.01, np.array([drafts]))
    scene.plan(1.0101)
    assert scene.state.missed == ({1} if not drafts else set())


@pytest.mark.parametrize("blocks", [0, 1])
def test_nobody_gives_way_to_a_decode_that_has_no_token(blocks: int) -> None:
    """Three decodes, a batch of two tokens: the third one, which needs a block, is not in it."""
    scene = Scene(AccelGenPlus(), blocks, tokens=2)
    first = [scene.running(40, 40, at_s=at_s, last_s=1.0 + at_s) for at_s in (0.0, 0.1)]
    scene.running(48, 48, at_s=0.2, last_s=1.2)
    assert scene.plan(1.3) == dict.fromkeys(first, 1)
    assert scene.preempted == []


def told(at_s: Floats, load_s: Floats) -> Arrivals:
    """Of arrivals that want their first token within a second."""
    return Arrivals().note(at_s, load_s, np.ones(len(at_s)))


def test_a_price_only_while_there_is_too_little() -> None:
    """One arrival per second: ten small ones of 0.3 s and ten large ones of 3 s."""
    light = told(np.arange(20.0), np.full(20, 0.5))
    assert light.price(20.0) == np.inf
    loads = np.tile([0.3, 3.0], 10)
    heavy = told(np.arange(20.0), loads)
    # All small ones (3 s) and five large ones (15 s) are what 0.9 of 20 s can serve.
    assert SHARE == 0.9 and heavy.price(20.0) == 3.0
    heavier = told(np.arange(20.0) / 10, loads)  # ten times as fast: not even all small
    assert heavier.price(2.0) == 0.3
    few = told(np.arange(float(LEAST - 1)), np.full(LEAST - 1, 9.0))
    assert few.price(float(LEAST)) == np.inf


def test_an_arrival_is_counted_once() -> None:
    at_s, load_s = np.array([1.0, 2.0]), np.array([0.1, 0.2])
    seen = Arrivals().note(at_s, load_s, load_s)
    assert seen.note(at_s, load_s, load_s) is seen
    more = np.array([0.2, 0.3])
    again = seen.note(np.array([2.0, 3.0]), more, more)
    assert again.at_s == (1.0, 2.0, 3.0)
    assert again.load_s == again.ttft_s == (0.1, 0.2, 0.3)


def test_the_tightest_tenth_says_how_long_one_may_wait() -> None:
    assert Arrivals().tight_s() == np.inf
    ttft_s = np.array([9.0, 0.1, *[0.4] * 8])
    ten = Arrivals().note(np.arange(10.0), np.ones(10), ttft_s)
    assert ten.tight_s() == 0.4
    twenty = ten.note(np.arange(10.0, 20.0), np.ones(10), ttft_s)
    assert twenty.tight_s() == 0.4  # two of twenty are tighter, and no more than that
    assert twenty.note(np.array([20.0]), np.ones(1), np.array([0.2])).tight_s() == 0.2


def test_objectives_that_cannot_be_kept_slow_nobody_down() -> None:
    """A prompt of 6,000 tokens runs in two iterations, also where half of all want their first token at once."""
    goal, hopeless = Objective(ttft_s=5.0, tpot_s=0.1), Objective(ttft_s=0.001, tpot_s=0.1)
    some = [Arrival(float(i), 20, 2, (goal, hopeless)[i % 2]) for i in range(20)]
    arrivals = [*some, Arrival(30.0, 6000, 2, goal)]
    fates = simulated(arrivals, {}).fates
    alone = simulated(arrivals[-1:], {}).fates
    took_s = fates[-1].token_s[0] - 30.0
    assert took_s == pytest.approx(alone[0].token_s[0] - 30.0, rel=0.01)


def simulated(
    arrivals: list[Arrival], params: dict[str, object], model: Coefficients = MODEL
) -> Run:
    """On a device whose iterations take 9 ms and 70 microseconds for each token, that has room for all."""
    device = Device("quick", "", model, kv_token_bytes=1, kv_bytes=200_000)
    config = Config(kv_blocks=10_000, max_num_batched_tokens=8192, max_model_len=8192)
    policy = load_policy("accelgen-plus", params)
    return Simulation(policy, Workload("some", arrivals), device, config).go()


def test_prompts_do_not_wait_for_decodes_that_take_longer_than_one_may_wait() -> None:
    """Found by a review: an iteration of some 70 decodes takes 45 ms, a third of the tight objectives is 33."""
    tight, loose = Objective(ttft_s=0.1, tpot_s=0.2), Objective(ttft_s=2.0, tpot_s=0.2)
    arrivals = [Arrival(0.1 * i, 50, 160, (loose, tight)[i % 8 == 0]) for i in range(200)]
    fates = simulated(arrivals, {}, structs.replace(MODEL, c=5e-4)).fates
    waits_s = [fate.token_s[0] - one.at_s for fate, one in zip(fates, arrivals, strict=True)]
    assert max(waits_s) < 0.3


@pytest.mark.parametrize("brief", [True, False])
def test_nobody_waits_behind_an_iteration_that_is_longer_than_first_tokens_may_take(
    brief: bool,
) -> None:
    """A prompt of 6,000 tokens, 0.4 s long, comes when nobody decodes, and a short one while it is computed."""
    goal, late = Objective(ttft_s=0.12, tpot_s=0.1), Objective(ttft_s=5.0, tpot_s=0.1)
    short = [Arrival(float(i), 20, 2, goal) for i in range(10)]
    arrivals = [*short, Arrival(20.0, 6000, 2, late), Arrival(20.05, 20, 2, goal)]
    run = simulated(arrivals, {"brief": brief})
    waits_s = [fate.token_s[0] - one.at_s for fate, one in zip(run.fates, arrivals, strict=True)]
    assert all(wait_s < 0.12 for wait_s in waits_s[:10]) and waits_s[10] < 5
    assert (waits_s[11] < 0.12) == brief


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"pace": "fast"}, "pace: 'fast', must be one of cumulative, every_gap"),
        ({"headroom": -1}, "headroom: -1, must be at least 0"),
        ({"longest_s": float("nan")}, "longest_s: nan s, must be at least 0"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], words: str) -> None:
    with pytest.raises(UnknownPolicy, match=words):
        load_policy("accelgen-plus", params)
    assert load_policy("accelgen-plus", {}).name == AccelGenPlus.name


def test_a_device_slower_than_any_limit_goes_on() -> None:
    """An iteration takes a second, `longest_s` is half of one: a chunk at a time."""
    slow = Device("slow", "", structs.replace(MODEL, a=1.0), kv_token_bytes=1, kv_bytes=2000)
    config = Config(kv_blocks=64, max_num_seqs=4)
    arrivals = [Arrival(0.1 * i, 50, 3, Objective(ttft_s=0.5, tpot_s=0.05)) for i in range(3)]
    run = Simulation(
        load_policy("accelgen-plus", {}), Workload("slow", arrivals), slow, config
    ).go()
    assert [fate.end for fate in run.fates] == [Reason.LENGTH] * 3
