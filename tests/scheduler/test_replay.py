"""What was recorded of a scheduler, run through the same policy and through others."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import msgpack
import msgspec
import pytest
from drafting_world import Stating
from recorded_world import RecordedWorld, recording_to

from accelgen.proto.messages import Objective, Plan, Reason
from accelgen.proto.recording import Fact, RecordingError, read_recording
from accelgen.scheduler.comparison import PolicyFailed
from accelgen.scheduler.core import SchedulerCore
from accelgen.scheduler.policies.sarathi import Sarathi
from accelgen.scheduler.policies.vllm import Vllm
from accelgen.scheduler.policy import Decision, load_policy
from accelgen.scheduler.recording import CORE_MADE, LEARNT_EVERY, RecordedCore
from accelgen.scheduler.replay import (
    FOREIGN,
    NOT_LEARNT,
    OTHER_POLICY,
    Outcome,
    recorded_policy,
    replay,
)
from accelgen.scheduler.snapshot import Snapshot

POLICIES = ["accelgen", "sarathi", "vllm"]
OBJECTIVES = [
    Objective(0.05, 0.01), Objective(5.0, 0.25), Objective(None, None, 2.0), Objective(),
]  # fmt: skip


def load(world: RecordedWorld, draw: random.Random, count: int, span_s: float) -> None:
    """Random requests: common beginnings, siblings, stop tokens, aborts, all kinds of objectives."""
    for i in range(count):
        id, at_s = 10 * i + 1, draw.random() * span_s
        prompt = [7] * draw.randrange(1, 10) + [
            draw.randrange(1, 97) for _ in range(draw.randrange(1, 25))
        ]
        world.submit(
            id, prompt, draw.randrange(1, 20), at_s,
            siblings=[id + 1, id + 2][: draw.choice([0, 0, 1, 2])], seed=i,
            stop=[draw.randrange(1, 97) for _ in range(8)],
            objective=draw.choice(OBJECTIVES), slo_class=draw.choice(["chat", "batch"]),
        )  # fmt: skip
        if draw.random() < 0.2:
            world.abort([id], at_s + draw.random() * 0.1)


def different(outcome: Outcome) -> int:
    return sum(not one.same for one in outcome.comparisons)


REMEMBERING = ("accelgen", "accelgen-plus", "cacheopt", "fastserve", "qoserve", "slos-serve")
"""With more state than the others, which take long for what they show beside `accelgen`."""


@pytest.mark.parametrize(
    "policy",
    [
        pytest.param(name, marks=() if name in REMEMBERING else pytest.mark.slow)
        for name in POLICIES
    ],
)
def test_the_recorded_policy_decides_the_same(policy: str, tmp_path: Path) -> None:
    """Whatever happened: every decision is compared, and none differs. Other policies differ in some."""
    path, seen, others = tmp_path / "dump", Counter[str](), 0
    for seed in range(12):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld(
                policy, blocks=draw.choice([18, 24, 200]), replicas=1 + seed % 2,
                pipeline_depth=draw.randrange(2), max_num_seqs=8,
                max_num_batched_tokens=draw.choice([8, 8192]),
            )  # fmt: skip
            load(world, draw, draw.randrange(1, 30), 0.4)
            world.run()
        recording = read_recording(path)
        outcome = replay(recording, load_policy(policy, {}))
        assert different(outcome) == 0 and not outcome.skipped and not outcome.elsewhere, seed
        assert sum(one.step >= 0 for one in outcome.comparisons) == len(world.plans)
        seen["plans"] += len(world.plans)
        seen["preempted"] += sum(len(plan.preempt) for plan in world.plans)
        seen["stopped"] += list(world.ended.values()).count(Reason.STOP)
        seen["aborted"] += list(world.ended.values()).count(Reason.ABORTED)
        seen["forks"] += sum(len(plan.forks) for plan in world.plans)
        others += sum(
            different(replay(recording, load_policy(name, {})))
            for name in POLICIES
            if name != policy
        )
    assert seen["plans"] > 500 and min(seen.values()) > 3, seen
    assert others > 50


@pytest.mark.parametrize("routing", ["round-robin", "prefix-affinity"])
def test_requests_are_put_where_the_routing_had_put_them(routing: str, tmp_path: Path) -> None:
    """The choice was not the policy's, so that it is not compared; what a routing remembers is not recorded."""
    path = tmp_path / "dump"
    for seed in range(4):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld("sarathi", replicas=3, routing=routing)
            load(world, draw, 20, 0.4)
            if seed % 2:
                world.crash(0.2)
            world.run()
        recording = read_recording(path)
        for policy in ("sarathi", "vllm"):
            outcome = replay(recording, load_policy(policy, {}))
            assert not outcome.skipped and not outcome.elsewhere and outcome.arrivals >= 20
            assert (different(outcome) == 0) == (policy == "sarathi"), seed
        made = [e for e in recording.events if isinstance(e, Fact) and e.name == CORE_MADE]
        assert len(made) == 1 + seed % 2
        for one in made:
            known = msgspec.msgpack.decode(one.values["snapshot"], type=Snapshot)
            assert (known.routing, known.routing_state) == (routing, None)
            assert one.values["config"]["routing"] == routing


