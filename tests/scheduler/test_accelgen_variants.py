"""AccelGen's variants: the calibrated budget, each ablation against the whole, the adaptive one's two rules."""

from __future__ import annotations

import pytest
from scene import Scene

from accelgen.scheduler.cost_model import Coefficients, Work
from accelgen.scheduler.policies.accelgen import AccelGen
from accelgen.scheduler.policies.accelgen_ablations import NoBatching, NoChunking, NoOrdering
from accelgen.scheduler.policies.accelgen_adaptive import AccelGenAdaptive, Learned, Size
from accelgen.scheduler.policies.accelgen_calibrated import AccelGenCalibrated
from accelgen.scheduler.policy import StepStats

# --- calibrated ------------------------------------------------------------------------------------------------------


def test_the_budget_is_what_the_fitted_model_does_in_time() -> None:
    """50 ms = 10 ms + 0.1 ms per token: 400 tokens, one of them the decode. The literal line through the origin, with a
    pivot of 100 tokens in 20 ms, gives 250."""
    for policy, expected in ((AccelGenCalibrated(100), 399), (AccelGen(pivot_tokens=100), 249)):
        scene = Scene(policy, blocks=1000)
        decode = scene.running(32, 32, tpot_s=0.05)
        long = scene.waiting(2000)
        assert scene.plan() == {decode: 1, long: expected}


def test_the_budget_knows_contexts_and_the_place_in_the_prompt() -> None:
    """1 us per context token: 1600 tokens of the decode take 1.6 ms. 0.1 us for each pair of tokens in the prompt: n
    tokens after 1000 take 0.1 n + 1e-4 n (1000 + n / 2) ms; 38.3 ms are left for them."""
    cost = Coefficients(a=0.01, b=1e-4, b2=0.0, c=0.0, d=1e-6, e=1e-7, knee=1.0)
    scene = Scene(AccelGenCalibrated(), blocks=1000, cost=cost)
    decode = scene.running(1600, 1600, tpot_s=0.05)
    begun = scene.running(4000, 1000)
    n = scene.plan()[begun]
    fits = [0.1 * m + 1e-4 * m * (1000 + m / 2) <= 50 - 10 - 0.1 - 1.6 for m in (n, n + 1)]
    assert fits == [True, False] and decode in scene.plan()


# --- ablations -------------------------------------------------------------------------------------------------------


def test_each_ablation_changes_exactly_its_part() -> None:
    def changed(kind: type) -> set[str]:
        return {name for name, value in vars(kind).items() if callable(value)}

    assert changed(NoChunking) == {"_budget"}
    assert changed(NoOrdering) == {"_rank_s", "order_key"}
    assert changed(NoBatching) == {"_fill", "_may_take"}
    for kind in (NoChunking, NoOrdering, NoBatching):
        assert kind.__mro__[1] is AccelGen


def test_without_chunking_a_long_prompt_is_processed_whole() -> None:
    for policy, expected in ((AccelGen(pivot_tokens=100), 249), (NoChunking(), 2000)):
        scene = Scene(policy, blocks=1000)
        decode = scene.running(32, 32, tpot_s=0.05)
        long = scene.waiting(2000)
        assert scene.plan() == {decode: 1, long: expected}


def test_without_chunking_the_engine_still_cuts_at_its_limit() -> None:
    scene = Scene(NoChunking(), blocks=1000, tokens=1500)
    long = scene.waiting(2000)
    assert scene.step() == {long: 1500}
    assert scene.step() == {long: 500}


def test_without_ordering_who_came_first_goes_first() -> None:
    """Room for one: the prompt that came earlier, not the one that must start now."""
    for policy, first in ((AccelGen(pivot_tokens=100), 1), (NoOrdering(pivot_tokens=100), 0)):
        scene = Scene(policy, blocks=6)
        slots = [scene.waiting(80, ttft_s=90.0, at_s=0.0), scene.waiting(80, ttft_s=2.03, at_s=1.0)]
        assert scene.rank(slots) == [slots[first], slots[1 - first]]
        assert list(scene.plan(3.0)) == [slots[first]]


def test_without_ordering_nobody_is_preempted_for_an_urgent_one() -> None:
    for policy, victims in ((AccelGen(pivot_tokens=100), [0]), (NoOrdering(pivot_tokens=100), [])):
        scene = Scene(policy, blocks=2, seats=8)
        scene.running(64, 64, tpot_s=60.0)
        scene.waiting(80, ttft_s=0.03, at_s=0.5)
        scene.plan(0.5)
        assert scene.preempted == victims


def test_without_multi_resource_batching_the_order_alone_decides() -> None:
    """Left are 250 tokens and 14 blocks; the whole takes the prompt of 200 first, whose demand is nearest to both; in
    the order of T_r the one of 30 comes first, and both 30 and 100 are taken before there are too few blocks."""
    for kind, expected in ((AccelGen, [200]), (NoBatching, [30, 100])):
        scene = Scene(kind(pivot_tokens=100), blocks=14)
        scene.running(20, 20, tpot_s=0.05)
        prompts = {scene.waiting(n, ttft_s=5.0 + n / 1000): n for n in (30, 100, 200)}
        taken = scene.plan()
        assert [n for slot, n in prompts.items() if slot in taken] == expected


