"""Requests that think at a pace of their own: the table, planning, takeovers, recordings."""

from __future__ import annotations

import random
from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_world import RecordedWorld, recording_to
from scene import Scene
from world import World

from accelgen.proto.messages import Objective, Prompt, Submit, Thinking
from accelgen.proto.recording import read_recording
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policies.slack import next_token_due_s
from accelgen.scheduler.policies.slos_serve import SlosServe
from accelgen.scheduler.policy import load_policy
from accelgen.scheduler.replay import replay
from accelgen.scheduler.request import requests_of
from accelgen.scheduler.slos_serve.edf_sim import Demand
from accelgen.scheduler.slos_serve.stages import in_parts
from accelgen.scheduler.slos_serve.standing import is_stated, standing_of
from accelgen.scheduler.slos_serve.survey import Rules, Survey, due_s
from accelgen.scheduler.table import FAR_S, RequestTable

MARK = 5
RULES = Rules(credit=True, offline_tpot_s=0.4)


def objective(
    thinking_s: float | None, response_s: float | None, ttft_s: float | None = 1.0
) -> Objective:
    return Objective(ttft_s, response_s, None, Thinking(thinking_s, [MARK]))


def slot_with(goal: Objective, thought: int, first_s: float, over_s: float) -> RequestTable:
    """A table with one request (slot 0), sent at 10 s, of 4 prompt tokens, whose thinking was over at `over_s`."""
    table = RequestTable(16)
    [request] = requests_of(Submit(Prompt(1, [9] * 4), 1000, [], goal, "standard", 0.0), 0)
    assert table.add(request, 10.0) == 0
    table.first_s[0] = first_s
    table.length[0] = 4 + thought
    table.respond(0, thought, over_s)
    return table


@given(
    thinking_s=st.none() | st.floats(0.01, 1),
    response_s=st.floats(0.01, 1),
    ttft_s=st.none() | st.floats(0.1, 5),
    first_s=st.floats(10.01, 20),
    thought=st.integers(1, 50),
    later=st.integers(0, 50),
)
def test_the_line_goes_on_from_where_the_thinkings_ends(
    thinking_s: float | None, response_s: float, ttft_s: float | None, first_s: float, thought: int, later: int,
) -> None:  # fmt: skip
    """Token k is due at the anchor and one pace for each token after the first, thinking ones at theirs; without such a
    pace the response's are counted from where the thinking ended."""
    over_s = first_s + 0.3 * thought
    table = slot_with(objective(thinking_s, response_s, ttft_s), thought, first_s, over_s)
    table.length[0] += later
    anchor_s = first_s if ttft_s is None else max(10 + ttft_s, first_s)
    if thinking_s is None:
        expected_s = over_s + (later + 1) * response_s
    else:
        expected_s = anchor_s + (thought - 1) * thinking_s + (later + 1) * response_s
    assert due_s(table, np.array([0]), RULES)[0] == pytest.approx(expected_s)
    assert table.tpot_s[0] == table.tightest_s[0] == response_s


def test_a_response_without_a_pace_is_never_late() -> None:
    table = slot_with(objective(0.05, None), 10, 10.5, 12.0)
    assert table.tpot_s[0] == FAR_S and table.shift_s[0] == 0
    assert next_token_due_s(table, np.array([0]), 0.4)[0] > FAR_S / 2


def test_the_columns_before_and_after() -> None:
    table = RequestTable(16)
    goals = [objective(0.05, 0.1), objective(0.1, 0.05), objective(None, 0.1), Objective(1.0, 0.2)]
    for id, goal in enumerate(goals, 1):
        submit = Submit(Prompt(id, [9]), 10, [], goal, "standard", 0.0)
        table.add(requests_of(submit, 0)[0], 0.0)
    assert table.tpot_s[:4].tolist() == [0.05, 0.1, FAR_S, 0.2]
    assert table.tightest_s[:4].tolist() == [0.05, 0.05, 0.1, 0.2]
    assert table.shift_s[:4].tolist() == [0.0] * 4


