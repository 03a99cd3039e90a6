"""EDF and SRPF: Sarathi's batches, with prompts in an order of their own that holds between chunks, too."""

from __future__ import annotations

import numpy as np
import pytest
from scene import Scene

from accelgen.scheduler.policies.edf import Edf
from accelgen.scheduler.policies.srpf import Srpf


def test_edf_takes_prompts_by_deadline_and_lets_an_earlier_one_overtake() -> None:
    scene = Scene(Edf(chunk_size=100))
    decode = scene.running(32, 32)
    begun = scene.running(500, 100, ttft_s=3.0)
    later, earlier = scene.waiting(60, ttft_s=4.0), scene.waiting(60, ttft_s=2.0)
    taken = scene.plan()
    assert taken == {decode: 1, earlier: 60, begun: 39}
    assert later not in taken


def test_edf_of_an_end_to_end_objective_leaves_time_for_the_answer() -> None:
    """20 s, 100 tokens at most, half of them predicted: 20 - 50 * 0.4 = 0 s is before 0.5 s."""
    scene = Scene(Edf(chunk_size=100))
    offline = scene.waiting(60, ttft_s=None, tpot_s=None, e2e_s=20.0)
    scene.table.predicted_output[offline] = 50
    scene.table.move(offline, scene.policy.order_key(scene.view, offline, None))
    online, nothing = scene.waiting(60, ttft_s=0.5), scene.waiting(60, ttft_s=None)
    assert scene.rank([offline, online, nothing]) == [offline, online, nothing]
    assert scene.table.key[offline] == pytest.approx(0.0)


def test_srpf_takes_what_is_shortest_now() -> None:
    scene = Scene(Srpf(chunk_size=100))
    begun = scene.running(500, 430)
    longer, shorter = scene.waiting(80, ttft_s=0.1), scene.waiting(60, ttft_s=9.0)
    assert scene.plan() == {shorter: 60, begun: 40}
    scene.table.plan(np.array([begun]), np.array([20]), 0.0)
    assert scene.plan() == {begun: 50, shorter: 50}
    assert longer not in scene.plan()


@pytest.mark.parametrize("policy", [Edf(chunk_size=64), Srpf(chunk_size=64)])
def test_a_new_prompt_needs_blocks_for_all_of_it_and_nobody_passes_it(policy: Edf | Srpf) -> None:
    scene = Scene(policy, blocks=5)
    begun = scene.running(60, 20, ttft_s=9.0)
    big = scene.waiting(30, ttft_s=1.0, at_s=0.0)
    scene.waiting(35, ttft_s=2.0)
    assert scene.plan() == {big: 30, begun: 34}
    scene.free_blocks = 3  # two of them are promised to the prompt that has begun
    assert scene.plan() == {begun: 40}


@pytest.mark.parametrize("policy", [Edf(), Srpf()])
def test_out_of_blocks_the_latest_arrival_is_recomputed(policy: Edf | Srpf) -> None:
    scene = Scene(policy, blocks=0)
    first, latest = scene.running(32, 32, at_s=0.0), scene.running(32, 32, at_s=1.0)
    scene.waiting(10)
    assert scene.plan() == {first: 1}
    assert scene.preempted == [latest]
