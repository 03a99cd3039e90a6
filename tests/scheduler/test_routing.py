"""Which replica a request goes to: each rule by itself, what all of them promise, and what survives a takeover."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from routing_scene import BLOCK, Scene, known_keys, request_of
from world import World, expected

from accelgen.proto.config import Config
from accelgen.proto.messages import Lookup, Objective, Prompt, Reason, Submit
from accelgen.proto.policies import known_routings, parse_routing
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.decision import BadDecision
from accelgen.scheduler.policies.vllm import Vllm
from accelgen.scheduler.policy import UnknownPolicy, Verdict, View, load_policy
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.placement import Placement
from accelgen.scheduler.routing.policy import load_routing
from accelgen.scheduler.routing.prefix_affinity import PrefixAffinity, Seen
from accelgen.scheduler.routing.prefixes import Keys, chain, matched, note
from accelgen.scheduler.routing.shared import Forgetful
from accelgen.scheduler.snapshot import MOST_BYTES, Experience, unpacked

ROUTINGS = known_routings()
TURNS = ("round-robin", "least-load")


def prompt_of(length: int, name: int) -> list[int]:
    return [1 + (name * 31 + i * 7) % 96 for i in range(length)]


# --- the rules -------------------------------------------------------------------------------------------------------


def test_the_installed_ones() -> None:
    assert ROUTINGS == ["least-load", "planned", "prefix-affinity", "round-robin"]
    for name in ROUTINGS:
        assert load_routing(name).name == name
    assert load_routing("").name == "planned"


def test_parameters_come_with_the_name() -> None:
    assert parse_routing("a:b=1:c=0.5:d=true:e=x") == (
        "a", {"b": 1, "c": 0.5, "d": True, "e": "x"}
    )  # fmt: skip
    routing = load_routing("prefix-affinity:share=0.5:apart=3:ratio=2:blocks=7")
    assert isinstance(routing, PrefixAffinity)
    assert (routing.share, routing.apart, routing.ratio, routing.blocks) == (0.5, 3, 2, 7)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("roundrobin", "there is no routing 'roundrobin'; did you mean round-robin"),
        ("round-robin:", "routing: '' of 'round-robin:' is not of the form key=value"),
        ("prefix-affinity:x=1", "routing: prefix-affinity: .*unexpected keyword argument 'x'"),
        ("prefix-affinity:ratio=0.5", "routing: prefix-affinity: ratio: 0.5, must be at least 1"),
        ("prefix-affinity:apart=-1", "apart: -1 requests, must be at least 0"),
        ("prefix-affinity:blocks=0", "blocks: 0, must be at least 1"),
        ("prefix-affinity:share=1.5", "share: 1.5, must be at most 1"),
    ],
)
def test_what_cannot_be_chosen(text: str, says: str) -> None:
    with pytest.raises(UnknownPolicy, match=says):
        load_routing(text)


def test_round_robin_goes_round_whatever_the_load() -> None:
    scene = Scene(load_routing("round-robin"), 3)
    assert [scene.home[scene.send(prompt_of(8 * i, i))] for i in range(1, 8)] == [
        0, 1, 2, 0, 1, 2, 0
    ]  # fmt: skip
    assert scene.order([1]) == [1, 2, 0]


def test_round_robin_passes_over_who_is_down() -> None:
    scene = Scene(load_routing("round-robin"), 4)
    scene.send([1])
    scene.down = {1, 2}
    assert [scene.home[scene.send([1])] for _ in range(4)] == [3, 0, 3, 0]
    scene.down = set()
    assert scene.home[scene.send([1])] == 1


def test_least_load_counts_tokens_to_process_and_kv() -> None:
    scene = Scene(load_routing("least-load"), 3)
    long = scene.send(prompt_of(40, 1))  # 0: 40 to process, 40 of KV to come
    short = scene.send(prompt_of(8, 2))  # 1: 8 and 8
    assert scene.home[short] == 1
    assert scene.order([1]) == [2, 1, 0]
    scene.run(long)  # 0: 40 of KV, and nothing to process
    scene.run(short)
    scene.send(prompt_of(12, 3))  # 2: 12 to process and 12 of KV to come are 24
    assert scene.order([1]) == [1, 2, 0]
    scene.end(long)
    assert scene.order([1]) == [0, 1, 2]


def test_least_load_takes_turns_among_equals() -> None:
    """Requests that each end before the next one comes: the first replica is no better than the others."""
    scene = Scene(load_routing("least-load"), 3)
    homes = []
    for i in range(9):
        id = scene.send(prompt_of(8, i))
        homes.append(scene.home[id])
        scene.end(id)
    assert homes == [0, 1, 2] * 3


def test_affinity_goes_where_the_longest_prefix_is() -> None:
    scene = Scene(load_routing("prefix-affinity"), 3)
    first = scene.send(prompt_of(40, 1))
    other = scene.send(prompt_of(40, 2))
    assert scene.home[first] != scene.home[other]
    scene.run(first)
    scene.end(first)  # its KV is in the cache all the same
    assert scene.order(prompt_of(40, 1) + [5] * 8)[0] == 0
    longer = request_of(90, prompt_of(40, 1) + [5] * 20)
    scene.put(longer, 2)  # by whatever way
    assert scene.order(prompt_of(40, 1) + [5] * 24)[0] == 2
    assert (
        scene.order(prompt_of(40, 1) + [6] * 4)[0] == 0
    )  # as long at both: where there is less to do


def test_affinity_needs_a_share_of_the_prompt() -> None:
    scene = Scene(load_routing("prefix-affinity:share=0.5"), 2)
    scene.put(request_of(90, prompt_of(20, 1)), 0)
    assert scene.order(prompt_of(20, 1) + [3] * 19)[0] == 0  # 20 of 39
    assert scene.order(prompt_of(20, 1) + [3] * 20)[0] == 1  # 20 of 40 are not more than half


def test_affinity_gives_way_when_loads_are_apart() -> None:
    scene = Scene(load_routing("prefix-affinity:apart=2:ratio=1.5"), 2)
    prompt = prompt_of(40, 1)
    homes = [scene.home[scene.send(prompt)] for _ in range(8)]
    # 0 has 3 more than 1 before the fourth; 3:1 is 2 apart, so that the fifth follows the prefix, to who has less
    assert homes[:4] == [0, 0, 0, 1]
    assert abs(homes.count(0) - homes.count(1)) <= 3


def test_affinity_knows_the_answers_of_those_that_ended() -> None:
    """A follow-up call: prompt, answer, and what the user says to it. The prompt alone is too little of it."""
    scene = Scene(load_routing("prefix-affinity:share=0.5"), 3)
    scene.send(prompt_of(8, 7))
    prompt, answer = prompt_of(16, 1), prompt_of(40, 9)
    id = scene.send(prompt)
    home = scene.home[id]
    scene.end(id, answer)
    assert home == 1 and scene.order(prompt + answer + [4] * 12)[0] == home


def test_affinity_keeps_tenants_apart() -> None:
    scene = Scene(load_routing("prefix-affinity"), 2)
    scene.put(request_of(90, prompt_of(40, 1), salt=b"one"), 0)
    assert scene.order(prompt_of(40, 1), salt=b"one")[0] == 0
    assert scene.order(prompt_of(40, 1), salt=b"other")[0] == 1
    assert scene.order(prompt_of(40, 1))[0] == 1


def test_affinity_forgets_a_replica_with_a_new_worker() -> None:
    scene = Scene(load_routing("prefix-affinity"), 2)
    scene.put(request_of(90, prompt_of(40, 1)), 0)
    scene.state = scene.routing.lost(0, scene.state)
    assert known_keys(scene.state, 0) == 0 and scene.order(prompt_of(40, 1))[0] == 1


@pytest.mark.parametrize("blocks", [5, 20])
def test_affinity_remembers_no_more_than_there_is_room_for(blocks: int) -> None:
    scene = Scene(load_routing("prefix-affinity:blocks=10"), 1, blocks)
    for name in range(9):
        scene.end(scene.send(prompt_of(3 * BLOCK, name)))
        assert known_keys(scene.state, 0) <= min(10, blocks)
    scene.send(prompt_of(100, 1))
    assert known_keys(scene.state, 0) == min(10, blocks)


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), max_size=24), min_size=1, max_size=20),
    most=st.integers(1, 12),
)
def test_what_is_remembered_is_prefixes(prompts: list[list[int]], most: int) -> None:
    """No block without those before it, the newest prompt as far as there is room, and no more than that."""
    known: Keys = {}
    for prompt in prompts:
        keys = [*chain(prompt, b"", 2)]
        note(known, keys, most)
        assert len(known) <= most
        assert matched(keys, known) == min(len(keys), most)
        for one in prompts:
            chained = [*chain(one, b"", 2)]
            at = matched(chained, known)
            assert not any(key in known for key in chained[at:])


def test_chains_are_of_the_content_alone() -> None:
    assert [*chain([1, 2, 3, 4, 5], b"", 2)] == [*chain([1, 2, 3, 4, 9], b"", 2)]
    assert [*chain([1, 2, 3, 4], b"", 2)][1:] != [*chain([9, 2, 3, 4], b"", 2)][1:]
    assert [*chain([1, 2], b"x", 2)] != [*chain([1, 2], b"", 2)]
    program = (
        "from accelgen.scheduler.routing.prefixes import chain; print([*chain([1,2,3,4], b'x', 2)])"
    )
    import subprocess

    for seed in ("0", "1"):  # the same in every process
        told = subprocess.run(
            [sys.executable, "-P", "-c", program], env={"PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert told.stdout.strip() == str([*chain([1, 2, 3, 4], b"x", 2)])


# --- what all of them promise ----------------------------------------------------------------------------------------

MOVES = st.lists(
    st.tuples(
        st.sampled_from(["send", "send", "send", "run", "end", "down", "up"]), st.integers(0, 7)
    ),
    max_size=40,
)


@given(text=st.sampled_from([*ROUTINGS, "prefix-affinity:apart=1:ratio=1"]), moves=MOVES)
def test_every_request_goes_to_one_living_replica(text: str, moves: list[tuple[str, int]]) -> None:
    scene = Scene(load_routing(text), 4)
    for move, number in moves:
        waiting = [
            id for id, home in scene.home.items() if id not in running_ids(scene) and home >= 0
        ]
        if move == "send":
            prompt = prompt_of(4 + 8 * (number % 4), number % 3)
            order = scene.order(prompt)
            living = set(range(4)) - scene.down
            assert sorted(order) == sorted(living)
            before = dict(scene.counts())
            assert_within_the_bound(scene, order)
            home = scene.home[scene.send(prompt)]
            assert home == order[0] and scene.counts()[home] == before[home] + 1
            assert sum(scene.counts().values()) == sum(before.values()) + 1
        elif move == "run" and waiting:
            scene.run(waiting[number % len(waiting)])
        elif move == "end" and (live := [i for i, h in scene.home.items() if h not in scene.down]):
            scene.end(live[number % len(live)], [5] * number)
        elif move == "down" and len(scene.down) < 3:
            scene.down.add(number % 4)
        elif move == "up":
            scene.down.discard(number % 4)


def running_ids(scene: Scene) -> set[int]:
    return {int(table.ids[slot]) for table in scene.tables.values() for slot in table.running}


def assert_within_the_bound(scene: Scene, order: Sequence[int]) -> None:
    """Who is preferred for its prefix has at most so many requests more than another one."""
    routing = scene.routing
    if isinstance(routing, PrefixAffinity):
        loads = {index: len(view.table) for index, view in scene.views.items()}
        least = min(loads.values())
        idle = load_routing("least-load").order(request_of(0, [1]), scene.views, scene.state.last)
        if order[0] != idle[0][0]:
            assert loads[order[0]] <= max(least + routing.apart, routing.ratio * least)


@pytest.mark.parametrize("name", TURNS)
@given(
    replicas=st.integers(1, 6),
    lives=st.integers(1, 20),
    requests=st.integers(1, 60),
    length=st.integers(1, 30),
)
def test_nobody_starves_under_equal_work(
    name: str, replicas: int, lives: int, requests: int, length: int
) -> None:
    """Requests of one size, of which the `lives` newest are there at a time."""
    scene = Scene(load_routing(name), replicas)
    sent: Counter[int] = Counter(range(replicas))
    ids = []
    for i in range(requests):
        ids.append(scene.send(prompt_of(length, i)))
        sent[scene.home[ids[-1]]] += 1
        if len(ids) > lives:
            scene.end(ids.pop(0))
    assert max(sent.values()) - min(sent.values()) <= 1


@pytest.mark.parametrize("name", ROUTINGS)
@settings(max_examples=15)
@given(data=st.data())
def test_a_whole_server(name: str, data: st.DataObject) -> None:
    """All tokens come, each request was at one replica; across deaths of scheduler and replicas."""
    policy = data.draw(st.sampled_from(["vllm", "accelgen", "slos-serve"]))
    world = World(policy, replicas=3, routing=name, blocks=40)
    sent = {}
    for id in range(1, data.draw(st.integers(1, 12)) + 1):
        prompt = prompt_of(data.draw(st.integers(1, 30)), data.draw(st.integers(0, 2)))
        sent[id] = prompt
        world.submit(id, prompt, max_tokens=6, at_s=data.draw(st.floats(0, 0.2)))
    if data.draw(st.booleans()):
        world.crash(data.draw(st.floats(0, 0.2)), without=data.draw(st.none() | st.integers(0, 2)))
    world.run()
    if len(world.core.replicas) < 3:
        world.crash(world.now_s)  # it is found again
        world.run()
    assert {id: world.delivered[id] for id in sent} == {
        id: expected(prompt, 6) for id, prompt in sent.items()
    }
    world.check_idle()


# --- with the policy -------------------------------------------------------------------------------------------------


class Strict(Vllm):
    """Refuses at replicas with something to do."""

    name = "strict"

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        for place, view in enumerate(views):
            if not len(view.table):
                return Verdict(place, 0.5)
        return Verdict(0, 1.0, "all are busy")


def placed(routing: str, busy: Sequence[int], replicas: int = 3) -> Verdict:
    scene = Scene(load_routing("planned"), replicas)
    for index in busy:
        scene.put(request_of(50 + index, [1] * 8), index)
    return Placement(load_routing(routing), Strict()).choose(
        request_of(1, [1] * 8), scene.views, 0.0
    )


@pytest.mark.parametrize("name", ROUTINGS)
def test_who_is_declined_by_one_goes_to_the_next(name: str) -> None:
    assert placed(name, busy=[0, 1]) == Verdict(2, 0.5)
    refused = placed(name, busy=[0, 1, 2])
    assert refused.refused.startswith("all are busy")
    assert name == "planned" or refused.refused.endswith("; 3 were asked, one after the other")


@pytest.mark.parametrize("policy", ["vllm", "slos-serve"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_nobody_is_sent_where_it_could_never_run(name: str, policy: str) -> None:
    """Replicas may be of several sizes: 200 tokens of prompt and answer are too much for two of the three."""
    specs = {i: ReplicaSpec(blocks, 16) for i, blocks in enumerate((8, 100, 12))}
    core = SchedulerCore(Config(routing=name), load_policy(policy, {}), specs)
    for id in range(1, 7):
        prompt = Prompt(id, prompt_of(192, id))
        core.on_submit(Submit(prompt, 8, [], Objective(1.0, 0.1), "standard", 0.0), 0, 0.1 * id)
    assert [where for _, where, body in core.outbox if isinstance(body, Lookup)] == [1] * 6


def test_planned_leaves_it_to_the_policy() -> None:
    asked: list[int] = []

    class Choosy(Vllm):
        def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
            asked.append(len(views))
            return Verdict(1, 0.0)

    scene = Scene(load_routing("planned"), 4)
    scene.down = {0}
    assert Placement(load_routing(""), Choosy()).choose(request_of(1, [1]), scene.views, 0.0) == (
        Verdict(2, 0.0)  # the second of those that live
    )
    assert asked == [3]


@pytest.mark.parametrize("order", [[], [[]], [[7]], [[0], [1, 7]]])
def test_an_order_that_cannot_be_is_an_error(order: list[list[int]]) -> None:
    class Odd(Forgetful):
        name = "odd"

        def order(self, request: Request, views: Mapping[int, View], state: Any) -> Any:
            return order

    scene = Scene(load_routing("planned"), 2)
    names = "7" if any(order) else "none"
    with pytest.raises(BadDecision, match=f"routing odd: .* 0, 1 that live it names {names}"):
        Placement(Odd(), Vllm()).choose(request_of(1, [1]), scene.views, 0.0)


@pytest.mark.parametrize("name", ROUTINGS)
def test_slos_serve_declines_and_the_next_replica_takes_it(name: str) -> None:
    """Prompts of 4 iterations' worth with time for little more than one of them each: no replica can take two."""
    world = World(
        "slos-serve",
        replicas=2,
        routing=name,
        blocks=400,
        params={"burst": "refuse"},  # type: ignore[dict-item]
    )
    for id in range(1, 4):
        objective = Objective(0.05, 0.05)
        world.submit(id, prompt_of(400, id), max_tokens=4, objective=objective)
    world.run()
    homes = [world.admitted[id].replica for id in world.admitted]
    assert sorted(homes) == [0, 1]
    assert [*world.ended.values()].count(Reason.REFUSED_SATURATED) == 1