def test_a_submit_with_tokens_says_where_it_stands() -> None:
    """Two choices: only the first one has been generated before."""
    prompt = Prompt(1, [9, MARK, 9, 3, 4, MARK, 6], generated=4)
    first, second = requests_of(
        Submit(prompt, 50, [], objective(0.05, 0.1), "standard", 0.0, [2]), 0
    )
    assert (first.thought, second.thought) == (3, 0)  # a mark in the prompt does not count


def run_with_thinkers(seed: int, crash: bool) -> tuple[World, dict[int, int]]:
    """Requests whose thinking ends with one of 20 tokens out of 96; where it does by the tokens delivered."""
    draw = random.Random(seed)
    marks = draw.sample(range(1, 97), 20)
    world = World("qoserve", blocks=draw.choice([24, 200]), replicas=2, max_num_seqs=8)
    goal = Objective(1.0, 0.1, None, Thinking(0.02, marks))
    for id in range(1, 13):
        world.submit(id, [draw.randrange(1, 97)] * 6, 40, draw.random() * 0.2, None, goal, id)
    if crash:
        world.crash(0.1)
        world.crash(0.3)
    seen: dict[int, int] = {}
    for step in range(4000):
        world.run(until_s=step * 0.002)
        for replica in world.core.replicas.values():
            table = replica.table
            for id, slot in table.slot_of.items():
                request = table.request(slot)
                generated = request.generated
                over = next((n for n, one in enumerate(generated, 1) if one in marks), 0)
                assert request.thought == over
                if table.state[slot] != 1:  # ARRIVING: not taken up yet
                    assert table.tpot_s[slot] == (0.1 if over else 0.02)
                seen[id] = over
    return world, seen


@pytest.mark.parametrize("crash", [False, True])
def test_the_pace_changes_with_the_mark_whatever_happens(crash: bool) -> None:
    switched = 0
    for seed in range(3):
        world, seen = run_with_thinkers(seed, crash)
        assert len(world.ended) == 12 and len(seen) == 12
        switched += sum(over > 0 for over in seen.values())
    assert switched > 24  # of 36; a thinking of 40 tokens escapes 20 marks in 96 once in 10,000


@pytest.mark.parametrize("policy", ["accelgen", "qoserve", "slos-serve"])
def test_a_replay_knows_when_thinkings_were_over(policy: str, tmp_path: Path) -> None:
    """Tokens are not in the dump. Each decision is the same as the recorded one, also after a crash."""
    path = tmp_path / "dump"
    for seed in range(4):
        draw = random.Random(seed)
        marks = draw.sample(range(1, 97), 10)
        goals = [
            Objective(0.5, 0.2, None, Thinking(0.005, marks)),
            Objective(0.5, 0.005, None, Thinking(0.2, marks, 6)),
            Objective(0.5, 0.05),
        ]
        with recording_to(path):
            world = RecordedWorld(policy, blocks=40, max_num_seqs=6, max_num_batched_tokens=64)
            for id in range(1, 15):
                world.submit(
                    id, [draw.randrange(1, 97) for _ in range(draw.randrange(1, 25))], 20,
                    draw.random() * 0.3, None, draw.choice(goals), id,
                )  # fmt: skip
            if seed % 2:
                world.crash(0.15)
            world.run()
        outcome = replay(read_recording(path), load_policy(policy, {}))
        assert outcome.comparisons and all(one.same for one in outcome.comparisons), seed
        assert not outcome.skipped


# --- SLOs-Serve's planner --------------------------------------------------------------------------------------------


def test_the_demand_of_a_thinker_in_parts() -> None:
    """100 tokens of output at 50 ms: 70 are expected to be thinking, the other 30 come at 100 ms."""
    one = Demand(1, True, 1.0, 300, 0.05, 100, held=15)
    first, second = in_parts(one, Thinking(0.05, [MARK]), 0, 0.1)
    assert (first.tokens, first.output, first.tpot_s, first.due_s, first.held) == (
        300,
        70,
        0.05,
        1.0,
        15,
    )
    assert (second.tokens, second.output, second.tpot_s) == (0, 30, 0.1)
    assert second.due_s == pytest.approx(1.0 + 70 * 0.05) and second.held == 15 + 300 + 70
    assert (first.key, first.is_new, second.key, second.is_new) == (1, True, 1, True)


