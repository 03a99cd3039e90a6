"""The policy `slos-serve`: whom it admits, what its batches hold, when it plans, what best effort gets, where requests
go. A Scene's iteration takes 10 ms and 0.1 ms per token."""

from __future__ import annotations

from collections import Counter
from math import inf
from typing import Any

import numpy as np
import pytest
from msgspec import convert, to_builtins
from scene import LINEAR, Scene, request
from world import World, expected

from accelgen.proto.config import Config, SloClass
from accelgen.proto.messages import Objective, Reason
from accelgen.scheduler.policies.slos_serve import LEAST_PREFILL, MOST_PROMPTS, Memory, SlosServe
from accelgen.scheduler.policy import StepStats, load_policy
from accelgen.scheduler.slos_serve import routing
from accelgen.scheduler.slos_serve.routing import mixed
from accelgen.scheduler.slos_serve.standing import (
    MISSED_S,
    MOST_MISSED,
    PRIORITY_S,
    standing_by_key,
    standing_of,
)
from accelgen.scheduler.slos_serve.survey import Rules, Survey
from accelgen.simulator.device import Device
from accelgen.simulator.run import Simulation
from accelgen.simulator.workload import Arrival, Workload

NOTHING: dict[str, Any] = {"ttft_s": None, "tpot_s": None}
PLENTY = 3000  # blocks


def strict(**params: Any) -> SlosServe:
    """Without credit: a decode keeps its own pace."""
    return SlosServe(credit=False, **params)


def ids(scene: Scene, *slots: int) -> set[int]:
    return {int(scene.table.ids[slot]) for slot in slots}


# --- whom it admits --------------------------------------------------------------------------------------------------


def test_a_request_that_comes_alone_is_processed_at_once() -> None:
    scene = Scene(SlosServe())
    prompt = scene.waiting(400)
    assert scene.plan() == {prompt: 400}
    assert scene.state.admitted == ids(scene, prompt) and not scene.state.best_effort


def test_two_small_ones_instead_of_a_large_one() -> None:
    """Deadlines 0.35, 0.36, 0.37 s; 3,500 tokens until 0.36 s. The simulation goes by deadline."""
    for admission, chosen in (("dp", {1, 2}), ("edf_sim", {0})):
        scene = Scene(SlosServe(admission), PLENTY)
        slots = [
            scene.waiting(3000, ttft_s=0.35),
            scene.waiting(1500, ttft_s=0.36),
            scene.waiting(1500, ttft_s=0.37),
        ]
        taken = scene.plan()
        assert scene.state.admitted == ids(scene, *(slots[i] for i in chosen))
        assert scene.state.best_effort == ids(scene, *slots) - scene.state.admitted
        assert {slot for slot in taken if int(scene.table.ids[slot]) in scene.state.admitted} == {
            slots[i] for i in chosen
        }


def test_who_cannot_be_in_time_is_best_effort_without_further_ado() -> None:
    """1,000 tokens take 0.11 s. What has no objective is best effort anyway. Both get what is left: 900 tokens in
    0.1 s, first come first served. The places of both have changed, whether they begin or not."""
    scene = Scene(SlosServe(), PLENTY)
    late, other = scene.waiting(1000, ttft_s=0.1, at_s=0.0), scene.waiting(50, **NOTHING, at_s=0.01)
    assert scene.plan(0.01) == {late: 900}
    assert scene.state.best_effort == ids(scene, late, other) and not scene.state.admitted
    assert scene.requeued == [late, other] and scene.rank([late, other]) == [late, other]
    assert scene.declined == [late, other]


def test_admitted_ones_wait_by_deadline_new_ones_after_them_best_effort_last() -> None:
    scene = Scene(SlosServe(), PLENTY, seats=1)
    first = scene.waiting(100, ttft_s=3.0)
    scene.step()
    late = scene.waiting(5000, ttft_s=0.1, at_s=0.1)
    stray = scene.waiting(5, **NOTHING, at_s=0.05)
    scene.plan(0.2)
    new = scene.waiting(10, ttft_s=1.0, at_s=0.2)
    assert scene.rank([first, late, stray, new]) == [new, stray, late]
    key = scene.table.key
    assert key[late] == PRIORITY_S + 0.1 and key[new] == pytest.approx(1.2)
    key_s = scene.policy.order_key(scene.view, first, scene.state)  # if it were preempted now
    assert key_s == pytest.approx(3.2 - PRIORITY_S, abs=1e-5)