class WithoutDrafts(Stating):
    """Sarathi's decisions, but nobody may draft."""

    def wanted(self, start_s: float) -> int:
        return 0


@pytest.mark.parametrize("lengths", ["fixed", "adaptive"])
def test_drafts_are_part_of_a_decision(lengths: str, tmp_path: Path) -> None:
    """Whoever decides the same but for the drafts has decided something else, in each iteration that has any."""
    path, drafted = tmp_path / "dump", 0
    for seed in range(4):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld(
                "sarathi", blocks=draw.choice([24, 200]), pipeline_depth=seed % 2, max_num_seqs=8,
                drafter="ngram", max_draft_tokens=3, draft_tokens=lengths,
            )  # fmt: skip
            load(world, draw, 12, 0.2)
            world.run()
        recording = read_recording(path)
        outcome = replay(recording, load_policy("sarathi", {}))
        assert different(outcome) == 0 and not outcome.skipped, seed
        other = replay(recording, WithoutDrafts())
        with_drafts = {plan.step for plan in world.plans if any(plan.drafts)}
        assert {one.step for one in other.comparisons if not one.same} == with_drafts
        drafted += len(with_drafts)
    assert drafted > 40


@pytest.mark.parametrize("policy", ["qoserve", "slidingserve"])
def test_who_was_moved_in_the_waiting_order_is_moved_again(policy: str, tmp_path: Path) -> None:
    """Both put prompts that will be late behind the others."""
    path, late = tmp_path / "dump", 0
    for seed in range(6):
        with recording_to(path):
            world = RecordedWorld(policy, max_num_seqs=4, max_num_batched_tokens=16)
            load(world, random.Random(seed), 30, 0.2)
            world.run()
        outcome = replay(read_recording(path), load_policy(policy, {}))
        assert different(outcome) == 0 and not outcome.skipped, seed
        state = world.core.replicas[0].state
        late += len(state.relegated if policy == "qoserve" else state.ids)
    assert late > 10


@pytest.mark.parametrize("policy", POLICIES)
def test_across_takeovers(policy: str, tmp_path: Path) -> None:
    """Several cores in one recording: each takes over what the one before left."""
    path, cores = tmp_path / "dump", 0
    for seed in range(8):
        draw = random.Random(seed)
        with recording_to(path):
            world = RecordedWorld(policy, blocks=draw.choice([40, 200]), replicas=1 + seed % 2)
            load(world, draw, 12, 0.3)
            for _ in range(draw.randrange(1, 4)):
                world.crash(draw.random() * 0.4)
            world.run()
        outcome = replay(read_recording(path), load_policy(policy, {}))
        assert different(outcome) == 0 and not outcome.skipped, (seed, outcome.skipped)
        assert sum(one.step >= 0 for one in outcome.comparisons) > 0
        cores += world.epoch
    assert cores > 8


@pytest.mark.parametrize("policy", POLICIES)
def test_a_recording_that_begins_amid_a_run(policy: str, tmp_path: Path) -> None:
    """What cannot be compared is counted; what can be, does not differ, memory and all."""
    path, draw = tmp_path / "dump", random.Random(3)
    with recording_to(path, most_events=4000):
        world = RecordedWorld(policy, blocks=400)
        load(world, draw, 300, 6.0)
        world.submit(9001, [5] * 9, max_tokens=400, at_s=2.0)
        world.run()
    outcome = replay(read_recording(path), load_policy(policy, {}))
    assert len(world.plans) > 3 * LEARNT_EVERY
    assert set(outcome.skipped) == {NOT_LEARNT, FOREIGN}, outcome.skipped
    assert len(outcome.comparisons) > 100 and different(outcome) == 0


