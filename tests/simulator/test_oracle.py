"""The searched upper reference: all candidates of few requests, local search over many, and no policy above either."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from msgspec import structs
from toy import config, toy_device

from accelgen.proto.messages import Objective
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.policy import load_policy
from accelgen.simulator.candidates import GRID, Candidate, Judge, Metric
from accelgen.simulator.climb import Chain
from accelgen.simulator.experiment import Setting, key_of, run_setting
from accelgen.simulator.oracle import CHAINS, choose, run_oracle, searches, try_all, value_of
from accelgen.simulator.precedence import Order, Script, done_share, next_choices
from accelgen.simulator.run import Simulation
from accelgen.simulator.scenarios import ScenarioError, make_scenario
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Arrival, Workload, session

COSTS = Coefficients(a=1.0, b=0.01, b2=0.01, c=0.05, d=0.0005, e=1e-5, knee=32.0)
DEVICE = toy_device(COSTS)
POLICIES = ("sarathi", "edf", "vllm", "qoserve", "accelgen", "orca")


def judge(
    arrivals: list[Arrival],
    rule: Rule = Rule.EVERY_GAP,
    metric: Metric = "goodput",
    **fields: object,
) -> Judge:
    return Judge(Workload.of("test", arrivals), DEVICE, config(**fields), rule, metric)


def policy_value(judged: Judge, name: str) -> float:
    policy = load_policy(name, {})
    return judged.value_of(
        Simulation(policy, judged.workload, judged.device, judged.config).go()
    ).value


def arrivals_of(most: int, least: int = 1) -> st.SearchStrategy[list[Arrival]]:
    return st.lists(
        st.builds(
            Arrival,
            at_s=st.floats(0, 12),
            prompt_tokens=st.integers(1, 300),
            output_tokens=st.integers(1, 6),
            objective=st.builds(
                Objective,
                ttft_s=st.floats(1, 12) | st.none(),
                tpot_s=st.floats(1.2, 4) | st.none(),
                e2e_s=st.none() | st.floats(5, 30),
            ),
        ),
        min_size=least,
        max_size=most,
    )


def all_orders(requests: int) -> Iterator[tuple[int, ...]]:
    """Every choice of whom to keep, in every order: written down without the search's own enumeration."""
    for many in range(requests + 1):
        yield from permutations(range(1, requests + 1), many)


def searched(judged: Judge) -> float:
    return max(try_all(judged, knobs)[0].value for knobs in GRID)


def best_by_hand(judged: Judge) -> float:
    return max(
        judged.try_order(Order(judged.requests, kept), knobs).value
        for kept in all_orders(judged.requests)
        for knobs in GRID
    )


@settings(deadline=None, max_examples=8)
@given(
    arrivals=arrivals_of(3, 2), rule=st.sampled_from(list(Rule)),
    metric=st.sampled_from(["goodput", "attainment"]), caching=st.booleans(),
)  # fmt: skip
def test_few_requests_are_searched_exhaustively(
    arrivals: list[Arrival], rule: Rule, metric: Metric, caching: bool
) -> None:
    judged = judge(arrivals, rule, metric, prefix_caching=caching)
    assert searched(judged) == best_by_hand(judged)


def crowd(requests: int, seed: int = 0) -> list[Arrival]:
    """Overlapping requests that cannot all be in time."""
    draw = np.random.default_rng(seed)
    return [
        Arrival(
            float(at),
            int(draw.integers(20, 250)),
            int(draw.integers(1, 12)),
            Objective(ttft_s=float(draw.uniform(3, 10)), tpot_s=float(draw.uniform(1.3, 3))),
        )
        for at in np.sort(draw.uniform(0, 2.0 * requests, size=requests))
    ]


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crowd_of_four_is_searched_exhaustively(seed: int) -> None:
    judged = judge(crowd(4, seed))
    best = searched(judged)
    tried = judged.used
    assert best == best_by_hand(judged)
    assert tried <= judged.used - tried  # what differs in nothing is not run twice
    assert best >= max(policy_value(judged, name) for name in POLICIES)