def test_memory_to_its_end_decides() -> None:
    """Each of 100 + 100 tokens needs 13 blocks, best-effort requests that run count for nothing."""
    scene = Scene(SlosServe(), blocks=26)
    a, b, c = (scene.waiting(100) for _ in range(3))
    scene.plan()
    assert scene.state.admitted == ids(scene, a, b) and scene.state.best_effort == ids(scene, c)
    scene = Scene(SlosServe(), blocks=6)
    scene.running(112, 112, **NOTHING)  # 7 blocks
    late = scene.waiting(100)
    scene.plan()
    assert scene.state.admitted == ids(scene, late)


def test_seats_and_choices() -> None:
    scene = Scene(SlosServe(), PLENTY, seats=3)
    a, b = scene.waiting(100), scene.waiting(100)
    scene.table.request(a).children = [scene.table.request(b)] * 2  # as many choices as seats
    scene.plan()
    assert scene.state.admitted in (ids(scene, a), ids(scene, b))


def test_what_runs_unknown_is_kept_what_has_ended_is_forgotten() -> None:
    scene = Scene(SlosServe(), PLENTY)
    decode, stray = scene.running(64, 64), scene.running(64, 64, **NOTHING)
    begun = scene.waiting(50, at_s=0.5)
    scene.table.length[begun] += 3  # it had tokens before a takeover
    scene.plan(1.0)
    assert scene.state.admitted == ids(scene, decode, begun)
    assert scene.state.best_effort == ids(scene, stray)
    gone = ids(scene, decode)
    scene.table.remove(decode)
    scene.plan(2.0)
    scene.plan(2.0 + MISSED_S + 0.1)
    assert not scene.state.admitted & gone


def test_who_is_claimed_late_after_a_takeover_stays_what_he_was() -> None:
    """Rounds are made before his frontend has sent him again, and when it has he could be admitted no more. So with
    tokens that he has had: alone he would be too slow for his pace. Who was declined stays so, too."""
    policy = SlosServe()
    before = Scene(policy, PLENTY)
    first, started = before.waiting(100), before.waiting(100)
    declined, late = before.waiting(9000, ttft_s=0.1), before.waiting(400, ttft_s=1.0)
    before.plan()
    assert before.state.admitted == ids(before, first, started, late)
    assert before.state.best_effort == ids(before, declined)
    heir = Scene(policy, PLENTY)
    heir.state = convert(to_builtins(before.state), Memory)  # as it is handed over
    assert heir.waiting(100) == first
    for at_s in (0.2, 0.6, 1.2):  # nobody else is there
        heir.plan(at_s)
    slow = {"tpot_s": 0.001}
    assert [heir.waiting(100, **slow), heir.waiting(9000)] == [started, declined]
    heir.table.length[started] += 3
    assert heir.waiting(400, ttft_s=1.0) == late  # which is over
    heir.plan(1.4)
    assert heir.state.admitted == ids(heir, first, started, late)
    assert heir.state.best_effort == ids(heir, declined) and heir.declined == [declined]


def test_those_who_ended_long_ago_cost_nothing() -> None:
    """Who is missing is remembered for a while, the first to have been missed at most so long."""
    scene = Scene(SlosServe(), PLENTY)
    scene.state = Memory(frozenset(range(100, 200)), frozenset(range(200, 210)))
    scene.waiting(10)
    scene.plan(0.5)
    assert len(scene.state.admitted) == 101 and len(scene.state.missed) == 110
    scene.plan(0.5 + MISSED_S)
    assert len(scene.state.admitted) == 101
    scene.plan(0.7 + MISSED_S)
    assert scene.state.admitted == {1} and not scene.state.best_effort and not scene.state.missed
    scene.state = Memory(frozenset(range(100, 100 + 2 * MOST_MISSED)))
    scene.plan(99.0)
    assert len(scene.state.missed) == MOST_MISSED


def test_siblings_are_what_their_parent_is() -> None:
    scene = Scene(SlosServe(), PLENTY)
    parent = scene.waiting(1000, ttft_s=0.05)
    scene.step()
    child = scene.running(64, 64)
    scene.table.request(child).parent = int(scene.table.ids[parent])
    scene.plan(1.0)
    assert scene.state.best_effort == ids(scene, parent, child)


