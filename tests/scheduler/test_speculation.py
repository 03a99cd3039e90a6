"""Drafts planned, projected and settled: the same tokens as ever in fewer iterations, whatever the policy, and what is
reserved for drafts comes back. The default rule for their lengths, and the statistics it goes by."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from drafting_world import DRAFTS, CheckedWorld, Stating, prompt_of
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from recorded_world import RecordedWorld, recording_to
from scene import Scene
from world import POLICIES, World, expected

from accelgen.proto.config import Config
from accelgen.proto.messages import Objective, Reason, Thinking
from accelgen.proto.recording import read_recording
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.decision import BadDecision, Entries, check, clip
from accelgen.scheduler.draft_lengths import bounded, drafts_of
from accelgen.scheduler.moves import Reach
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policies.vllm import Vllm
from accelgen.scheduler.policy import Decision, Limits, View, load_policy
from accelgen.scheduler.replay import replay
from accelgen.scheduler.snapshot import Experience, unpacked
from accelgen.scheduler.speculation import PRIOR_RATE, Speculation
from accelgen.scheduler.table import Ints


class Eager(Stating):
    """States drafts itself, now many, now few, and asks nobody whether there are blocks for them."""

    def wanted(self, start_s: float) -> int:
        return int(start_s * 1e5) % 5


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("depth", [0, 1])
def test_the_same_tokens_in_fewer_iterations(policy: str, depth: int) -> None:
    plans = []
    for options in ({}, DRAFTS):
        world = CheckedWorld(policy, blocks=128, pipeline_depth=depth, **options)
        for id in range(1, 5):
            world.submit(id, prompt_of(10 + id, id), max_tokens=60, seed=id)
        world.run()
        for id in range(1, 5):
            assert world.delivered[id] == expected(prompt_of(10 + id, id), 60, id)
        world.check_idle()
        plans.append(sum(bool(plan.ids) for plan in world.plans))
    [worker], [replica] = world.workers, world.core.replicas.values()
    speculation = replica.speculation
    assert plans[1] < 0.75 * plans[0]
    assert worker.planned > worker.drafted > worker.accepted > 0
    assert (speculation.drafted, speculation.accepted) == (worker.drafted, worker.accepted)
    assert 0.5 < speculation.filled < 1


def test_a_plan_ahead_starts_where_the_worker_is() -> None:
    world = CheckedWorld("sarathi", pipeline_depth=1, **DRAFTS)
    world.submit(1, prompt_of(9), max_tokens=150)
    world.run()
    assert world.delivered[1] == expected(prompt_of(9), 150)
    assert world.workers[0].moved > 10
    world.check_idle()


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("last", range(1, 20))
def test_a_stop_token_amid_accepted_drafts_is_the_end(depth: int, last: int) -> None:
    prompt = prompt_of(7, 3)
    stop = expected(prompt, 20)[last]
    world = CheckedWorld(pipeline_depth=depth, **DRAFTS)
    world.submit(1, prompt, max_tokens=40, stop=[stop])
    world.run()
    assert world.delivered[1] == expected(prompt, 40, stop=[stop])
    assert world.ended == {1: Reason.STOP}
    world.check_idle()


@pytest.mark.parametrize("most", [1, 2, 5])
@pytest.mark.parametrize("wanted", [1, 2, 3, 4, 5, 6, 7])
def test_never_more_tokens_than_allowed(most: int, wanted: int) -> None:
    world = CheckedWorld("sarathi", **{**DRAFTS, "max_draft_tokens": most})
    world.submit(1, prompt_of(5), max_tokens=wanted)
    world.run()
    assert world.delivered[1] == expected(prompt_of(5), wanted)
    assert all(d <= most for plan in world.plans for d in plan.drafts)
    world.check_idle()


requests = st.lists(
    st.tuples(
        st.integers(1, 30),  # prompt length
        st.integers(1, 25),  # max_tokens
        st.floats(0, 0.2),  # arrival
        st.integers(0, 2),  # siblings
        st.sampled_from([None, None, 0.0, 0.01, 0.05]),  # aborted so long after arrival
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=120, deadline=None, phases=(Phase.explicit, Phase.generate))
@example(  # a forked choice whose tail is pinned by all that wait, without a block to copy it to
    policy="vllm", depth=0, blocks=24, limit=6, rule="adaptive", most=4, host_blocks=0, memory="",
    drawn=[
        (17, 16, 0.135, 2, 0.05), (27, 13, 0.1345, 1, None), (15, 12, 0.0, 1, 0.01), (19, 23, 0.138, 0, None),
        (5, 5, 0.0, 0, None), (15, 12, 0.0, 1, 0.01), (12, 10, 0.001, 2, None), (30, 12, 0.0, 2, None),
    ],
)  # fmt: skip
@given(
    policy=st.sampled_from([*POLICIES, "eager"]),
    depth=st.integers(0, 1),
    blocks=st.integers(14, 50),
    limit=st.sampled_from([6, 16, 8192]),
    rule=st.sampled_from(["fixed", "adaptive"]),
    most=st.integers(1, 6),
    host_blocks=st.sampled_from([None, 0, 6, 200]),
    memory=st.sampled_from(["", "", "cacheopt"]),
    drawn=requests,
)
def test_any_load_with_drafts(
    policy: str, depth: int, blocks: int, limit: int, rule: str, most: int,
    host_blocks: int | None, memory: str, drawn: list[tuple],
) -> None:  # fmt: skip
    """Aborts, preemption, swapping, embedding, growth ahead of need, dropped entries, siblings, thinking that ends amid
    a run of tokens, all amid speculation: each request ends once with its own tokens."""
    world = CheckedWorld(
        "sarathi" if policy == "eager" else policy, blocks, 4, pipeline_depth=depth,
        max_num_batched_tokens=limit, max_num_seqs=8, drafter="ngram", max_draft_tokens=most,
        draft_tokens=rule, memory=memory, host_blocks=host_blocks or 0,
        preemption="recompute" if host_blocks is None else "swap",
    )  # fmt: skip
    thinks = Objective(0.5, 0.05, None, Thinking(0.02, list(range(1, 97, 9)), 7))
    if policy == "eager":
        world.core.replicas[0].policy = Eager()
    wanted: dict[int, tuple[list[int], int, int]] = {}
    for i, (length, max_tokens, at_s, siblings, abort_s) in enumerate(drawn):
        ids = [100 * (i + 1) + j for j in range(1 + siblings)]
        prompt = prompt_of(length, seed=i % 3)
        goal = thinks if i % 2 else Objective(0.5, 0.05)
        world.submit(ids[0], prompt, max_tokens, at_s, ids[1:], goal, seed=i)
        for j, id in enumerate(ids):
            wanted[id] = (prompt, max_tokens, i + j)
        if abort_s is not None:
            world.abort([ids[0]], at_s + abort_s)
    world.run()
    assert set(world.ended) == set(wanted)
    for id, (prompt, max_tokens, seed) in wanted.items():
        right = expected(prompt, max_tokens, seed)
        got = world.delivered[id]
        assert got == (right if world.ended[id] is Reason.LENGTH else right[: len(got)])
    world.check_idle()


@pytest.mark.parametrize("depth", [0, 1])
def test_memory_pressure_preempts_amid_drafts(depth: int) -> None:
    preempted = accepted = 0
    for seed in range(6):
        world = CheckedWorld("sarathi", blocks=20, block_size=4, pipeline_depth=depth, **DRAFTS)
        world.core.replicas[0].policy = Eager()
        for id in range(1, 7):
            world.submit(id, prompt_of(8, seed + id), max_tokens=30, seed=seed)
        world.run()
        for id in range(1, 7):
            assert world.delivered[id] == expected(prompt_of(8, seed + id), 30, seed)
        world.check_idle()
        preempted += world.core.replicas[0].preemptions
        accepted += world.workers[0].accepted
    assert preempted > 5 and accepted > 60


@pytest.mark.parametrize("depth", [0, 1])
@pytest.mark.parametrize("kv", [False, True])
def test_crashes_amid_drafts(depth: int, kv: bool) -> None:
    """At any moment: what was counted for drafts is not believed by who takes over."""
    for hundredth_s in range(1, 16):
        world = CheckedWorld("sarathi", blocks=128, pipeline_depth=depth, **DRAFTS)
        for id in range(1, 5):
            world.submit(id, prompt_of(12, id), max_tokens=40, seed=id)
        world.crash(hundredth_s / 100, kv=kv)
        world.lose_batch(hundredth_s / 100 + 0.02)
        world.run()
        for id in range(1, 5):
            assert world.delivered[id] == expected(prompt_of(12, id), 40, id)
        world.check_idle()


def test_a_replay_carries_out_the_recorded_drafts(tmp_path: Any) -> None:
    path = tmp_path / "dump"
    for seed in range(4):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld(
                "sarathi", blocks=60, pipeline_depth=seed % 2, max_num_seqs=8,
                drafter="ngram", max_draft_tokens=4,
            )  # fmt: skip
            for id in range(1, 15):
                stop = [draw.randrange(1, 97) for _ in range(6)]
                prompt = prompt_of(draw.randrange(3, 20), id)
                world.submit(id, prompt, draw.randrange(2, 40), draw.random() * 0.2, stop=stop)
            world.run()
        assert any(plan.drafts for plan in world.plans)
        assert Reason.STOP in world.ended.values()
        outcome = replay(read_recording(path), load_policy("sarathi", {}))
        assert all(one.same for one in outcome.comparisons) and not outcome.skipped, seed
        assert sum(one.step >= 0 for one in outcome.comparisons) == len(world.plans)


# --- statistics ----------------------------------------------------------------------------------------------------


def test_what_is_judged_counts() -> None:
    """Of 4 drafts with 2 accepted, 3 were judged; with 4 accepted, 4; with none made, none."""
    scene = Scene(Sarathi())
    slot = scene.running(20, 20)
    speculation = Speculation(4)
    assert speculation.rate == PRIOR_RATE
    speculation.observe(scene.table, slot, 4, 4, 2)
    assert (scene.table.draft_hits[slot], scene.table.draft_trials[slot]) == (2, 3)
    speculation.observe(scene.table, slot, 4, 4, 4)
    assert scene.table.draft_hits[slot] == pytest.approx(0.9 * 2 + 4)
    assert scene.table.draft_trials[slot] == pytest.approx(0.9 * 3 + 4)
    before, filled = speculation.rate, speculation.filled
    speculation.observe(scene.table, slot, 4, 0, 0)
    assert speculation.rate == before and speculation.filled == pytest.approx(0.995 * filled)
    assert (speculation.drafted, speculation.accepted, speculation.verified) == (8, 6, 2)


def test_the_rate_is_the_probability_of_a_right_token() -> None:
    """Drafts of 1 to 5 tokens, each right with probability 0.8 if those before are. At one moment the rate has a
    standard deviation of 0.013 (it weighs some 400 verifications of 2.3 judged tokens), the mean of ten moments less
    than 0.006: 0.02 is exceeded in one of a thousand seeds."""
    draw = random.Random(4)
    scene = Scene(Sarathi())
    slot, other = scene.running(20, 20), scene.running(20, 20)
    speculation, rates = Speculation(5), []
    for i in range(4000):
        drafted = draw.randrange(1, 6)
        right = next((k for k in range(drafted) if draw.random() >= 0.8), drafted)
        speculation.observe(scene.table, slot, 5, drafted, right)
        if i % 400 == 399:
            rates.append(speculation.rate)
    assert np.mean(rates) == pytest.approx(0.8, abs=0.02)
    own, unknown = speculation.rates(scene.table, np.array([slot, other]))
    assert own == pytest.approx(0.8, abs=0.2)
    assert unknown == pytest.approx(speculation.rate)  # nothing of its own: the replica's


def test_what_was_learnt_is_handed_over() -> None:
    world = World("vllm", **DRAFTS)
    world.submit(1, prompt_of(9), max_tokens=50)
    world.run()
    learnt = world.core.replicas[0].speculation
    experience = Experience()
    experience.take_from(world.core)
    heir = World("vllm", **DRAFTS)
    unpacked(experience.packed(Vllm()), Vllm()).give_to(heir.core)
    assert heir.core.replicas[0].speculation.state() == learnt.state() != Speculation().state()


def test_gauges() -> None:
    assert Speculation().gauges("accelgen:", "") == {}
    found = Speculation(4, drafted=10, accepted=6, verified=5).gauges("accelgen:", '{replica="0"}')
    assert found['accelgen:spec_decode_num_draft_tokens_total{replica="0"}'] == 10
    assert found['accelgen:spec_decode_num_accepted_tokens_total{replica="0"}'] == 6
    assert found['accelgen:spec_decode_acceptance_rate{replica="0"}'] == PRIOR_RATE


def test_the_configuration_says_whether_and_how_many() -> None:
    assert Speculation.of(Config()).most == 0
    made = Speculation.of(Config(drafter="ngram", max_draft_tokens=7, draft_tokens="fixed"))
    assert (made.most, made.adaptive) == (7, False)
    with pytest.raises(ValueError, match="draft_tokens: 'many' is not one of adaptive, fixed"):
        Config(draft_tokens="many")


# --- lengths -------------------------------------------------------------------------------------------------------


def view_of(scene: Scene, speculation: Speculation) -> View:
    plain = scene.view
    return replace(plain, pinned_blocks=0, speculation=speculation)


def choose(view: View, entries: Entries, **what: Any) -> Ints:
    """What the engine drafts for a decision of these entries."""
    decision = Decision(entries.slots.tolist(), entries.counts.tolist(), [], **what)
    reach = Reach(entries, [], [], [])
    return drafts_of(view, decision, reach, entries.drafts, view.free_blocks)


def entries_of(scene: Scene, slots: list[int], counts: list[int] | None = None) -> Entries:
    counts = counts or [1] * len(slots)
    return check(Decision(slots, counts, []), scene.table, "test")


FLAT = Coefficients(a=0.1, b=0.0, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)  # further tokens are free
STEEP = Coefficients(a=0.001, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)


def with_rates(scene: Scene, slots: list[int], rates: list[float]) -> None:
    for slot, rate in zip(slots, rates, strict=True):
        scene.table.draft_hits[slot], scene.table.draft_trials[slot] = 1e6 * rate, 1e6


def test_fixed_lengths_end_where_the_request_does() -> None:
    scene = Scene(Sarathi())
    slots = [scene.running(20, 20, max_tokens=n) for n in (2, 3, 4, 100)]
    slots += [scene.running(20, 7), scene.waiting(20)]
    entries = entries_of(scene, slots, [1, 1, 1, 1, 5, 20])
    found = choose(view_of(scene, Speculation(3, adaptive=False)), entries)
    # 2 tokens, one is there, one comes: no draft; prompts have none
    assert found.tolist() == [0, 1, 2, 3, 0, 0]


def test_lengths_follow_the_rates() -> None:
    """Where tokens are free, drafts of a rate above the least one go on until they are less likely: 0.9^s >= 0.2 up to
    15, 0.6^s up to 3, 0.5^s up to 2, 0.3^s up to 1, 0.1 never."""
    scene = Scene(Sarathi(), cost=FLAT)
    slots = [scene.running(20, 20) for _ in range(5)]
    with_rates(scene, slots, [0.9, 0.6, 0.5, 0.3, 0.1])
    found = choose(view_of(scene, Speculation(20)), entries_of(scene, slots))
    assert found.tolist() == [15, 3, 2, 1, 0]


def test_an_expensive_token_is_not_drafted_but_now_and_then_one_is_tried() -> None:
    """10 ms per token, 31 ms for three decodes: a draft must be likelier than 10 * 3 / 31."""
    scene = Scene(Sarathi(), cost=STEEP)
    slots = [scene.running(20, 20), scene.running(31, 31), scene.running(20, 20)]
    with_rates(scene, slots, [0.95, 0.1, 0.98])
    found = choose(view_of(scene, Speculation(4)), entries_of(scene, slots))
    assert found.tolist() == [0, 0, 1]  # 0.98 > 30 / 31 for one draft only
    # who has 32 tokens is the first of these: time to try
    found = choose(view_of(scene, Speculation(4)), entries_of(scene, slots[1:]))
    assert found.tolist() == [1, 2]


def test_single_drafts_are_tried_in_the_same_iterations() -> None:
    """Of 20 decodes at any lengths one would else try in nearly every iteration, and all wait for the drafter. At most
    16 do, by turns."""
    scene = Scene(Sarathi(), blocks=500, cost=STEEP)
    slots = [scene.running(20 + i, 20 + i) for i in range(20)]
    with_rates(scene, slots, [0.1] * 20)
    tried = np.array([], dtype=np.int64)
    for _ in range(80):
        found = choose(view_of(scene, Speculation(4)), entries_of(scene, slots))
        assert found.sum() in (0, 16)
        tried = np.append(tried, np.flatnonzero(found))
        scene.table.plan(np.array(slots), np.ones(20, dtype=np.int64), 0.0)
    assert np.bincount(tried).tolist() == [4] * 20


def test_whoever_drafts_does_not_keep_others_from_trying() -> None:
    """The first one's drafts are all accepted: its length goes on by four, and never past a multiple of 16."""
    scene = Scene(Sarathi(), blocks=500, cost=STEEP)
    slots = [scene.running(21, 21), scene.running(40, 40)]
    with_rates(scene, slots, [0.999, 0.1])
    tried = 0
    for _ in range(64):
        tried += int(choose(view_of(scene, Speculation(3)), entries_of(scene, slots))[1])
        scene.table.plan(np.array(slots), np.array([1, 1]), 0.0)
        for column in (scene.table.length, scene.table.computed, scene.table.limit):
            column[slots[0]] += 3
    assert tried == 4


