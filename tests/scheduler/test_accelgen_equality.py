"""The vectorised AccelGen decides as the reference does, in any state."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_accelgen import referring
from scene import Scene

from accelgen.scheduler.policies.accelgen import AccelGen
from accelgen.scheduler.policies.accelgen_ablations import NoBatching, NoChunking, NoOrdering
from accelgen.scheduler.policies.accelgen_adaptive import AccelGenAdaptive
from accelgen.scheduler.policies.accelgen_calibrated import AccelGenCalibrated
from accelgen.scheduler.policy import Decision

KINDS = [AccelGen, AccelGenAdaptive, AccelGenCalibrated, NoBatching, NoChunking, NoOrdering]


def drawn_scene(kind: type[AccelGen], draw: random.Random) -> Scene:
    """Anything from idle to hopelessly late and out of memory."""
    policy = kind(draw.choice([0.01, 0.3, 2.0]), draw.choice([0, 64, 512]), draw.random() < 0.2)
    tokens = draw.choice([64, 512, 8192])
    scene = Scene(policy, blocks=10_000, seats=draw.choice([4, 16, 64]), tokens=tokens)
    late_s = draw.choice([0.2, 2.0, 20.0])
    for _ in range(draw.randrange(1, 20)):
        prompt = draw.choice([5, 16, 17, 100, draw.randrange(1, 2000)])
        computed = prompt if draw.random() < 0.8 else draw.randrange(1, prompt + 1)
        slo = {"ttft_s": draw.uniform(0, late_s), "tpot_s": draw.uniform(0.01, late_s)}
        scene.running(prompt, computed, last_s=draw.uniform(0, 1), at_s=draw.uniform(0, 1), **slo)
    for _ in range(draw.randrange(40)):
        end_s = draw.uniform(0, 10 * late_s) if draw.random() < 0.2 else None
        prompt, ttft_s = draw.randrange(1, draw.choice([20, 3000])), draw.uniform(0, late_s)
        slot = scene.waiting(prompt, ttft_s, at_s=draw.uniform(0, 1), e2e_s=end_s)
        if draw.random() < 0.2:
            scene.table.hit(slot, (prompt - 1) // 16 * 16)
    scene.free_blocks = draw.choice([0, 3, draw.randrange(300), 10_000])
    return scene


def tokens_by_slot(decision: Decision) -> dict[int, int]:
    """Not their order: decodes that all fit are taken as they stand, which changes nothing in an iteration."""
    return dict(zip(decision.slots, decision.counts, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_same_decision(kind: type[AccelGen], seed: int) -> None:
    scene = drawn_scene(kind, random.Random(seed))
    reference = referring(scene.policy)
    for step in range(4):
        expected, _ = reference.plan(scene.view, scene.state, 1.0 + step / 10)
        decision, _ = scene.policy.plan(scene.view, scene.state, 1.0 + step / 10)
        assert tokens_by_slot(decision) == tokens_by_slot(expected)
        assert decision.preempt == expected.preempt
        scene.step(1.0 + step / 10)