# --- its batches -----------------------------------------------------------------------------------------------------


def test_a_batch_lasts_until_the_next_token_is_due() -> None:
    """Tiers of 199 and 299 ms: (0.199 - 0.01) / 0.0001 = 1890 tokens. A decode with 2 s of credit is in the loose
    tier: 2,890 tokens."""
    for policy, size in ((strict(), 1890), (SlosServe(), 2890)):
        scene = Scene(policy, PLENTY)
        decode = scene.running(32, 32, last_s=3.0)  # due at 5 s
        prompt = scene.waiting(4000, ttft_s=60.0, at_s=3.0)
        assert scene.plan(3.0) == {decode: 1, prompt: size - 1}


def test_a_decode_that_lags_moves_to_a_tighter_tier() -> None:
    """First token at 3 s, after its deadline; the 11th is due at 3 + 10 * 0.2 s. At 4 s that leaves 0.1 s each, at
    3.05 s 0.195 s, which is less than the tier of 199 ms."""
    scene = Scene(SlosServe(), PLENTY)
    scene.running(32, 32, last_s=3.0, ttft_s=0.5)
    scene.running(32, 32, last_s=3.0, ttft_s=0.5, tpot_s=0.1)
    standing = standing_of(scene.table, set(), set())
    for at_s, tiers in (
        (3.0, [1, 0]),
        (3.05, [0, 0]),
        (4.0, [0, 0]),
        (2.0, [2, 1]),
        (-9.0, [2, 2]),
    ):
        survey = Survey(scene.view, standing, at_s, Rules(True, 0.4))
        assert survey.tiers == pytest.approx((0.099, 0.199, 0.299))
        assert survey.present_tiers == tiers and survey.own_tiers == [1, 0]
        assert survey.steady == ((2, 0, 0) if tiers == [0, 0] else (1, 1, 0))
    assert Survey(scene.view, standing, 2.0, Rules(False, 0.4)).present_tiers == [1, 0]


def test_loose_decodes_take_turns_and_fill_what_is_left() -> None:
    """Batches of 99 ms: the loose decode is due in every other one, or when there is room anyway."""
    scene = Scene(strict(replan_s=9.0), PLENTY)
    tight = scene.running(32, 32, last_s=1.0, ttft_s=0.5, tpot_s=0.1)
    loose = scene.running(32, 32, last_s=1.0, ttft_s=0.5, tpot_s=0.2)
    prompt = scene.waiting(4000, ttft_s=60.0, at_s=1.0)
    assert scene.step(1.0) == {tight: 1, loose: 1, prompt: 890 - 2}
    assert scene.step(1.1) == {tight: 1, prompt: 890 - 1}
    assert scene.step(1.2) == {tight: 1, loose: 1, prompt: 890 - 2}
    scene.table.remove(prompt)
    for at_s in (1.3, 1.4, 1.5):
        assert scene.step(at_s) == {tight: 1, loose: 1}


def test_prompts_by_deadline_begun_or_not() -> None:
    scene = Scene(strict(), PLENTY)
    begun = scene.running(3000, 64, ttft_s=30.0)
    decode = scene.running(32, 32)
    soon, later = scene.waiting(1000, ttft_s=20.0), scene.waiting(500, ttft_s=40.0)
    assert scene.plan(0.0) == {decode: 1, soon: 1000, begun: 889}
    assert scene.state.admitted == ids(scene, begun, decode, soon, later)


def test_a_prompt_ahead_of_its_deadline_decodes_when_there_is_room() -> None:
    """With credit its demand begins at the deadline: until then prompts go before it."""
    scene = Scene(SlosServe(replan_s=9.0), PLENTY)
    first, second = scene.waiting(6000, ttft_s=8.0), scene.waiting(30_000, ttft_s=9.0)
    assert scene.step(0.0) == {first: 6000, second: 8192 - 6000}
    assert scene.step(0.83) == {second: 8192}
    scene = Scene(strict(replan_s=9.0), PLENTY)
    first, second = scene.waiting(6000, ttft_s=8.0), scene.waiting(30_000, ttft_s=9.0)
    scene.step(0.0)
    assert scene.step(0.83) == {first: 1, second: 8191}