@given(
    output=st.integers(1, 300), generated=st.integers(0, 300), most=st.integers(0, 200),
)  # fmt: skip
def test_parts_sum_to_the_whole(output: int, generated: int, most: int) -> None:
    one = Demand(1, False, 0.0, 0, 0.05, output)
    parts = in_parts(one, Thinking(0.05, [MARK], most), generated, 0.1)
    assert sum(part.output for part in parts) == output
    assert all(part.output >= 1 for part in parts)
    assert len(parts) == 1 + (output > 1)
    if most and output > 1:
        assert parts[0].output <= max(1, most - generated)


def think(scene: Scene, slot: int, thinking_s: float | None, response_s: float | None) -> None:
    """Makes a request of the scene one that thinks."""
    request, table = scene.table.request(slot), scene.table
    request.objective = objective(thinking_s, response_s, 5.0)
    paces = [FAR_S if one is None else one for one in (thinking_s, response_s)]
    table.tpot_s[slot], table.tightest_s[slot] = paces[0], min(paces)


def test_a_thinker_is_planned_at_the_tighter_pace_to_its_end() -> None:
    scene = Scene(SlosServe(), 1000)
    slot = scene.running(64, 64, last_s=1.0)
    think(scene, slot, 0.2, 0.05)
    survey = Survey(scene.view, standing_of(scene.table, {1}, set()), 1.0, RULES)
    assert survey.tiers[0] == pytest.approx(0.049)
    assert survey.own_tiers == [0] and survey.present_tiers[0] > 0 and survey.steady[0] == 1
    scene.table.respond(slot, 1, 1.0)
    scene.table.request(slot).thought = 1
    survey = Survey(scene.view, standing_of(scene.table, {1}, set()), 1.0, RULES)
    assert survey.own_tiers == [0] and survey.tiers[0] == pytest.approx(0.049)


def test_the_simulation_is_told_of_both_stages() -> None:
    scene = Scene(SlosServe("edf_sim"), 1000)
    decode = scene.running(64, 64, last_s=1.0)
    prompt = scene.waiting(100)
    for slot in (decode, prompt):
        think(scene, slot, 0.05, 0.1)
    survey = Survey(scene.view, standing_of(scene.table, {1}, set()), 1.0, RULES)
    found = [(one.key, one.tokens, one.output, one.tpot_s) for one in survey.demands()]
    # 99 tokens are left of the one, of which 70 - 1 think; 100 of the other.
    assert found == [
        (1, 0, 69, pytest.approx(0.049)),
        (1, 0, 30, pytest.approx(0.099)),
        (2, 100, 70, pytest.approx(0.049)),
        (2, 0, 30, pytest.approx(0.099)),
    ]


def test_who_states_a_pace_of_thinking_alone_is_no_best_effort() -> None:
    assert is_stated(Objective(thinking=Thinking(0.05, [MARK])))
    assert not is_stated(Objective(thinking=Thinking(None, [MARK])))


@settings(max_examples=20, deadline=None)
@given(
    st.lists(
        st.tuples(st.none() | st.floats(0.01, 0.5), st.none() | st.floats(0.01, 0.5)), max_size=6
    )
)
def test_any_thinkers_can_be_planned(paces: list[tuple[float | None, float | None]]) -> None:
    """By both admissions, whatever is stated; nothing raises, no demand is infinite."""
    for policy in (SlosServe(), SlosServe("edf_sim"), Sarathi()):
        scene = Scene(policy, 1000)
        for number, (thinking_s, response_s) in enumerate(paces):
            slot = scene.running(32, 32) if number % 2 else scene.waiting(50)
            think(scene, slot, thinking_s, response_s)
        scene.plan(0.5)
        scene.plan(1.0)
        if isinstance(policy, SlosServe):
            survey = Survey(scene.view, standing_of(scene.table, set(), set()), 1.0, RULES)
            assert all(one.tpot_s < inf for one in survey.demands())
