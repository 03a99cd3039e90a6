"""Routing over four simulated replicas, by the scheduler's own code: prefix hits, balance, sessions, swaps."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from toy import config

from accelgen.proto.messages import Reason
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import View, load_policy
from accelgen.scheduler.request import Request
from accelgen.scheduler.routing.policy import Routing, load_routing
from accelgen.scheduler.routing.prefix_affinity import PrefixAffinity
from accelgen.simulator.device import Device
from accelgen.simulator.experiment import Setting, key_of, modules_read, run_setting
from accelgen.simulator.run import Run, Simulation, Successor
from accelgen.simulator.scenarios import ScenarioError, make_scenario
from accelgen.simulator.workload import Arrival, Workload, session

REPLICAS, PREFIXES, PREFIX_TOKENS, OWN_TOKENS = 4, 24, 512, 64
COSTS = Coefficients(a=0.005, b=0.0001, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
ROUTINGS = ["round-robin", "least-load", "prefix-affinity", "planned"]


class Watched:
    """A routing, and where every request went, beside the numbers of requests that each replica had before."""

    def __init__(self, inner: Routing) -> None:
        self.inner, self.name = inner, inner.name
        self.homes: dict[int, int] = {}
        self.before: dict[int, dict[int, int]] = {}

    def initial(self) -> Any:
        return self.inner.initial()

    def order(self, request: Request, views: Mapping[int, View], state: Any) -> Any:
        self.before[request.id] = {index: len(view.table) for index, view in views.items()}
        return self.inner.order(request, views, state)

    def placed(self, request: Request, index: int, view: View, state: Any) -> Any:
        assert request.id not in self.homes, "given to a replica twice"
        self.homes[request.id] = index
        return self.inner.placed(request, index, view, state)

    def ended(self, request: Request, index: int, view: View, state: Any) -> Any:
        assert self.homes[request.id] == index
        return self.inner.ended(request, index, view, state)

    def lost(self, index: int, state: Any) -> Any:
        return self.inner.lost(index, state)


def simulate(
    routing: str, arrivals: Sequence[Arrival], blocks: int = 400, policy: str = "sarathi"
) -> tuple[Run, Watched]:
    """`blocks` of 16 tokens in each replica: with 400 the caches hold a dozen of the prefixes, beside what runs."""
    device = Device("toy", "paper", COSTS, kv_token_bytes=1, kv_bytes=blocks * 16)
    workload = Workload.of("shared", arrivals)
    simulation = Simulation(
        load_policy(policy, {}), workload, device, config(replicas=REPLICAS, routing=routing)
    )
    watched = simulation.core.placement.routing = Watched(load_routing(routing))  # type: ignore[assignment]
    run = simulation.go()
    for kv in simulation.kvs:
        assert kv.check() == [] and kv.pool.used == 0
    assert all(fate.end in (Reason.LENGTH, Reason.STOP) for fate in run.fates)
    assert sorted(watched.homes) == list(range(1, len(run.fates) + 1))
    return run, watched


def shared_prefixes(requests: int = 600, rate: float = 25.0, seed: int = 0) -> list[Arrival]:
    """Each request has one of 24 prompts of a system before its own."""
    draw = random.Random(seed)
    arrivals, at_s = [], 0.0
    for _ in range(requests):
        at_s += draw.expovariate(rate)
        arrivals.append(
            Arrival(
                at_s, PREFIX_TOKENS + OWN_TOKENS, draw.randint(4, 40),
                prefix=(1 + draw.randrange(PREFIXES),), prefix_block=PREFIX_TOKENS,
            )
        )  # fmt: skip
    return arrivals


def hit_share(run: Run) -> float:
    """Of the tokens of shared prefixes, how many came from a cache."""
    return sum(fate.cached_tokens for fate in run.fates) / (len(run.fates) * PREFIX_TOKENS)


def test_affinity_hits_more_prefixes_and_stays_in_its_bound() -> None:
    arrivals = shared_prefixes()
    spread, _ = simulate("least-load", arrivals)
    text = "prefix-affinity:apart=12:ratio=1.5"
    together, watched = simulate(text, arrivals)
    assert hit_share(together) > 0.9
    assert hit_share(spread) < 0.6
    routing = watched.inner
    assert isinstance(routing, PrefixAffinity)
    kept = 0
    for id, before in watched.before.items():
        least = min(before.values())
        assert before[watched.homes[id]] <= max(least + routing.apart, routing.ratio * least)
        kept += before[watched.homes[id]] > least
    assert kept > 50  # prefixes did go before load
    counts = Counter(watched.homes.values())
    assert max(counts.values()) < 1.5 * min(counts.values())  # 24 prefixes, spread


def test_one_prefix_for_all_does_not_drown_a_replica() -> None:
    """All prompts begin alike: by prefix alone they would all go to one replica."""
    arrivals = [Arrival(0.01 * i, 96, 60, prefix=(1,), prefix_block=64) for i in range(200)]
    _, watched = simulate("prefix-affinity:apart=8", arrivals, blocks=4000)
    counts = Counter(watched.homes.values())
    assert len(counts) == REPLICAS and max(counts.values()) < 0.6 * len(arrivals)
    for id, before in watched.before.items():
        least = min(before.values())
        assert before[watched.homes[id]] <= max(least + 8, 1.5 * least)


def test_least_load_evens_out_what_round_robin_does_not() -> None:
    """Every fourth request is ten times as long: in turn they all go to one replica."""
    arrivals = [Arrival(0.02 * i, 2000 if i % 4 == 0 else 200, 8) for i in range(240)]
    last: dict[str, float] = {}
    for name in ("round-robin", "least-load"):
        run, watched = simulate(name, arrivals, blocks=2000)
        homes = [watched.homes[id] for id in range(1, 241)]
        last[name] = run.end_s
        if name == "round-robin":
            assert homes == [i % 4 for i in range(240)]
    assert last["least-load"] < 0.6 * last["round-robin"]


@pytest.mark.parametrize("name", ROUTINGS)
def test_sessions_find_their_history_by_affinity(name: str) -> None:
    """Follow-up calls go on from prompt and answer: with affinity all of it is in the cache where they go."""
    draw = random.Random(3)
    sessions = [
        session([
            Arrival(draw.uniform(0, 8), 160, 40, think_s=0.5),
            Arrival(0, 260, 40, think_s=0.5),
            Arrival(0, 360, 40),
        ])
        for _ in range(60)
    ]  # fmt: skip
    run, watched = simulate(name, sessions, blocks=4000)
    calls: dict[int, list[int]] = {}
    for id, fate in enumerate(run.fates, 1):
        calls.setdefault(fate.session if fate.session >= 0 else id - 1, []).append(id)
    together = sum(len({watched.homes[id] for id in ids}) == 1 for ids in calls.values())
    cached = sum(run.fates[id - 1].cached_tokens for ids in calls.values() for id in ids[1:])
    most = len(calls) * (192 + 288)  # whole blocks of 199 and 299 tokens
    if name == "prefix-affinity":
        assert together == len(calls) == 60 and cached == most
    else:
        assert together < 30 and cached < 0.7 * most


@pytest.mark.parametrize("policy", ["vllm", "accelgen", "slos-serve"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_any_routing_with_any_policy(name: str, policy: str) -> None:
    _, watched = simulate(name, shared_prefixes(80), policy=policy)
    assert len(set(watched.homes.values())) == REPLICAS


def test_a_swap_keeps_what_the_routing_knows() -> None:
    arrivals = shared_prefixes(300)
    device = Device("toy", "paper", COSTS, kv_token_bytes=1, kv_bytes=4000 * 16)
    swaps = [Successor(at_s, load_policy("vllm", {})) for at_s in (3.0, 6.0)]
    simulation = Simulation(
        load_policy("sarathi", {}), Workload.of("shared", arrivals), device,
        config(replicas=REPLICAS, routing="prefix-affinity"), successors=swaps,
    )  # fmt: skip
    run = simulation.go()
    assert len(run.takeovers_s) == 2 and all(fate.end is Reason.LENGTH for fate in run.fates)
    known = simulation.core.placement.state.keys
    assert sum(map(len, known.values())) >= PREFIXES * PREFIX_TOKENS // 16
    late = [fate for fate in run.fates if fate.arrival.at_s > 6.5]
    assert all(fate.cached_tokens >= PREFIX_TOKENS for fate in late)


def scenario(**fields: Any) -> dict[str, Any]:
    parts = [{"name": "all", "source": "synthetic:azure2023_conv", "ttft": {"base_s": 1.0}}]
    return {
        "about": "for tests", "model": "llama-3-8b", "hardware": "a100", "parts": parts,
        "rates": [4.0], "seeds": [0], "requests": 40, "replicas": 2, **fields,
    }  # fmt: skip


def test_a_scenario_names_its_routing() -> None:
    made = make_scenario(scenario(routing="round-robin"))
    assert made.config("vllm").routing == "round-robin"
    setting = Setting(name="x", scenario=made, policy="vllm", rate=4.0, requests=40)
    result = run_setting(setting)
    assert result.summary is not None and result.fault == ""
    other = make_scenario(scenario(routing="prefix-affinity:share=0.5"))
    assert key_of(Setting(name="x", scenario=other, policy="vllm", rate=4.0, requests=40)) != (
        key_of(setting)
    )


@pytest.mark.parametrize(
    ("routing", "says"),
    [
        ("roundrobin", "routing: there is no routing 'roundrobin'; did you mean round-robin?"),
        ("round-robin:x", "'x' of 'round-robin:x' is not of the form key=value"),
    ],
)
def test_a_scenario_with_a_routing_that_cannot_be(routing: str, says: str) -> None:
    with pytest.raises(ScenarioError, match=says.replace("?", r"\?")):
        make_scenario(scenario(routing=routing))


def test_distserve_has_a_rule_of_its_own() -> None:
    made = make_scenario(scenario(routing="least-load"))
    with pytest.raises(ScenarioError, match="routing: distserve has a rule of its own"):
        run_setting(Setting(name="x", scenario=made, policy="distserve", rate=4.0, requests=40))


def test_a_result_depends_on_the_code_of_its_routing_alone() -> None:
    def read(routing: str) -> set[str]:
        return {path.name for path in modules_read("vllm", "", routing)}

    assert "prefix_affinity.py" in read("prefix-affinity") and "planned.py" in read("")
    assert not {"prefix_affinity.py", "round_robin.py"} & read("least-load")