def test_who_could_never_keep_its_pace_shuts_out_nobody() -> None:
    """After a takeover without what was known: an iteration takes 10 ms, one decode needs a token every 5."""
    scene = Scene(SlosServe(), PLENTY)
    doomed, decode = scene.running(32, 32, tpot_s=0.005), scene.running(32, 32, tpot_s=0.1)
    new = scene.waiting(100)
    taken = scene.plan()
    assert scene.state.best_effort == ids(scene, doomed) and taken[new] == 100
    assert scene.state.admitted == ids(scene, decode, new)
    assert scene.plan(0.01).keys() >= {decode, doomed}


def test_decodes_that_are_too_many_all_take_part() -> None:
    """50 decodes take 15 ms, a token is due every 12: nobody new is admitted, 128 tokens are left for prompts: for the
    old one, and what it leaves for best effort."""
    scene = Scene(strict(), PLENTY)
    decodes = [scene.running(32, 32, tpot_s=0.013) for _ in range(50)]
    begun, new = scene.running(264, 64), scene.waiting(100)
    assert scene.step() == dict.fromkeys(decodes, 1) | {begun: LEAST_PREFILL}
    assert scene.state.best_effort == ids(scene, new)
    assert scene.plan() == dict.fromkeys(decodes, 1) | {begun: 72, new: LEAST_PREFILL - 72}


def test_limits_of_the_engine_are_planned_with() -> None:
    scene = Scene(SlosServe(), PLENTY, tokens=500)
    a, b = scene.waiting(700, ttft_s=0.13), scene.waiting(700, ttft_s=0.14)
    assert scene.plan() == {a: 500}  # 500 and 200 tokens take 90 ms, 500 more another 60
    assert scene.state.best_effort == ids(scene, b)


def test_more_decodes_than_tokens_of_a_batch() -> None:
    """They take turns; nothing asks for more than the engine allows."""
    scene = Scene(strict(), PLENTY, tokens=20)
    decodes = [scene.running(32, 32, tpot_s=0.05) for _ in range(30)]
    assert scene.plan() == dict.fromkeys(decodes[:20], 1)


def test_a_pace_without_a_first_deadline_does_not_wait_for_ever() -> None:
    """Its first token is due after a minute, or before it expires: then it goes before those that came later."""
    for expires_s, before in ((inf, 58.0), (30.0, 28.0)):
        scene = Scene(SlosServe(), PLENTY, tokens=100)
        patient = scene.waiting(100, ttft_s=None, at_s=0.0)
        scene.table.request(patient).expires_s = expires_s
        early = scene.waiting(50, ttft_s=6.0, at_s=before - 5.0)
        late = scene.waiting(50, ttft_s=6.0, at_s=before)
        assert scene.plan(before) == {early: 50, patient: 50}
        assert scene.rank([patient, early, late]) == [early, patient, late]


# --- when it plans ---------------------------------------------------------------------------------------------------


def made_at_s(scene: Scene, at_s: float) -> float:
    scene.plan(at_s)
    return float(scene.state.made_s)


def test_a_plan_is_followed_until_something_happens() -> None:
    scene = Scene(SlosServe(), PLENTY)
    scene.running(32, 32)
    assert made_at_s(scene, 1.0) == made_at_s(scene, 1.09) == 1.0
    assert made_at_s(scene, 1.11) == 1.11
    news = [scene.waiting(16, at_s=1.11) for _ in range(9)]
    assert made_at_s(scene, 1.12) == 1.11
    news.append(scene.waiting(16, at_s=1.12))
    assert made_at_s(scene, 1.13) == 1.13
    assert scene.state.admitted >= ids(scene, *news)


def test_who_has_no_time_to_spare_does_not_wait_for_a_round() -> None:
    """100 tokens take 20 ms: due in 219 ms they have less than two rounds' time to spare, in 221 ms not."""
    for ttft_s, made_s in ((0.219, 1.02), (0.221, 1.0)):
        scene = Scene(SlosServe(), PLENTY)
        scene.running(32, 32)
        made_at_s(scene, 1.0)
        new = scene.waiting(100, ttft_s=ttft_s, at_s=1.02)
        assert (new in scene.plan(1.02)) == (made_s == 1.02) and scene.state.made_s == made_s


