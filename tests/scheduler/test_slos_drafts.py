"""Drafts in the plan of `slos-serve`: which planner it has, what a batch says of whom, and whole loads with them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scene import Scene
from test_speculation import CheckedWorld, prompt_of
from world import expected

from accelgen.proto.messages import Objective
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policies.slos_serve import SlosServe
from accelgen.scheduler.policy import Decision
from accelgen.scheduler.slos_serve.planner_ar import ArPlanner
from accelgen.scheduler.slos_serve.planner_either import EitherPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner
from accelgen.scheduler.slos_serve.roofline import Piece, Roofline
from accelgen.scheduler.slos_serve.speculating import planner_for
from accelgen.scheduler.slos_serve.standing import standing_of
from accelgen.scheduler.slos_serve.survey import Rules, Survey
from accelgen.scheduler.speculation import Speculation

ROOFLINE = Roofline((Piece(1e-4, 0.0, 0.01),))
TIERS = (0.05, 0.15)


def with_rate(rate: float, most: int = 4, **more: float) -> Speculation:
    return Speculation(most, hits=1000 * rate, trials=1000.0, **more)  # type: ignore[arg-type]


def planned(scene: Scene, speculation: Speculation) -> Decision:
    view = replace(scene.view, speculation=speculation)
    decision, scene.state = scene.policy.plan(view, scene.state, 0.0)
    return decision


def test_the_planner_goes_by_what_is_accepted() -> None:
    """acc(5) = (1 - a^5) / (1 - a) is 1.94 for 0.5, 2.03 for 0.52; half of the drafts made are half the acceptance."""
    assert isinstance(planner_for(Speculation(), ROOFLINE, TIERS), ArPlanner)
    assert isinstance(planner_for(with_rate(0.5), ROOFLINE, TIERS), ArPlanner)
    assert isinstance(planner_for(with_rate(0.9, filled=0.5), ROOFLINE, TIERS), ArPlanner)
    assert isinstance(planner_for(with_rate(0.99, most=1), ROOFLINE, TIERS), ArPlanner)  # 1.99
    found = planner_for(with_rate(0.52, step_s=0.002), ROOFLINE, TIERS)
    assert isinstance(found, EitherPlanner)
    assert (found.drafting.alpha, found.drafting.most) == (0.52, 5)
    assert found.drafting.roofline.seconds(10, steps=3) == pytest.approx(0.01 + 0.001 + 0.006)
    assert found.plain.roofline is ROOFLINE
    assert isinstance(planner_for(with_rate(1.0), ROOFLINE, TIERS), EitherPlanner)


def test_a_batch_drafts_what_leaves_the_most_for_prompts() -> None:
    """Five decodes every 11.5 ms. Without drafts a batch has 15 tokens, 10 of a prompt: 0.9 per ms. Of five tokens that
    are verified 3.36 are right at 0.8, three for sure: 34.5 ms, 245 tokens, 220 of a prompt, 6.4 per ms."""
    scene = Scene(SlosServe(credit=False), 3000)
    decodes = [scene.running(50, 50, tpot_s=0.0125) for _ in range(5)]
    prompt = scene.waiting(1000, ttft_s=5.0, tpot_s=1.0)
    decision = planned(scene, with_rate(0.8))
    drafts = dict(zip(decision.slots, decision.drafts or [], strict=True))
    counts = dict(zip(decision.slots, decision.counts, strict=True))
    assert [drafts[slot] for slot in decodes] == [4] * 5 and drafts[prompt] == 0
    assert [counts[slot] for slot in decodes] == [1] * 5 and counts[prompt] == 220


def test_without_drafts_in_the_plan_the_engine_decides() -> None:
    for speculation in (Speculation(), with_rate(0.3)):
        scene = Scene(SlosServe(credit=False), 3000)
        scene.running(50, 50, tpot_s=0.0125)
        scene.waiting(1000, ttft_s=5.0, tpot_s=1.0)
        assert planned(scene, speculation).drafts is None


@given(
    window_s=st.floats(0.001, 2.0), tight=st.integers(0, 60), loose=st.integers(0, 60),
    alpha=st.sampled_from([0.5, 0.7, 0.9]), step_s=st.sampled_from([0.0, 0.003]), tokens=st.integers(1, 5000),
)  # fmt: skip
def test_drafts_are_planned_where_they_leave_more_for_prompts(
    window_s: float, tight: int, loose: int, alpha: float, step_s: float, tokens: int
) -> None:
    """Each answer is the better one of the two, and the batches are those of the plan."""
    slow = Roofline((Piece(1e-4, step_s, 0.01),))
    plain, drafting = ArPlanner(ROOFLINE, TIERS), SdPlanner(slow, TIERS, alpha, 5)
    either = EitherPlanner(ArPlanner(ROOFLINE, TIERS), SdPlanner(slow, TIERS, alpha, 5))
    counts = (tight, loose)
    known = [one for one in (p.plan(window_s, counts) for p in (plain, drafting)) if one]
    found = either.plan(window_s, counts)
    assert (found is None) == (not known)
    if found is not None:
        assert found[0] == max(one[0] for one in known)
        assert sum(one.prefill for one in either.slices(window_s, counts)) == found[0]
    assert either.is_steady(counts) == (plain.is_steady(counts) or drafting.is_steady(counts))
    assert either.reach(tokens, counts) == min(p.reach(tokens, counts) for p in (plain, drafting))
    lasting, drafts = plain.plan(1.0, counts), drafting.plan(1.0, counts)
    first = next(either.lasting(counts), None)
    if lasting is not None and lasting[0] > 0 and lasting[0] >= (drafts or (0,))[0] / 4:
        assert first is not None and max(first.lengths, default=0) <= 1
    elif lasting is not None and lasting[0] == 0 and drafts is not None and drafts[0]:
        assert first is not None and max(first.lengths) > 1


def test_no_drafts_beyond_the_plan_while_requests_come_often() -> None:
    """Two decodes that are in time without. Four steps of the drafter of 5 ms each and eight tokens take 21 ms: with a
    request every second two in a hundred come meanwhile, with one every 0.1 s one in five. Who is told how many drafts
    to make makes them."""
    for every_s, adaptive, left in ((1.0, True, True), (0.1, True, False), (0.1, False, True)):
        scene = Scene(SlosServe(), 3000)
        for i in range(30):
            slot = scene.running(50, 50, at_s=(i - 29) * every_s, ttft_s=500.0, tpot_s=0.2)
            speculation = with_rate(0.6, step_s=0.005, adaptive=adaptive)
            view = replace(scene.view, speculation=speculation)
            decision, scene.state = scene.policy.plan(view, scene.state, (i - 29) * every_s)
            if i < 28:
                scene.table.remove(slot)
        assert (decision.drafts is None) == left
        assert left or decision.drafts == [0, 0]


def test_single_drafts_stay_within_the_planned_batch() -> None:
    """13 decodes every 11.5 ms: 15 tokens in each batch, two more than they need. All are at a 16th token."""
    scene = Scene(SlosServe(credit=False), 3000)
    for _ in range(13):
        scene.running(47, 47, tpot_s=0.0125)
    decision = planned(scene, with_rate(0.3))
    assert sum(decision.counts) == 13 and sum(decision.drafts or []) == 2


def test_drafts_admit_what_would_be_too_much_without() -> None:
    """A prompt of 1,500 tokens in 0.3 s beside the five decodes: 260 tokens without drafts, 1,760 with."""
    for speculation, admitted in ((Speculation(), False), (with_rate(0.8), True)):
        scene = Scene(SlosServe(credit=False), 3000)
        for _ in range(5):
            scene.running(50, 50, tpot_s=0.0125)
        prompt = scene.waiting(1500, ttft_s=0.3, tpot_s=1.0)
        planned(scene, speculation)
        assert (int(scene.table.ids[prompt]) in scene.state.admitted) == admitted


@pytest.mark.parametrize("admission", ["dp", "edf_sim"])
def test_a_decode_ahead_of_its_demand_makes_no_pace_impossible(admission: str) -> None:
    """308 decodes every 49 ms, of 5 tokens each in a batch of 98 ms or longer, can be kept. One of them
    is 2 s ahead, which moves it to the loose tier: by the closed form its 2 tokens there (1.9 on average, one for sure)
    leave shorter batches that cannot hold the others. All go on at the pace of the long run, and with a new one."""
    steep = Coefficients(a=0.025, b=1e-4, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
    scene = Scene(SlosServe(admission), 6000, seats=400, cost=steep)
    decodes = [
        scene.running(50, 50, at_s=-10.0, ttft_s=12.0 if i == 0 else 1.0, tpot_s=0.05)
        for i in range(308)
    ]
    prompt = scene.waiting(100, ttft_s=5.0, tpot_s=0.05)  # of 332 decodes
    decision = planned(scene, with_rate(0.9, step_s=0.001))
    if admission == "dp":  # the simulation knows no drafts
        assert int(scene.table.ids[prompt]) in scene.state.admitted
        assert prompt in decision.slots
    assert {*decodes} <= {*decision.slots}
    drafts = dict(zip(decision.slots, decision.drafts or [], strict=True))
    assert [drafts[slot] for slot in decodes] == [4] * 308


@pytest.mark.parametrize("rate", [0.2, 0.9])
def test_drafts_in_flight_count_as_often_as_they_are_accepted(rate: float) -> None:
    """Three drafts each in an iteration of 0.2 s, of decodes that are on their line: at 0.9 they bring 2.44 tokens
    beside the sure one, enough for 0.1 s a token; at 0.2 it is a quarter, and who is behind needs a tighter pace."""
    scene = Scene(SlosServe(), 3000)
    slots = [scene.running(50, 50, at_s=-10.0, ttft_s=1.0, tpot_s=t) for t in (0.1, 0.1, 0.05)]
    at = np.array(slots)
    scene.table.plan(at, np.ones(3, dtype=np.int64), 0.2, np.full(3, 3))
    view = replace(scene.view, speculation=with_rate(rate))
    survey = Survey(view, standing_of(scene.table, {1, 2, 3}, set()), 0.2, Rules(True, 0.4))
    assert survey.tiers[:2] == pytest.approx((0.049, 0.099))
    assert survey.present_tiers == ([1, 1, 0] if rate == 0.9 else [0, 0, 0])
    assert survey.steady[:2] == ((1, 2) if rate == 0.9 else (3, 0))


@pytest.mark.parametrize("admission", ["dp", "edf_sim"])
@pytest.mark.parametrize("depth", [0, 1])
def test_a_load_with_tight_paces(admission: str, depth: int) -> None:
    """Whatever the plan drafts: the same tokens, each once; and it does draft."""
    world = CheckedWorld(
        "slos-serve", blocks=200, pipeline_depth=depth, drafter="ngram", max_draft_tokens=4,
        params={"admission": admission},  # type: ignore[arg-type]
    )  # fmt: skip
    for id in range(1, 13):
        pace = Objective(0.5, 0.0048 if id % 2 else 0.02)
        world.submit(id, prompt_of(20 + id, id), 40, at_s=0.03 * id, objective=pace, seed=id)
    world.run()
    for id in range(1, 13):
        assert world.delivered[id] == expected(prompt_of(20 + id, id), 40, id)
    world.check_idle()
    assert sum(map(sum, (plan.drafts for plan in world.plans))) > 100
    assert world.workers[0].accepted > 50