class Stingy(Sarathi):
    """Gives every prompt chunk one token less, where it can."""

    def plan(self, view, state, start_s):  # type: ignore[no-untyped-def]
        decision, state = super().plan(view, state, start_s)
        decision.counts = [max(1, count - 1) for count in decision.counts]
        return decision, state


def one_request(path: Path, policy: str = "sarathi", **params: float) -> None:
    with recording_to(path):
        world = RecordedWorld(policy, params=params)
        world.submit(1, list(range(1, 20)), max_tokens=5)
        world.run()


def test_one_token_less_is_a_difference(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    one_request(path)
    outcome = replay(read_recording(path), Stingy())
    [first] = [one for one in outcome.comparisons if not one.same]
    assert (first.step, first.recorded.counts) == (0, {1: 19})
    assert first.other is not None and first.other.counts == {1: 18}
    assert first.other.predicted_s < first.recorded.predicted_s


def test_a_changed_recording_is_a_difference(tmp_path: Path) -> None:
    """The comparison sees what was sent, not what it has computed itself."""
    path = tmp_path / "dump"
    one_request(path)
    records = list(msgpack.Unpacker(path.open("rb")))
    fields = len(Plan.__struct_fields__)
    place = next(i for i, r in enumerate(records) if i and r[1] == "send" and len(r[4]) == fields)
    records[place][4][3] = [18]  # counts of the first Plan
    path.write_bytes(b"".join(map(msgpack.packb, records)))
    outcome = replay(read_recording(path), Sarathi())
    assert not outcome.comparisons[0].same


class Raising(Vllm):
    def plan(self, view, state, start_s):  # type: ignore[no-untyped-def]
        raise ZeroDivisionError("made to\nfail")


class Greedy(Vllm):
    def plan(self, view, state, start_s):  # type: ignore[no-untyped-def]
        decision, state = super().plan(view, state, start_s)
        return Decision(decision.slots, [count + 1 for count in decision.counts], []), state


class NoKey(Vllm):
    def order_key(self, view, slot, state):  # type: ignore[no-untyped-def]
        raise KeyError(slot)


def test_policies_that_fail(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    one_request(path)
    recording = read_recording(path)
    outcome = replay(recording, Raising())
    assert {one.fault for one in outcome.comparisons} == {"ZeroDivisionError: made to fail"}
    assert different(outcome) == len(outcome.comparisons)
    outcome = replay(recording, Greedy())
    assert any(one.fault.startswith("BadDecision: vllm: an entry") for one in outcome.comparisons)
    with pytest.raises(PolicyFailed, match="vllm: order_key: KeyError"):
        replay(recording, NoKey())


def test_parameters_are_known(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    one_request(path, chunk_size=4)
    recording = read_recording(path)
    assert recorded_policy(recording)[0] == "sarathi"
    assert different(replay(recording, Sarathi(chunk_size=4))) == 0
    assert different(replay(recording, Sarathi())) > 0


def test_only_the_last_policy_is_compared(tmp_path: Path) -> None:
    """A process that has been in office twice, with two policies."""
    path = tmp_path / "dump"
    with recording_to(path):
        for policy in ("vllm", "sarathi"):
            world = RecordedWorld(policy, max_num_batched_tokens=16)
            load(world, random.Random(1), 10, 0.1)
            world.run()
    recording = read_recording(path)
    assert recorded_policy(recording) == ("sarathi", {})
    outcome = replay(recording, Sarathi())
    assert different(outcome) == 0 and len(outcome.comparisons) >= len(world.plans)
    assert set(outcome.skipped) == {OTHER_POLICY} and outcome.skipped[OTHER_POLICY] > 10


def test_a_recording_without_decisions(tmp_path: Path) -> None:
    path = tmp_path / "dump"
    with recording_to(path):
        pass
    with pytest.raises(RecordingError, match="has recorded no scheduling decision"):
        recorded_policy(read_recording(path))


def test_everything_that_changes_the_core_is_recorded() -> None:
    """A new method of the core must be recorded, too, or be named here as one that only looks."""
    looks = {"next_s", "resting", "settled", "busy", "overdue", "starved_s", "due", "tick"}
    public = {name for name in vars(SchedulerCore) if not name.startswith("_")}
    assert public - looks == {name for name in vars(RecordedCore) if not name.startswith("_")}