def test_enough_finished_requests_are_a_reason_to_plan() -> None:
    scene = Scene(SlosServe(), PLENTY)
    scene.running(32, 32)
    made_at_s(scene, 1.0)
    for finished, made_s in ((5, 1.0), (1, 1.02)):
        stats = StepStats(0.01, [], 0, finished)
        scene.state = scene.policy.observe(stats, scene.state)
        assert made_at_s(scene, 1.02) == made_s
    assert scene.state.finished == 0


def test_nobody_waits_for_a_plan_when_nothing_else_is_to_be_done() -> None:
    scene = Scene(SlosServe(), PLENTY)
    scene.running(32, 32, **NOTHING)
    made_at_s(scene, 1.0)
    prompt = scene.waiting(16, at_s=1.01)
    assert prompt in scene.plan(1.02) and scene.state.made_s == 1.02


def test_a_round_judges_ten_the_next_ones_the_others() -> None:
    scene = Scene(SlosServe(), PLENTY)
    slots = [scene.waiting(16, ttft_s=5.0 + i) for i in range(25)]
    for at_s, known in ((0.0, 10), (0.001, 20), (0.002, 25)):
        scene.step(at_s)
        assert scene.state.admitted == ids(scene, *slots[:known])


def test_a_round_is_bounded() -> None:
    """Along 40 prompts it judges ten, along 100 three, the next one at once; along more than `MOST_PROMPTS` nobody, and
    batches are those of the decodes."""
    for waiting, judged in ((40, 10), (100, 2), (MOST_PROMPTS + 1, 0)):
        scene = Scene(SlosServe(), 10 * PLENTY, seats=512)
        decode = scene.running(32, 32)
        old = [scene.waiting(16, ttft_s=50.0) for _ in range(waiting)]
        scene.state = Memory(admitted=frozenset(ids(scene, decode, *old)))
        new = [scene.waiting(16, ttft_s=60.0) for _ in range(12)]
        taken = scene.plan()
        assert len(scene.state.admitted & ids(scene, *new)) == judged and scene.state.has_more
        assert not scene.state.best_effort and taken[decode] == 1 and len(taken) > 10


# --- best effort -----------------------------------------------------------------------------------------------------


def test_best_effort_runs_in_what_is_left_first_come_first_served() -> None:
    """1,890 tokens in 199 ms; beside a decode and 800 tokens of a prompt there is room within 0.1 s (900 tokens, the
    fixed part aside) for a best-effort decode, a prompt of 8, and one of 90: not for one of 200 between these. When it
    is the first, it need not fit."""
    scene = Scene(strict(), PLENTY)
    decode, stray = scene.running(32, 32), scene.running(32, 32, **NOTHING)
    prompt = scene.waiting(800, ttft_s=9.0)
    first = scene.waiting(8, **NOTHING, at_s=0.1)
    long, short = scene.waiting(200, **NOTHING, at_s=0.2), scene.waiting(90, **NOTHING, at_s=0.3)
    assert scene.plan(0.2) == {decode: 1, prompt: 800, stray: 1, first: 8, short: 90}
    assert scene.state.best_effort == ids(scene, stray, first, long, short)
    scene.table.remove(first)
    assert scene.plan(0.2) == {decode: 1, prompt: 800, stray: 1, long: 98}


@pytest.mark.parametrize("prompt", [1, 300, 389, 390, 500, 889, 899, 900, 901, 5000])
def test_prompts_of_any_length_begin_beside_a_steady_decode(prompt: int) -> None:
    """A token is due every 50 ms: batches of 390 tokens. Those that were longer, and shorter than the 900 of 0.1 s,
    once waited for a batch that never came."""
    scene = Scene(strict(), PLENTY)
    decode = scene.running(32, 32, tpot_s=0.05)
    stray = scene.waiting(prompt, **NOTHING)
    assert scene.step() == {decode: 1, stray: min(prompt, 389)}


