"""AccelGen's rules one by one, with numbers worked out by hand, and its batching against a literal, slow version."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import LINEAR, Scene, request

from accelgen.proto.messages import Objective
from accelgen.scheduler.cost_model import Coefficients, CostModel, Work, evaluate, fit
from accelgen.scheduler.policies.accelgen import AccelGen
from accelgen.scheduler.policies.distance import Contest, take_nearest
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.policies.slack import Pace, slack


def test_budget_is_pivot_times_tightest_objective() -> None:
    """S_b = S_pf * SLO_min / T_pf: pivot 100 tokens take 0.01 + 100 * 0.0001 = 0.02 s; a decode with TPOT 0.05 s in the
    batch gives 100 * 0.05 / 0.02 = 250 tokens: 1 for the decode, 249 for the long prompt."""
    scene = Scene(AccelGen(pivot_tokens=100))
    decode = scene.running(32, 32, tpot_s=0.05)
    long = scene.waiting(1000)
    taken = scene.plan()
    assert taken == {decode: 1, long: 249}


def test_pivot_of_the_published_model() -> None:
    """The fit for OPT-13B on A100 (simulator/device.py) gives a pivot near the 768 tokens of the paper."""
    opt = Coefficients(19.036e-3, 0.029339e-3, 0.059412e-3, 0.0056947e-3, 0.71393e-6, 4.2416e-9, 96)
    size, seconds = CostModel(opt).pivot(8192)
    assert 680 <= size <= 860
    assert seconds == pytest.approx(evaluate(opt, Work(prefill_tokens=size)))


def test_remaining_time_of_a_prompt_and_of_a_decode() -> None:
    """T_r = objective - waited - iterations * longest iteration."""
    scene = Scene(AccelGen(pivot_tokens=100))
    prompt = scene.waiting(1000, ttft_s=5.0)
    decode = scene.running(32, 32, tpot_s=0.2, last_s=1.0)
    pace = Pace(chunk=300, longest_s=0.1, mean_s=0.05, preempted=0.0)
    times = slack(scene.table, np.array([prompt, decode]), 1.05, pace)
    assert times.remaining_s == pytest.approx([5.0 - 1.05 - 4 * 0.1, 1.2 - 1.05 - 0.1])
    assert times.iterations.tolist() == [4, 1]


def test_remaining_time_with_a_completion_objective() -> None:
    """Waiting time left = deadline - predicted execution, spread over the iterations to come."""
    scene = Scene(AccelGen(pivot_tokens=100))
    slot = scene.table.add(request(9, 600, Objective(e2e_s=20.0)), 0.0)
    scene.table.predicted_output[slot] = 50
    pace = Pace(chunk=300, longest_s=0.1, mean_s=0.05, preempted=0.5)
    rounds = 2 + 50
    expected = (20.0 - 3.0 - rounds * 0.05 * 1.5) / rounds
    assert slack(scene.table, np.array([slot]), 3.0, pace).remaining_s == pytest.approx([expected])


def test_exclusive_allocation_finishes_the_long_prompt_first() -> None:
    scene = Scene(AccelGen(pivot_tokens=100), blocks=1000)
    begun = scene.running(4000, 400)
    scene.waiting(4000)
    decode = scene.running(32, 32, tpot_s=0.05)
    taken = scene.plan()
    assert taken == {begun: 249, decode: 1}


def test_urgent_first_and_the_largest_remaining_time_is_preempted() -> None:
    """Six blocks: a decode with much time holds four. The waiting prompt of 80 tokens must start now or be late."""
    scene = Scene(AccelGen(pivot_tokens=100), blocks=2, seats=8)
    relaxed = scene.running(64, 64, tpot_s=60.0)
    urgent = scene.waiting(80, ttft_s=0.03)
    taken = scene.plan()
    assert scene.preempted == [relaxed]
    assert taken == {urgent: 80}


def test_resources_do_not_idle_beyond_the_window() -> None:
    """A prompt whose T_r is far from the head's is still taken when there is room."""
    scene = Scene(AccelGen(pivot_tokens=100))
    decode = scene.running(32, 32, tpot_s=0.2)
    far = scene.waiting(64, ttft_s=60.0)
    assert scene.plan() == {decode: 1, far: 64}