# --- takeovers -------------------------------------------------------------------------------------------------------


def core_with(
    routing: str, workers: Sequence[int] = (5, 6), managers: Sequence[int] = (7, 8)
) -> SchedulerCore:
    lives = enumerate(zip(workers, managers, strict=False))
    specs = {
        index: ReplicaSpec(100, BLOCK, None, worker, manager=manager)
        for index, (worker, manager) in lives
    }
    return SchedulerCore(Config(policy="vllm", routing=routing), Vllm(), specs)


def experienced(routing: str) -> tuple[SchedulerCore, Experience]:
    """A core that has given a request to replica 1 last, and what is kept of it."""
    core, experience = core_with(routing), Experience()
    view = core.replicas[1].view()
    core.placement.settle(request_of(1, prompt_of(40, 1)), 1, view, found=False)
    experience.take_from(core)
    return core, experience


@pytest.mark.parametrize("name", ROUTINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_what_a_routing_remembers_goes_to_its_successor(name: str, packed: bool) -> None:
    core, experience = experienced(name)
    if packed:
        routing = core.placement.routing
        experience = unpacked(experience.packed(Vllm()), Vllm(), routing=routing)
    heir = core_with(name)
    experience.give_to(heir)
    assert heir.placement.state == core.placement.state


def test_another_routing_begins_anew() -> None:
    _, experience = experienced("prefix-affinity")
    heir = core_with("round-robin")
    experience.give_to(heir)
    assert heir.placement.state == -1
    found = unpacked(experience.packed(Vllm()), Vllm(), routing=heir.placement.routing)
    assert found.routing_state is None


def test_a_new_worker_has_nothing_of_what_was_computed() -> None:
    core, experience = experienced("prefix-affinity")
    core.placement.settle(request_of(2, prompt_of(40, 2)), 0, core.replicas[0].view(), found=False)
    experience.take_from(core)
    without = core_with("prefix-affinity", (5,))  # replica 1 is loading
    experience.give_to(without)
    experience.take_from(without)
    again = core_with("prefix-affinity", (5, 99))
    experience.give_to(again)
    assert known_keys(again.placement.state, 0) == 10 and known_keys(again.placement.state, 1) == 0
    assert again.workers == {0: 5, 1: 99}


@pytest.mark.parametrize("packed", [False, True])
def test_a_new_kv_manager_does_not_know_what_was_cached(packed: bool) -> None:
    """The worker lives and so does the KV of those that run; the prefix cache went with the KV manager."""
    core, experience = experienced("prefix-affinity")
    core.placement.settle(request_of(2, prompt_of(40, 2)), 0, core.replicas[0].view(), found=False)
    experience.take_from(core)
    if packed:
        routing = core.placement.routing
        experience = unpacked(experience.packed(Vllm()), Vllm(), routing=routing)
    heir = core_with("prefix-affinity", managers=(7, 99))
    experience.give_to(heir)
    assert known_keys(heir.placement.state, 0) == 10 and known_keys(heir.placement.state, 1) == 0
    heir.placement.settle(request_of(1, prompt_of(40, 1)), 1, heir.replicas[1].view(), found=True)
    assert known_keys(heir.placement.state, 1) == 10  # who lives is placed again


def test_a_state_too_large_to_travel_leaves_the_others_alone() -> None:
    _, experience = experienced("prefix-affinity")
    experience.states = {0: "kept"}
    experience.routing_state = Seen({0: dict.fromkeys(range(2**60, 2**60 + MOST_BYTES // 8))})
    data = experience.packed(Vllm())
    assert len(data) <= MOST_BYTES

    class Wordy(Vllm):
        def initial(self) -> Any:
            return ""

    found = unpacked(data, Wordy(), routing=load_routing("prefix-affinity"))
    assert found.states == {0: "kept"} and found.routing_state is None


def test_turns_go_on_after_a_crash() -> None:
    """Nothing is handed over: those that live are placed again, and the turn is after the last of them."""
    world = World("vllm", replicas=4, routing="round-robin", blocks=400)
    for id in range(1, 4):
        world.submit(id, prompt_of(8, id), max_tokens=40)
    world.crash(0.05)
    world.submit(4, prompt_of(8, 4), max_tokens=4, at_s=0.06)
    world.run()
    assert [world.admitted[id].replica for id in range(1, 5)] == [0, 1, 2, 3]
    assert world.core.placement.routed == Counter({3: 1, 0: 0, 1: 0, 2: 0})


def test_affinity_finds_those_that_live_after_a_crash() -> None:
    world = World("vllm", replicas=3, routing="prefix-affinity", blocks=400)
    for id in range(1, 4):
        world.submit(id, prompt_of(24, id), max_tokens=60)
    world.crash(0.05)
    world.submit(4, prompt_of(24, 2) + [3] * 8, max_tokens=4, at_s=0.06)
    world.run()
    homes = {id: world.admitted[id].replica for id in range(1, 5)}
    assert homes[4] == homes[2] and len({homes[1], homes[2], homes[3]}) == 3


def test_a_replica_that_is_away_is_passed_over() -> None:
    world = World("vllm", replicas=2, routing="round-robin", blocks=400)
    world.crash(0.01, without=0)
    for id in range(1, 5):
        world.submit(id, prompt_of(8, id), max_tokens=4, at_s=0.02)
    world.run()
    assert {world.admitted[id].replica for id in range(1, 5)} == {1}


# --- those of others -------------------------------------------------------------------------------------------------


def test_an_installed_package_offers_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "their_routing.py").write_text(
        '"""`last`: the last replica, always."""\n'
        "from accelgen.scheduler.routing.shared import Forgetful\n"
        "class Last(Forgetful):\n"
        "    name = 'last'\n"
        "    def __init__(self, by: int = 1) -> None: self.by = by\n"
        "    def order(self, request, views, state): return [[sorted(views)[-self.by]]]\n"
    )
    info = tmp_path / "their_routing-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-routing\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[accelgen.routing]\nlast = their_routing:Last\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "last" in known_routings()
    scene = Scene(load_routing("last:by=2"), 3)
    assert scene.order([1]) == [1]
    with pytest.raises(UnknownPolicy, match="there is no routing 'lasts'; did you mean last"):
        load_routing("lasts")