def test_a_stream_of_short_prompts_keeps_no_best_effort_prompt_waiting() -> None:
    """In every batch there is one of 100 tokens, so that 350 never fit in whole."""
    scene = Scene(strict(replan_arrivals=1), PLENTY)
    decode = scene.running(32, 32, tpot_s=0.05)
    stray = scene.waiting(350, **NOTHING)
    done = 0
    for i in range(3):
        scene.waiting(100, ttft_s=1.0, tpot_s=0.05, at_s=0.05 * i)
        taken = scene.step(0.05 * i, run_s=0.05)
        done += taken.get(stray, 0)
        assert taken[decode] == 1
    assert done >= 350


def test_best_effort_begins_only_with_kv_for_all_of_it() -> None:
    """A decode of 32 + 100 tokens has 2 blocks of 9; 120 + 100 tokens are 14: with 21 free blocks that fits, with 20 it
    does not, nor does anything behind it."""
    for blocks, begins in ((21, True), (20, False)):
        scene = Scene(SlosServe(), blocks)
        scene.running(32, 32, **NOTHING)
        first, second = scene.waiting(120, **NOTHING), scene.waiting(1, **NOTHING, at_s=0.1)
        scene.table.predicted_output[second] = 1
        taken = scene.plan(0.2)
        assert (first in taken) == begins and second not in taken


def test_the_last_to_come_gives_its_blocks_to_an_admitted_one() -> None:
    """5 free blocks, of which two decodes need one each; the prompt needs 10: the younger gives its 10, the older one
    goes on."""
    scene = Scene(SlosServe(), blocks=5)
    older = scene.running(160, 160, **NOTHING, at_s=0.0)
    younger = scene.running(160, 160, **NOTHING, at_s=1.0)
    prompt = scene.waiting(160, at_s=2.0)
    assert scene.plan(2.0) == {prompt: 160, older: 1}
    assert scene.preempted == [younger]
    assert scene.state.best_effort == ids(scene, older, younger)


def test_nobody_is_evicted_in_vain() -> None:
    """An admitted decode holds what the prompt needs, and has outgrown what was predicted."""
    scene = Scene(SlosServe(), blocks=2)
    decode = scene.running(320, 320, max_tokens=20)
    stray = scene.running(16, 16, **NOTHING)
    scene.plan(0.0)
    prompt = scene.waiting(100, at_s=0.01)
    scene.state = Memory(admitted=frozenset(ids(scene, decode, prompt)))
    scene.table.move(prompt, scene.policy.order_key(scene.view, prompt, scene.state))
    taken = scene.plan(0.02)
    assert taken == {decode: 1, stray: 1} and scene.preempted == []


def test_out_of_blocks_best_effort_gives_way_then_the_latest_deadline() -> None:
    scene = Scene(strict(), blocks=0)
    early = scene.running(32, 32, last_s=1.0, ttft_s=0.5)
    late = scene.running(32, 32, last_s=1.0, ttft_s=0.5, tpot_s=0.25)
    stray = scene.running(32, 32, last_s=1.0, **NOTHING)
    assert scene.plan(1.0) == {early: 1, late: 1} and scene.preempted == [stray]
    scene.table.remove(stray)
    scene.free_blocks = 0
    assert scene.plan(1.0) == {early: 1} and scene.preempted == [late]


def test_a_prompt_longer_than_any_batch_is_cut() -> None:
    scene = Scene(SlosServe(), PLENTY)
    scene.running(32, 32)
    long = scene.waiting(5000, **NOTHING)
    taken = scene.plan()
    assert 500 < taken[long] < 900


def test_a_best_effort_request_keeps_its_place_though_it_begins_in_the_round_that_judges_it() -> (
    None
):
    """Routing goes by the places of those that run."""
    scene = Scene(SlosServe(), PLENTY)
    stray = scene.waiting(50, **NOTHING)
    scene.step()
    assert scene.table.running.tolist() == [stray] and scene.table.key[stray] == PRIORITY_S
    found = standing_by_key(scene.table)
    assert found.best_effort.tolist() == [stray] and not len(found.decoding)


# --- several replicas ------------------------------------------------------------------------------------------------


def busy(policy: SlosServe) -> Scene:
    """It has promised 3,000 tokens by 0.35 s."""
    scene = Scene(policy, PLENTY)
    scene.waiting(3000, ttft_s=0.35)
    scene.plan()
    return scene