def test_the_drafters_own_time_is_part_of_the_price() -> None:
    """10 ms an iteration, tokens for nothing, 5 ms for a step of the drafter: of a request at 0.6 the first draft
    brings 0.6 tokens in a time that otherwise brings 0.5, the second 0.36. Three requests share the steps."""
    flat = Coefficients(a=0.01, b=0.0, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
    scene = Scene(Sarathi(), cost=flat)
    slots = [scene.running(20, 20) for _ in range(3)]
    with_rates(scene, slots, [0.6, 0.6, 0.6])
    speculation = Speculation(4, step_s=0.005)
    alone = choose(view_of(scene, speculation), entries_of(scene, slots[:1]))
    assert alone.tolist() == [1]
    both = choose(view_of(scene, speculation), entries_of(scene, slots))
    assert both.tolist() == [1, 1, 1]  # 1.08 tokens in a time that brings 1.5
    speculation.step_s = 0.0065  # 0.65 tokens
    assert choose(view_of(scene, speculation), entries_of(scene, slots)).tolist() == [0, 0, 0]


def test_the_price_is_that_of_all_drafts_together() -> None:
    """200 decodes, 20 ms, 256 tokens of them for nothing, each further one 40 us: one draft each is 144 tokens beyond
    the knee, 29 us each, for which the iteration brings 0.29 tokens; a second one each would be 40 us, 0.4 tokens, for
    0.36."""
    knee = Coefficients(a=0.02, b=0.0, b2=4e-5, c=0.0, d=0.0, e=0.0, knee=256.0)
    scene = Scene(Sarathi(), blocks=1000, seats=256, cost=knee)
    slots = [scene.running(20, 20) for _ in range(200)]
    with_rates(scene, slots, [0.6] * 200)
    found = choose(view_of(scene, Speculation(4)), entries_of(scene, slots))
    assert found.tolist() == [1] * 200


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_drafter_that_makes_nothing_is_only_probed(adaptive: bool) -> None:
    scene = Scene(Sarathi(), cost=FLAT)
    slots = [scene.running(20, 20), scene.running(31, 31)]
    speculation = Speculation(3, adaptive)
    assert choose(view_of(scene, speculation), entries_of(scene, slots)).tolist() != [0, 1]
    for _ in range(1000):
        speculation.observe(scene.table, slots[0], 3, 0, 0)
    assert choose(view_of(scene, speculation), entries_of(scene, slots)).tolist() == [0, 0]
    assert choose(view_of(scene, speculation), entries_of(scene, slots[1:])).tolist() == [1]


def test_the_time_of_a_step_is_a_mean() -> None:
    speculation = Speculation(4)
    for longest, seconds in ((4, 0.02), (0, 9.0), (2, 0.03)):
        speculation.observe_time(longest, seconds)
    assert speculation.step_s == pytest.approx(0.01)
    assert speculation.seconds(np.array([1, 3, 0])) == pytest.approx(0.03)
    assert speculation.seconds(None) == 0
    for _ in range(300):
        speculation.observe_time(2, 0.004)
    assert speculation.step_s == pytest.approx(0.002, rel=0.01)


def test_who_inherits_no_time_measures_it() -> None:
    """A forerunner that drafted nothing does not know it: its zero is no mean of 32 iterations."""
    heir = Speculation(4)
    heir.go_on_from(Speculation(4).state())
    heir.observe_time(2, 0.02)
    assert heir.step_s == pytest.approx(0.01)
    second = Speculation(4)
    second.go_on_from(heir.state())
    second.observe_time(2, 0.2)
    assert second.step_s < 0.015


def test_drafts_take_only_what_is_left() -> None:
    scene = Scene(Sarathi(), blocks=3, tokens=8, cost=FLAT)
    slots = [scene.running(14, 14), scene.running(15, 15), scene.running(10, 10)]
    with_rates(scene, slots, [0.7, 0.9, 0.8])
    speculation = Speculation(3, adaptive=False)
    found = choose(view_of(scene, speculation), entries_of(scene, slots))
    # 8 tokens, 3 are taken: the likeliest get 3 and 2. The one with 16 would need a block: 3 free, 3 running
    assert found.tolist() == [0, 0, 2]
    roomy = Scene(Sarathi(), blocks=4, tokens=8, cost=FLAT)
    slots = [roomy.running(14, 14), roomy.running(15, 15), roomy.running(10, 10)]
    with_rates(roomy, slots, [0.7, 0.9, 0.8])
    assert choose(view_of(roomy, speculation), entries_of(roomy, slots)).tolist() == [0, 3, 2]


def test_stated_drafts_are_checked_and_cut() -> None:
    scene = Scene(Sarathi())
    decode, prompt = scene.running(20, 20, max_tokens=4), scene.running(20, 7)
    with pytest.raises(BadDecision, match="does not decode"):
        check(Decision([decode, prompt], [1, 5], [], drafts=[0, 1]), scene.table, "x")
    with pytest.raises(BadDecision, match="drafts are missing"):
        check(Decision([decode], [1], [], drafts=[]), scene.table, "x")
    with pytest.raises(BadDecision, match="fewer than none"):
        check(Decision([decode], [1], [], drafts=[-1]), scene.table, "x")
    entries = check(Decision([decode], [1], [], drafts=[9]), scene.table, "x")
    assert entries.drafts is not None
    assert bounded(entries.drafts, entries, scene.table, 5).tolist() == [2]
    assert bounded(entries.drafts, entries, scene.table, 0).tolist() == [0]
    clip(entries, 16, Limits(8, 6, 100.0), scene.cost)
    assert entries.drafts.tolist() == [5]
    clip(entries, 16, Limits(8, 6, 0.0101), scene.cost)  # 10.1 ms for one token, 10.6 for six
    assert entries.drafts is None and entries.counts.tolist() == [1]


def test_a_decode_with_drafts_is_a_chunk_to_the_cost_model() -> None:
    scene = Scene(Sarathi())
    slots = [scene.running(20, 20), scene.running(30, 30)]
    entries = check(Decision(slots, [1, 1], [], drafts=[3, 0]), scene.table, "x")
    assert (entries.work.prefill_tokens, entries.work.decode_seqs) == (4, 1)
    assert entries.work.prefill_work == 4 * (20 + 2) and entries.work.decode_context == 30