def test_without_multi_resource_batching_the_first_that_does_not_fit_ends_it_for_new_ones() -> None:
    for kind, count in ((AccelGen, 2), (NoBatching, 1)):
        scene = Scene(kind(pivot_tokens=100), blocks=9)
        decode = scene.running(20, 20, tpot_s=0.2, last_s=1.0)
        scene.waiting(240, ttft_s=3.0)  # 15 blocks
        scene.waiting(30, ttft_s=3.1)
        assert len(scene.plan(1.0)) == count and decode in scene.plan(1.0)


# --- adaptive --------------------------------------------------------------------------------------------------------


def feed(
    policy: AccelGenAdaptive, state: Learned, tokens: int, run_s: float, times: int
) -> Learned:
    for _ in range(times):
        state = policy.observe(StepStats(run_s, [], 0, 0, [], Work(prefill_tokens=tokens)), state)
    return state


def test_the_pivot_is_learnt_from_iterations() -> None:
    """20 ms up to 500 tokens, then 0.04 ms per token: 500 and 1000 tokens have the same throughput, 300 only 60 % of
    it, 430 just 86 %."""
    policy = AccelGenAdaptive()
    scene = Scene(policy)
    fitted = scene.view.cost.pivot(8192)
    state = policy.initial()
    for tokens in (300, 1000):
        state = feed(policy, state, tokens, max(0.02, tokens * 4e-5), 8)
    assert policy._pivot(scene.view, state) == fitted  # two sizes are too few
    state = feed(policy, state, 500, 0.02, 7)
    assert policy._pivot(scene.view, state) == fitted  # and seven iterations
    state = feed(policy, state, 500, 0.02, 1)
    assert policy._pivot(scene.view, state) == (500, pytest.approx(0.02))
    state = feed(policy, state, 430, 0.02, 8)
    assert policy._pivot(scene.view, state)[0] == 430


def test_the_pivot_follows_a_device_that_changes() -> None:
    policy = AccelGenAdaptive()
    state = policy.initial()
    for run_s in (0.02, 0.06):
        for tokens in (100, 300, 900):
            state = feed(policy, state, tokens, run_s, 60)
    assert policy._pivot(Scene(policy).view, state) == (900, pytest.approx(0.06, rel=0.01))
    assert all(isinstance(size, Size) for size in state.sizes.values())


def overtaking(blocks: int, first_ttft_s: float, second_ttft_s: float) -> tuple[Scene, int, int]:
    """A prompt of 4000 tokens in progress, of which 1000 are done, and another one of 2000. Iterations take 50 ms and
    a decode with a TPOT of 50 ms allows 250 tokens: 12 iterations for the first, 8 for the second."""
    policy = AccelGenAdaptive(pivot_tokens=100)
    scene = Scene(policy, blocks=blocks)
    scene.state = Learned(runs_s=(0.05,), mean_s=0.05, chunk=250.0)
    scene.running(32, 32, tpot_s=0.05)
    begun = scene.running(4000, 1000, ttft_s=first_ttft_s)
    return scene, begun, scene.waiting(2000, ttft_s=second_ttft_s)


def test_a_long_prompt_gives_way_to_one_that_would_be_late() -> None:
    """T_r of the new one is 0.9 - 8 * 0.05 = 0.5 s, less than the 0.6 s that the other one still takes, which can wait
    for 8 iterations; its KV stays, since there are blocks for both."""
    scene, begun, new = overtaking(1000, 60.0, 0.9)
    taken = scene.plan()
    assert taken[new] == 249 and begun not in taken and not scene.preempted


def test_a_long_prompt_goes_on_if_it_cannot_afford_to_wait_or_nobody_is_late() -> None:
    for first_ttft_s, second_ttft_s in ((0.9, 0.9), (60.0, 30.0)):
        scene, begun, new = overtaking(1000, first_ttft_s, second_ttft_s)
        taken = scene.plan()
        assert taken[begun] == 249 and new not in taken


def test_its_kv_is_dropped_if_it_can_afford_the_recomputation() -> None:
    """Blocks for one of them only. To compute 1000 tokens again takes 0.2 s at the pivot's 100 tokens in 20 ms."""
    scene, begun, new = overtaking(190, 60.0, 0.9)
    assert scene.plan()[new] == 249
    assert scene.preempted == [begun]
    # 1.1 s - 12 * 0.05 s = 0.5 s: enough to wait for 8 iterations, not for the recomputation, too
    scene, begun, new = overtaking(190, 1.1, 0.9)
    assert scene.plan()[begun] == 249
    assert scene.preempted == []