def test_a_request_goes_to_the_first_replica_whose_plan_has_room() -> None:
    """Round robin by id; 3,000 tokens in 0.31 s, behind 3,000 others they would be late."""
    policy = SlosServe()
    free, full = Scene(policy, PLENTY), busy(policy)
    tight, loose = Objective(0.35, 0.2), Objective(0.7, 0.2)
    for id in (4, 5):
        for scenes, tight_at, loose_at in (
            ([free, full], 0, id % 2), ([full, free], 1, id % 2), ([full, full], 1 - id % 2, id % 2),
        ):  # fmt: skip
            views = [scene.view for scene in scenes]
            assert policy.admit(request(id, 3000, tight), views, 0.0).replica == tight_at
            assert policy.admit(request(id, 3000, loose), views, 0.0).replica == loose_at
    verdict = policy.admit(request(4, 3000, loose), [full.view, free.view], 0.0)
    after_s = (
        0.199 + 0.01 + 0.0712
    )  # 400 tokens until 0.35 s, then 1,889 beside a decode, then the last 711
    assert verdict.predicted_ttft_s == pytest.approx(0.35 + after_s) and not verdict.refused
    verdict = policy.admit(request(5, 3000, loose), [full.view, free.view], 0.0)
    assert verdict.predicted_ttft_s == pytest.approx(0.31)


def test_round_robin_goes_round_whatever_n_is() -> None:
    """The prompt of a call with n choices has the first of n ids."""
    for n in (1, 2, 3, 4, 64):
        for replicas in (2, 3, 4):
            met = Counter(mixed(1 + n * i) % replicas for i in range(300))
            assert len(met) == replicas and max(met.values()) < 1.4 * 300 / replicas


def test_routing_goes_by_the_clock() -> None:
    """A token of long ago is no clock; one that an iteration in flight will have brought says when it is over."""
    policy = SlosServe()
    idle = Scene(policy, PLENTY)
    idle.running(32, 32, last_s=1.0, ttft_s=0.5)
    newcomer = request(4, 500, Objective(0.5, 0.2))
    views = [idle.view, idle.view]
    early, late, flying = (policy.admit(newcomer, views, at_s) for at_s in (1.0, 50.0, 0.9))
    assert early.predicted_ttft_s == pytest.approx(0.01 + 0.0501)
    assert late.predicted_ttft_s == pytest.approx(early.predicted_ttft_s)
    assert flying.predicted_ttft_s == pytest.approx(0.1 + early.predicted_ttft_s)
    full = busy(policy)
    quick = request(
        4, 400, Objective(0.2, 0.2)
    )  # 51 ms, of the 311 that the other one needs until 0.35 s
    for at_s, refused in ((0.0, True), (0.3, True)):
        assert bool(strict(burst="refuse").admit(quick, [full.view], at_s).refused) == refused
    assert not policy.admit(request(4, 400, Objective(0.5, 0.2)), [full.view], 0.0).refused


def test_an_arrival_asks_only_so_many_busy_replicas() -> None:
    """Those with the most prompts are left out."""
    policy = SlosServe()
    full = Scene(policy, 10 * PLENTY, seats=512)
    for _ in range(routing.MOST_WORK):
        full.waiting(16, ttft_s=60.0)
    free = Scene(policy, PLENTY)
    asked = request(4, 100, Objective(0.5, 0.2))
    placed = [
        policy.admit(asked, views, 0.0).replica
        for views in ([full.view, free.view], [free.view, full.view])
    ]
    assert placed == [1, 0]
    refusing = SlosServe(burst="refuse")
    assert refusing.admit(asked, [full.view], 0.0).refused


def test_without_routing_it_is_round_robin() -> None:
    policy = SlosServe(routing=False)
    views = [busy(policy).view, Scene(policy, PLENTY).view]
    assert [
        policy.admit(request(id, 3000, Objective(0.35, 0.2)), views, 0.0).replica for id in (4, 5)
    ] == [0, 1]


def test_what_no_replica_has_room_for_is_refused_if_asked() -> None:
    policy = SlosServe(burst="refuse")
    full, free = busy(policy).view, Scene(policy, PLENTY).view
    tight = request(4, 3000, Objective(0.35, 0.2))
    assert policy.admit(tight, [full, full], 0.0).refused.startswith("no replica of 2 can keep")
    assert (
        policy.admit(tight, [full], 0.0).refused
        and not policy.admit(tight, [full, free], 0.0).refused
    )
    plain = request(4, 3000, Objective(None, None, None))
    assert not policy.admit(plain, [full], 0.0).refused
    alone = SlosServe(burst="refuse", routing=False)
    assert alone.admit(tight, [full, free], 0.0).refused.startswith("no replica of 1")