def test_scripts_go_through_all_orders_once() -> None:
    """All arrive at once and nothing fits: the scripts are exactly the orders of all subsets."""
    arrivals = [Arrival(0.0, 100 + at, 2, Objective(ttft_s=3.0)) for at in range(4)]
    judged, seen, shares = judge(arrivals), [], []
    choices: list[int] | None = []
    while choices is not None:
        script = Script(4, choices)
        judged.try_order(script, GRID[0])
        taken = [choice for choice, _ in script.log]
        assert taken[: len(choices)] == choices and not any(taken[len(choices) :])
        seen.append(tuple(taken))
        choices = next_choices(script.log)
        shares.append(done_share(choices or [], script.log))
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] == 1.0
    assert seen == sorted(set(seen)) and len(seen) == len(list(all_orders(4)))


def reached(judged: Judge, seed: int, steps: int) -> float:
    """The best that four chains find."""
    chains = [Chain(judged, seed, number, None) for number in range(4)]
    for chain in chains:
        for _ in range(steps):
            chain.step()
    return max(chain.best.value for chain in chains)


@pytest.mark.parametrize("metric", ["goodput", "attainment"])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_local_search_reaches_what_is_best_of_few(seed: int, metric: Metric) -> None:
    judged = judge(crowd(4, seed), metric=metric)
    assert reached(judged, seed, steps=40) == searched(judged)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_local_search_reaches_what_is_best_of_five(seed: int) -> None:
    judged = judge(crowd(5, seed), metric="attainment")
    best = searched(judged)
    assert reached(judged, seed, steps=60) == best
    assert best >= max(policy_value(judged, name) for name in POLICIES)


def test_local_search_repeats_itself_and_beats_where_it_began() -> None:
    def search(number: int) -> Chain:
        judged = judge(crowd(20))
        chain = Chain(judged, 5, number, None)
        for _ in range(20):
            chain.step()
        return chain

    for number in range(2):
        first, again = search(number), search(number)
        assert (first.best.value, first.candidate) == (again.best.value, again.candidate)
        assert first.judge.try_candidate(first.candidate).value == first.best.value
        order = first.judge.by(("first_due_s", "work_s")[number])
        begun = max(first.judge.try_candidate(Candidate(order, knobs)).value for knobs in GRID)
        assert first.best.value >= begun


def test_a_search_where_nobody_can_attain_comes_to_its_end() -> None:
    late = Objective(ttft_s=0.01)
    judged = judge([Arrival(float(at), 50, 2, late) for at in range(9)])
    assert reached(judged, 0, steps=20) == 0.0


def test_what_cannot_beat_the_best_is_cut_short_and_nothing_else() -> None:
    judged = judge([replace(arrival, output_tokens=60) for arrival in crowd(20)])
    candidate = Candidate(judged.by("first_due_s"), GRID[0])
    value = judged.try_candidate(candidate).value
    assert judged.try_candidate(candidate, beat=value).value == value
    assert judged.try_candidate(candidate, beat=1e3).value == -1.0


def test_sessions_are_refused() -> None:
    with pytest.raises(ScenarioError, match="sessions"):
        judge([session([Arrival(0.0, 10, 2), Arrival(0.0, 20, 2)])])


def test_a_search_is_made_of_settings_and_the_best_of_all_is_chosen() -> None:
    scenario = make_scenario(
        {
            "about": "x", "model": "opt-13b", "hardware": "a100", "rates": [1.0], "seeds": [0], "max_tokens": 8,
            "kv_blocks": 512, "rule": "every_gap",
            "parts": [
                {"name": "a", "source": "synthetic:azure2023_code", "ttft": {"base_s": 0.3}, "tpot": {"base_s": 0.1}}
            ],
        }
    )  # fmt: skip
    base = Setting(name="s", scenario=scenario, policy="edf", rate=8.0, requests=4)
    known = [run_setting(structs.replace(base, policy=name)) for name in POLICIES]
    for requests, parts, words in (
        (4, len(GRID), "the best of all"),
        (9, CHAINS, "schedules tried"),
    ):
        setting = structs.replace(base, requests=requests)
        settings_ = searches(setting, 8, 1, "goodput", known[1])
        assert len({key_of(one) for one in settings_}) == parts == len(settings_)
        found = [run_oracle(one) for one in settings_]
        assert all(words in result.note for result in found)
        again = run_oracle(settings_[0])
        assert (again.note, value_of(again, "goodput")) == (
            found[0].note,
            value_of(found[0], "goodput"),
        )
        if requests == 4:
            best = choose([*known, *found], "goodput")
            assert value_of(best, "goodput") == max(
                value_of(r, "goodput") for r in [*known, *found]
            )