def naive(batch: Batch, contest: Contest) -> list[tuple[int, int]]:
    """The third to fifth step of AccelGen's batching, one candidate at a time."""
    taken = []
    alive = list(range(len(contest.slots)))
    while batch.tokens > 0 and alive:
        best, best_square, best_chunk = -1, float("inf"), 0
        for i in alive:
            slot, running = int(contest.slots[i]), bool(contest.running[i])
            if not running and not batch.admits(slot):
                continue
            count = batch.pending(slot)
            if contest.cut[i]:
                count = batch.largest_chunk(slot, count)
            blocks = batch.block_demand(slot, count)
            if count < 1 or count > batch.tokens or blocks > batch.blocks:
                continue
            square = ((batch.tokens - count) / contest.tokens_unit) ** 2
            square += ((batch.blocks - blocks) / contest.blocks_unit) ** 2
            if square < best_square:
                best, best_square, best_chunk = i, square, count
        if best < 0:
            break
        batch.take(int(contest.slots[best]), best_chunk)
        taken.append((int(contest.slots[best]), best_chunk))
        alive.remove(best)
        if contest.cut[best] and not contest.running[best]:
            alive = [i for i in alive if not contest.cut[i] or contest.running[i]]
    return taken


@given(
    blocks=st.integers(0, 60),
    tokens=st.integers(1, 300),
    seats=st.integers(1, 12),
    decodes=st.lists(st.integers(1, 70), max_size=8),
    prompts=st.lists(st.integers(1, 200), max_size=8),
    begun=st.integers(0, 1),
)
def test_batching_is_the_literal_rule(
    blocks: int, tokens: int, seats: int, decodes: list[int], prompts: list[int], begun: int
) -> None:
    scene = Scene(AccelGen(pivot_tokens=100), blocks=blocks, seats=seats)
    running = [scene.running(n, n) for n in decodes] + [scene.running(150, 20)] * begun
    slots = np.array(running + [scene.waiting(n) for n in prompts], dtype=np.int64)
    table = scene.table
    pending = table.length[slots] - table.computed[slots]
    is_running = np.arange(len(slots)) < len(running)
    cut = (pending > 120) | (is_running & (pending > 1))
    contest = Contest(
        slots, pending, table.block_demand(slots, pending), cut, is_running, float(tokens), 60.0
    )
    slow, fast = Batch(scene.view, tokens), Batch(scene.view, tokens)
    expected = naive(slow, contest)
    take_nearest(fast, contest)
    assert list(zip(fast.slots, fast.counts, strict=True)) == expected
    assert (fast.tokens, fast.blocks, fast.seats) == (slow.tokens, slow.blocks, slow.seats)


def test_fit_recovers_the_knee_form() -> None:
    from accelgen.proto.messages import Sample

    true = Coefficients(0.01, 2e-5, 6e-5, 1e-5, 3e-7, 4e-9, 96)
    draw = np.random.default_rng(0)
    samples = []
    for _ in range(200):
        prefill, decodes = int(draw.integers(0, 600)), int(draw.integers(0, 64))
        work = Work(prefill, decodes, decodes * 500, prefill * prefill / 2)
        seconds = evaluate(true, work)
        samples.append(Sample(prefill, decodes, decodes * 500, work.prefill_work, seconds))
    found = fit(samples)
    assert found.knee == 96
    errors = [
        evaluate(found, Work(s.prefill_tokens, s.decode_seqs, s.decode_context, s.prefill_work))
        / s.run_s
        for s in samples
    ]
    assert max(abs(e - 1) for e in errors) < 0.01
    with pytest.raises(ValueError, match="too few"):
        fit(samples[:2])


def test_the_cost_model_learns_what_this_machine_does() -> None:
    model = CostModel(LINEAR)
    work = Work(prefill_tokens=100)
    for i in range(300):
        model.observe(work, 0.05 if i % 20 else 0.1)
    assert model.predict(work) == pytest.approx(0.052, rel=0.15)
    assert model.predict_upper(work) >= 0.05
    assert model.invert(model.predict(work), Work()) >= 100
