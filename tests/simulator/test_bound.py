"""The bound that no schedule exceeds: held against policies, searched orders, and schedulers that do anything at
random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings
from msgspec import structs
from toy import config, toy_device

from accelgen.proto.config import Config
from accelgen.proto.messages import Objective
from accelgen.proto.policies import known_policies
from accelgen.scheduler.cost_model import Coefficients, Work
from accelgen.scheduler.policies.shared import Batch, least_load
from accelgen.scheduler.policy import Decision, Policy, StepStats, Verdict, View, load_policy
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import RUNNING
from accelgen.simulator.bound import Bound, bound_of
from accelgen.simulator.candidates import GRID, Judge
from accelgen.simulator.device import Device, Iteration, find_device
from accelgen.simulator.experiment import Setting
from accelgen.simulator.metrics import summarise
from accelgen.simulator.mix import Asked, load_sources, make_workload
from accelgen.simulator.needs import Model
from accelgen.simulator.oracle import bound_of_setting, try_all
from accelgen.simulator.packing import most_that_fit
from accelgen.simulator.precedence import Order
from accelgen.simulator.run import Simulation
from accelgen.simulator.scenarios import find_scenario
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Arrival, Workload

COSTS = Coefficients(a=1.0, b=0.01, b2=0.02, c=0.05, d=0.002, e=1e-5, knee=16.0)
DEVICE = toy_device(COSTS)


class Whim:
    """Any schedule: runs, cuts, leaves out and preempts at random."""

    name = "whim"

    def __init__(self, seed: int, idle: float, preempt: float) -> None:
        self.draw, self.idle, self.preempt = np.random.default_rng(seed), idle, preempt

    def initial(self) -> None:
        return None

    def order_key(self, view: View, slot: int, state: None) -> float:
        return float(self.draw.uniform())

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def observe(self, step: StepStats, state: None) -> None:
        return None

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table, draw = view.table, self.draw
        batch = Batch(view, view.limits.max_num_batched_tokens)
        ready = table.running[table.remaining(table.running) > 0]
        slots = [*ready.tolist(), *(slot for _, slot in table.waiting)]
        for slot in draw.permutation(slots).tolist():
            runs = table.state[slot] == RUNNING
            if runs and draw.uniform() < self.preempt:
                batch.preempt(slot)
            elif draw.uniform() >= self.idle and (runs or batch.admits(slot)):
                most = batch.largest_chunk(slot, batch.pending(slot))
                chunk = most if draw.uniform() < 0.7 else int(draw.integers(0, most + 1))
                if chunk:
                    batch.take(slot, chunk)
        if not batch.slots and not batch.preempted and len(ready):
            batch.preempt(int(draw.choice(ready)))
        return batch.decision(), None


def held(
    policy: Policy, workload: Workload, device: Device, settings_: Config, bounds: dict[Rule, Bound]
) -> dict[Rule, int]:
    """Runs it and holds it to the bounds; how many attained, by rule."""
    summary = summarise(Simulation(policy, workload, device, settings_).go())
    found = {}
    for rule, bound in bounds.items():
        attained = round(summary.judged.attainment[rule] * summary.sent)
        assert attained <= bound.attained <= bound.compute <= bound.sent == summary.sent
        assert summary.goodput[rule] <= bound.goodput * (1 + 1e-9)
        assert summary.duration_s >= bound.least_s
        found[rule] = attained
    return found


arrivals_drawn = st.lists(
    st.builds(
        Arrival,
        at_s=st.floats(0, 10),
        prompt_tokens=st.integers(1, 300),
        output_tokens=st.integers(1, 40),
        objective=st.builds(
            Objective,
            ttft_s=st.floats(1.2, 12) | st.none(),
            tpot_s=st.floats(1.2, 4) | st.none(),
            e2e_s=st.none() | st.floats(5, 60),
        ),
        prefix=st.sampled_from([(), (), (5,), (5, 6), (5, 7)]),
        prefix_block=st.just(32),
    ),
    min_size=1,
    max_size=9,
)


@settings(deadline=None, max_examples=25)
@given(
    arrivals=arrivals_drawn, seed=st.integers(0, 99), idle=st.sampled_from([0.0, 0.3]),
    preempt=st.sampled_from([0.0, 0.05, 0.5]), caching=st.booleans(), replicas=st.sampled_from([1, 2]),
    depth=st.sampled_from([0, 1]), policy=st.sampled_from(known_policies()),
)  # fmt: skip
def test_nothing_exceeds_the_bound(
    arrivals: list[Arrival], seed: int, idle: float, preempt: float, caching: bool, replicas: int, depth: int,
    policy: str,
) -> None:  # fmt: skip
    workload = Workload.of("test", arrivals)
    given = config(prefix_caching=caching, replicas=replicas, pipeline_depth=depth)
    bounds = {rule: bound_of(workload, DEVICE, given, rule) for rule in Rule}
    assert bounds[Rule.EVERY_GAP].attained <= bounds[Rule.MEAN].attained
    held(load_policy(policy, {}), workload, DEVICE, given, bounds)
    held(Whim(seed, idle, preempt), workload, DEVICE, given, bounds)


def test_no_order_of_few_exceeds_it_and_many_meet_it() -> None:
    met = 0
    for seed in range(8):
        draw = np.random.default_rng(seed)
        arrivals = [
            Arrival(
                float(draw.uniform(0, 3)), int(draw.integers(20, 280)), int(draw.integers(1, 8)),
                Objective(ttft_s=float(draw.uniform(2, 8)), tpot_s=float(draw.uniform(1.4, 3))),
            )
            for _ in range(3 + seed % 2)
        ]  # fmt: skip
        workload, rule = Workload.of("test", arrivals), list(Rule)[seed % 3]
        bound = bound_of(workload, DEVICE, config(), rule)
        goodput = Judge(workload, DEVICE, config(), rule, "goodput")
        best, _ = try_all(goodput, GRID[0])
        assert best.value <= bound.goodput and len(best.attained) <= bound.attained
        attained, _ = try_all(Judge(workload, DEVICE, config(), rule, "attainment"), GRID[0])
        assert attained.value <= bound.attained
        met += attained.value == bound.attained
    assert met >= 4


@pytest.mark.parametrize("name", ["accelgen", "azure2023_code", "three_class_conv"])
def test_it_holds_in_overload_and_says_something(name: str) -> None:
    """Far beyond what the device can serve: policies stay below, and the bound below what was sent."""
    scenario = find_scenario(name)
    device, given = scenario.device(), scenario.config("edf")
    asked = Asked(8 * scenario.rates[-1], 80, 0)
    workload = make_workload(name, scenario, device, asked, load_sources(scenario, asked, True))
    bounds = {rule: bound_of(workload, device, given, rule) for rule in Rule}
    for policy in ("edf", "qoserve"):
        held(load_policy(policy, {}), workload, device, given, bounds)
    rule = Rule(scenario.rule)
    judge = Judge(workload, device, given, rule, "attainment")
    found = judge.try_order(Order(80, judge.by("first_due_s")), GRID[0])
    assert 0 < found.value <= bounds[rule].attained
    if name != "three_class_conv":  # whose ten minutes are enough for anything
        assert bounds[rule].attained < 80


def test_by_hand() -> None:
    """Ten prompts of 100 tokens at once, each 1 s at the price beyond the knee, and 10 s of time: the fixed time counts
    only as far as the KV of what runs together fills the cache, 40 blocks of 16 tokens, 7 for each."""
    costs = replace_costs(a=4.0, b=0.01, b2=0.0, c=0.0, d=0.0, e=0.0)
    arrivals = [Arrival(0.0, 100, 1, Objective(ttft_s=10.0)) for _ in range(10)]
    bound = bound_of(Workload.of("hand", arrivals), costs, config(), Rule.EVERY_GAP)
    each_s = 4.0 * 7 / 40 + 1.0
    assert bound.compute == 10 and bound.attained == int(10 / each_s) == 5
    assert bound.least_s == pytest.approx(10 * each_s, abs=1e-3)


def replace_costs(**fields: float) -> Device:
    whole = {"a": 0.0, "b": 0.0, "b2": 0.0, "c": 0.0, "d": 0.0, "e": 0.0, "knee": 1.0, **fields}
    return replace(DEVICE, coefficients=Coefficients(**whole), host_s=0.0)


def test_kv_that_must_be_held_counts() -> None:
    """Five at once, 25 of 40 blocks each: under "every gap" they must all hold KV from 30 s on, or have ended, and by
    70 s there is time for neither. If only the mean counts, all can wait after their first tokens."""
    device = replace_costs(a=1.0, b=0.01)
    arrivals = [Arrival(0.0, 400, 20, Objective(ttft_s=30.0, tpot_s=6.0)) for _ in range(5)]
    workload = Workload.of("hold", arrivals)
    found = {rule: bound_of(workload, device, config(), rule).attained for rule in Rule}
    assert found == {Rule.EVERY_GAP: 4, Rule.CUMULATIVE: 5, Rule.MEAN: 5}
    swapping = bound_of(workload, device, config(), Rule.EVERY_GAP, swapping=True)
    assert swapping.attained == 5


def test_whole_prompts_that_are_the_same_share_their_answers() -> None:
    """16 equal prompts, two blocks each, and ten with their answers: four times what there is. Yet once most have been
    preempted they run together, since all find the blocks of one: 173 s, where none shared would be 282 s at least."""
    device = replace_costs(a=1.0)
    arrivals = [Arrival(0.0, 32, 129, prefix=(5,), prefix_block=32) for _ in range(16)]
    workload = Workload.of("same", arrivals)
    bounds = {rule: bound_of(workload, device, config(), rule) for rule in Rule}
    held(load_policy("fastserve", {}), workload, device, config(), bounds)


def test_prefixes_in_blocks_of_two_sizes_may_agree() -> None:
    """The second finds 32 tokens of the first, and one is left: 1.1 s, where 33 would take 4.3."""
    device = replace_costs(a=1.0, b=0.1)
    arrivals = [
        Arrival(0.0, 70, 1, prefix=(5,), prefix_block=64),
        Arrival(50.0, 33, 1, Objective(ttft_s=2.0), prefix=(5,), prefix_block=32),
    ]
    workload = Workload.of("sizes", arrivals)
    bounds = {rule: bound_of(workload, device, config(), rule) for rule in Rule}
    found = held(load_policy("vllm", {}), workload, device, config(), bounds)
    assert found[Rule.MEAN] == 2


def test_who_swaps_may_run_a_prompt_whole() -> None:
    """100 tokens: 2 s at once, as DistServe takes them; 3 s in the two batches that others need."""
    device = replace_costs(a=1.0, b=0.01)
    workload = Workload.of("whole", [Arrival(0.0, 100, 1, Objective(ttft_s=2.5))])
    limits = config(max_num_batched_tokens=50)
    found = [bound_of(workload, device, limits, Rule.MEAN, swaps).attained for swaps in (0, 1)]
    assert found == [0, 1]


def test_a_scenario_may_swap() -> None:
    scenario = structs.replace(find_scenario("accelgen"), max_num_batched_tokens=128)
    asked = {"name": "s", "policy": "edf", "rate": 64.0, "requests": 20, "stand_ins": True}
    plain = Setting(scenario=scenario, **asked)  # type: ignore[arg-type]
    swaps = structs.replace(plain, scenario=structs.replace(scenario, preemption="swap"))
    assert bound_of_setting(swaps) == bound_of_setting(plain, swapping=True)
    assert bound_of_setting(swaps) != bound_of_setting(plain)


def test_no_recomputation_is_cheaper() -> None:
    """The token at 42, computed with those since the block began at 32, cut in any way: a piece of one token is a
    decode, which may cost less than its attention as a prompt, or more than many tokens do."""
    for costs in ({"b": 0.1, "e": 1e-3}, {"b": 0.001, "d": 1.0}, {"c": 1.0, "d": 0.05, "e": 0.05}):
        device = replace_costs(**costs)
        model = Model.of(device, config())
        least_s = model.decode_work_s(np.array([42]))[0, 0]
        for cut in range(2**10):
            ends = [end for end in range(33, 43) if cut >> (end - 33) & 1] + [43]
            total = 0.0
            for start, end in zip([32, *ends], ends, strict=False):
                prompt = Work(end - start, prefill_work=(end**2 - start**2) / 2)
                work = Work(0, 1, start) if end == start + 1 else prompt
                total += device.seconds(Iteration(work, start, 1))
            assert least_s <= total * (1 + 1e-12)


def test_linear_pieces_lie_below_every_iteration() -> None:
    """The ground of all of it: fixed time and prices, whatever theta, never exceed what an iteration takes."""
    draw = np.random.default_rng(1)
    for device in (DEVICE, find_device("opt-13b", "a100"), find_device("llama-3.1-8b", "rtx4090")):
        model = Model.of(device, config(kv_blocks=64))
        assert (model.fixed_s >= 0).all()
        for _ in range(50):
            tokens = int(draw.integers(1, 4000))
            cached = int(draw.integers(0, tokens)) // 16 * 16
            best = min(prompt_in(device, tokens, cached, many) for many in range(1, 60))
            assert model.prompt_s(tokens, cached) <= best * (1 + 1e-12)


def prompt_in(device: Device, tokens: int, cached: int, chunks: int) -> float:
    """How long a prompt takes alone in so many chunks, about equal ones."""
    ends = np.unique(np.linspace(cached, tokens, chunks + 1).round().astype(int))
    total = 0.0
    for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        work = Work(end - start, prefill_work=(end**2 - start**2) / 2)
        total += device.seconds(Iteration(work, start, 1))
    return total


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(0, 6), n=st.integers(1, 7), seed=st.integers(0, 10_000))
def test_packing_bounds_every_packing_and_is_met_by_a_fractional_one(
    rows: int, n: int, seed: int
) -> None:
    draw = np.random.default_rng(seed)
    weights = draw.uniform(0, 1, size=(rows, n)) * (draw.uniform(size=(rows, n)) < 0.7)
    limits = draw.uniform(0.1, 2, size=rows)
    bound = most_that_fit(weights, limits)
    best = max(
        many
        for many in range(n + 1)
        for chosen in combinations(range(n), many)
        if (weights[:, list(chosen)].sum(axis=1) <= limits).all()
    )
    assert best <= bound + 1e-9 <= n + 2e-9
    assert bound <= greedy_dual(weights, limits) + 1e-6


def greedy_dual(weights: np.ndarray, limits: np.ndarray) -> float:  # type: ignore[type-arg]
    """The best bound from a single constraint: the fractional knapsack, solved by sorting."""
    found = float(weights.shape[1])
    for row, limit in zip(weights, limits, strict=True):
        total, left = 0.0, limit
        for weight in sorted(row.tolist()):
            if weight > left:
                total += left / weight
                break
            total, left = total + 1, left - weight
        found = min(found, total)
    return found
