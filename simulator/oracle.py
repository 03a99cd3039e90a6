"""`oracle`: the best schedule that a search has found, all arrivals and lengths known: an upper reference, no more.

A candidate is an order of the requests, who of them is given up (served after all others), and knobs (`ordered.py`).
Each is run by the real simulation, so that whatever is found can be done.

Up to `EXHAUSTIVE` requests all candidates are tried: every order and every choice of whom to give up, for all knobs. A
script decides only where it matters (`precedence.py`), so that candidates which differ in nothing are run once. With
more requests it is local search: chains, each from an order of its own (one from what the best policy attained), that
take every change that is no worse, and begin again from a shaken copy of their best when they get no further. Random
numbers come from (seed, chain); the budget is a number of runs. Nothing depends on time, or on how many chains run side
by side.

`choose` puts what was found beside the runs of the policies themselves and takes the best: what is called the oracle is
at least every policy that it was shown, by construction.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct, structs

from accelgen.simulator.bound import Bound, bound_of
from accelgen.simulator.candidates import GRID, Judge, Metric, Outcome
from accelgen.simulator.climb import Chain
from accelgen.simulator.device import Device
from accelgen.simulator.experiment import ORACLE, Progress, Result, Setting, key_of, simulate
from accelgen.simulator.metrics import summarise
from accelgen.simulator.mix import Asked, load_sources, make_workload
from accelgen.simulator.ordered import Knobs
from accelgen.simulator.precedence import Script, done_share, next_choices
from accelgen.simulator.scenarios import ScenarioError
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Workload

EXHAUSTIVE = 7  # requests
CHAINS = 4
VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    *((name, {"chunk_size": size}) for name in ("sarathi", "edf", "srpf") for size in (256, 1024, 2048)),
    ("fastgen", {"forward_size": 2048}),
    ("qoserve", {"alpha_s": 0}),
    ("qoserve", {"relegation": False}),
)  # fmt: skip
"""Policies with other parameters than their own, which it is held against besides those that are installed."""


class Search(Struct, frozen=True, forbid_unknown_fields=True):
    """How it is searched: `evaluations` of this chain, the policy that it may begin from, and what is sought."""

    evaluations: Annotated[int, Meta(ge=1)]
    seed: Annotated[int, Meta(ge=0)] = 0
    chain: Annotated[int, Meta(ge=0)] = 0
    metric: Metric = "goodput"
    start: str = ""
    start_params: dict[str, Any] = {}  # msgspec copies it


def searches(
    setting: Setting, evaluations: int, seed: int, metric: Metric, start: Result | None
) -> list[Setting]:
    """The parts of a search on the workload of `setting`: settings, so that they run side by side and are kept. Up to
    `EXHAUSTIVE` requests one for all schedules with the same knobs, else one for each chain."""
    chains = CHAINS if setting.requests > EXHAUSTIVE else len(GRID)
    name = start.setting.policy if start is not None else ""
    params = start.setting.params if start is not None else {}
    return [
        structs.replace(
            setting,
            policy=ORACLE,
            enough=0.0,
            params=msgspec.to_builtins(
                Search(max(1, evaluations // chains), seed, chain, metric, name, params)
            ),
        )
        for chain in range(chains)
    ]


def value_of(result: Result, metric: Metric) -> float:
    """What a run is worth: requests per second, or the share, that attain under the rule of its scenario."""
    if result.summary is None:
        return -1.0
    rule = Rule(result.setting.scenario.rule)
    return (
        result.summary.goodput[rule]
        if metric == "goodput"
        else result.summary.judged.attainment[rule]
    )


def choose(results: Sequence[Result], metric: Metric) -> Result:
    """The best of them, the first of equals."""
    return max(results, key=lambda result: value_of(result, metric))


def run_oracle(setting: Setting, progress: Progress | None = None) -> Result:
    """One chain, or all candidates. Raises TraceError, ScenarioError, UnknownDevice, UnknownPolicy, ProfileError."""
    begin_s = perf_counter()
    search = msgspec.convert(setting.params, Search)
    scenario = setting.scenario
    device, workload, digests = _workload(setting)
    judge = Judge(workload, device, scenario.config(ORACLE), Rule(scenario.rule), search.metric)
    if judge.requests <= EXHAUSTIVE:
        best, note = try_all(judge, GRID[search.chain % len(GRID)], progress)
    else:
        best, note = _climb(judge, search, setting, progress)
    return Result(
        setting=setting,
        key=key_of(setting),
        sources=digests,
        summary=None if best.run is None else summarise(best.run),
        fault="" if best.run is not None else "no candidate served everybody",
        wall_s=perf_counter() - begin_s,
        note=note,
    )


def bound_of_setting(setting: Setting, swapping: bool = False) -> Bound:
    """No schedule on the workload of `setting` attains more; `swapping`: not even if KV can be swapped out, which the
    scenario itself may allow. Raises TraceError, ScenarioError, UnknownDevice, ProfileError."""
    device, workload, _ = _workload(setting)
    scenario = setting.scenario
    swapping = swapping or scenario.preemption == "swap"
    return bound_of(workload, device, scenario.config(ORACLE), Rule(scenario.rule), swapping)


def _workload(setting: Setting) -> tuple[Device, Workload, dict[str, str]]:
    """What it is searched on, and digests of the traces."""
    scenario = setting.scenario
    if scenario.acceptance is not None:
        raise ScenarioError("acceptance: neither search nor bound know drafts")
    device = scenario.device()
    asked = Asked(setting.rate, setting.requests, setting.seed, setting.half)
    sources = load_sources(scenario, asked, setting.stand_ins)
    workload = make_workload(setting.name, scenario, device, asked, sources)
    return device, workload, {name: rows.digest for name, rows in sources.items()}


def try_all(judge: Judge, knobs: Knobs, progress: Progress | None = None) -> tuple[Outcome, str]:
    """The best of all orders and all choices of whom to give up; and how it was found."""
    best, found = Outcome(-1.0), ""
    choices: list[int] | None = []
    before = judge.used
    while choices is not None:
        script = Script(judge.requests, choices)
        outcome = judge.try_order(script, knobs, beat=best.value)
        if outcome.value > best.value:
            best, found = outcome, f"{script.describe()}, {knobs.describe()}"
        choices = next_choices(script.log)
        if progress is not None:
            progress(int(1000 * done_share(choices or [], script.log)), 1000)
    return best, f"{found}; the best of all {judge.used - before} schedules with this use of KV"


def _climb(
    judge: Judge, search: Search, setting: Setting, progress: Progress | None
) -> tuple[Outcome, str]:
    start = None
    if search.start:
        policy = structs.replace(setting, policy=search.start, params=search.start_params)
        start = judge.value_of(simulate(policy)[1])
    chain = Chain(judge, search.seed, search.chain, start)
    while judge.used < search.evaluations:
        chain.step()
        if progress is not None:
            progress(judge.used, search.evaluations)
    return chain.best, f"{chain.describe()}; {judge.used} schedules tried"