def test_best_effort_requests_are_not_in_the_way() -> None:
    """They hold all blocks but one, and wait, too."""
    policy = SlosServe()
    scene = Scene(policy, blocks=1)
    scene.running(1600, 1600, **NOTHING)
    scene.waiting(5000, **NOTHING)
    scene.step()
    scene.table.key[scene.table.running] = PRIORITY_S  # the place where it would have waited
    views = [scene.view, Scene(policy, blocks=1).view]
    assert policy.admit(request(4, 500, Objective(0.5, 0.2)), views, 0.0).replica == 0


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_choices_of_a_best_effort_request_are_not_in_the_way_either() -> None:
    """They have never waited, so that they have no place; but from the next round on the engine knows."""
    world = World("slos-serve", blocks=200)
    world.submit(1, [5] * 10, 60, siblings=[2, 3], objective=Objective())
    world.run(until_s=0.15)
    table = world.core.replicas[0].table
    assert len(table.running) == 3
    standing = standing_by_key(table)
    assert len(standing.best_effort) == 3 and not len(standing.decoding)


def test_a_refusal_reaches_the_client() -> None:
    """200 tokens take 22 ms: of twenty such prompts at once, due in 60 ms, two or three can be admitted."""
    world = World("slos-serve", blocks=2000, params={"burst": "refuse"})  # type: ignore[dict-item]
    prompts = {id: [id] * 200 for id in range(1, 21)}
    for id, prompt in prompts.items():
        world.submit(id, prompt, max_tokens=4, objective=Objective(0.06, 0.2))
    world.run()
    taken = [id for id, reason in world.ended.items() if reason is Reason.LENGTH]
    assert 2 <= len(taken) <= 3 and world.core.refused == 20 - len(taken)
    assert {*world.ended.values()} == {Reason.LENGTH, Reason.REFUSED_SATURATED}
    assert all(world.delivered[id] == expected(prompts[id], 4) for id in taken)
    world.check_idle()


@pytest.mark.parametrize(
    "params", [{}, {"admission": "edf_sim"}, {"credit": False}, {"burst": "refuse"}]
)
def test_under_twice_the_load_half_is_kept(params: dict[str, Any]) -> None:
    """A prompt of 500 tokens every 25 ms, 60 ms of work each, due in 0.3 s: first come, first served, soon everybody is
    late. What is admitted is in time; what is not ends, too."""

    def in_time(name: str, given: dict[str, Any]) -> tuple[int, int]:
        arrivals = [
            Arrival(0.025 * i, 500, 5, Objective(0.3, 0.5), max_tokens=5) for i in range(100)
        ]
        patient = {"standard": SloClass(max_queue_ms=86_400_000)}
        config = Config(policy=name, pipeline_depth=0, slo_classes=patient)
        device = Device("toy", "paper", LINEAR, 1, PLENTY * 16)
        run = Simulation(
            load_policy(name, given), Workload.of("test", arrivals), device, config
        ).go()
        first_s = [f.token_s[0] - f.arrival.at_s if len(f.token_s) else inf for f in run.fates]
        return sum(s <= 0.3 + 1e-9 for s in first_s), sum(s < inf for s in first_s)

    kept, served = in_time("slos-serve", params)
    others, _ = in_time("vllm", {})
    assert kept >= (25 if "burst" in params else 35) and kept > 3 * others
    assert served == (100 if "burst" not in params else served) and served >= kept


def test_columns_of_a_slot_begin_anew() -> None:
    """A key left by whoever had the slot before would make a best-effort request of an admitted one."""
    scene = Scene(SlosServe())
    slot = scene.waiting(16, **NOTHING)
    scene.step()
    assert scene.table.key[slot] != 0.0
    scene.table.remove(slot)
    assert scene.table.add(request(9, 5, Objective(1.0)), 0.0) == slot
    assert scene.table.key[slot] == 0.0 and isinstance(scene.table.key, np.ndarray)
