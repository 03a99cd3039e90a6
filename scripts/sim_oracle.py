"""`accelgen sim oracle`, and the rows it adds to `sim compare`: policies beside the best schedule that a search has
found with all arrivals and lengths known, and beside a bound that no schedule exceeds."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path
from statistics import fmean
from typing import Any, get_args

from msgspec import Struct, structs
from rich import box
from rich.table import Table

from accelgen.proto.policies import known_policies
from accelgen.scripts.sim_bars import Bars, clock, run_all, schedules_of
from accelgen.scripts.sim_options import label
from accelgen.scripts.sim_table import RULES, attained_column, goodput_column, wide_console
from accelgen.simulator.bound import Bound
from accelgen.simulator.candidates import Metric
from accelgen.simulator.crew import Crew
from accelgen.simulator.distserve import NAME as DISTSERVE
from accelgen.simulator.experiment import ORACLE, Result, Setting
from accelgen.simulator.groups import SEARCHED, Group
from accelgen.simulator.oracle import (
    EXHAUSTIVE,
    VARIANTS,
    bound_of_setting,
    choose,
    searches,
    value_of,
)
from accelgen.simulator.scenarios import Scenario
from accelgen.simulator.settings import Policy, setting_of
from accelgen.simulator.times import Rule

RELAXED = "bound (relaxation)"


class Reference(Struct, frozen=True):
    """One per seed: the best that was found, and the bound."""

    best: list[Result]
    bounds: list[Bound]

    def limits(self) -> tuple[float, float]:
        """The bound's goodput and attainment, mean over the seeds."""
        return (
            fmean(bound.goodput for bound in self.bounds),
            fmean(bound.attainment for bound in self.bounds),
        )

    def rows(self, rule: Rule) -> dict[str, dict[str, str]]:
        """The bound's row of a table, by name: cells by head of their column."""
        goodput, attainment = self.limits()
        heads = _heads(rule)
        return {RELAXED: {heads[0]: f"{goodput:.2f}", heads[1]: f"{100 * attainment:.1f}"}}


def with_reference(
    crew: Crew,
    shown: Bars,
    name: str,
    scenario: Scenario,
    policies: Sequence[Policy],
    rate: float,
    given: dict[str, Any],
) -> tuple[list[Result], Reference]:
    """Every policy with every seed, and what they are held against. Raises CrewError, ScenarioError, TraceError."""

    def settings(those: Sequence[Policy]) -> list[Setting]:
        return [
            setting_of(name, scenario, policy, rate, seed, given["synthetic"])
            for policy in those
            for seed in scenario.seeds
        ]

    starts = settings(policies[:1])  # one per seed
    swapping = any(policy == DISTSERVE for policy, _ in policies)
    with shown.one("bounds"):
        bounds = [bound_of_setting(start, swapping) for start in starts]
    others: list[Policy] = [*((policy, {}) for policy in known_policies()), *VARIANTS]
    asked, more = settings(policies), settings([one for one in others if one not in policies])
    results = _run_announced(crew, shown, [*asked, *more], _tried(starts, given))
    return results[: len(asked)], Reference(_search(crew, shown, results, scenario, given), bounds)


def _run_announced(
    crew: Crew, shown: Bars, known: Sequence[Setting], tried: int | None
) -> list[Result]:
    """The policies' runs, after some words on how much is to come: `tried` schedules of the search, too."""
    first = known[0]
    shown.expect(first.name, None if tried is None else len(known) + tried)
    shown.say(
        f"{len(known)} simulations of {first.requests} requests: policies, and some with other parameters. Then a"
        f" search that tries {'all' if tried is None else tried} schedules. {crew.size} at a time."
    )
    results = run_all(crew, known[:1], shown)
    if tried is not None:
        each_s = results[0].wall_s
        whole = clock(each_s * (len(known) + tried) / crew.size)
        shown.say(
            f"The first took {each_s:.1f} s: roughly {whole} in all, less what is there already."
        )
    return results + run_all(crew, known[1:], shown)


def _chains(start: Setting, given: dict[str, Any], best: Result | None) -> list[Setting]:
    return searches(start, given["evaluations"], given["search_seed"], given["metric"], best)


def _tried(starts: Sequence[Setting], given: dict[str, Any]) -> int | None:
    """How many schedules the search tries; None where it tries all."""
    if starts[0].requests <= EXHAUSTIVE:
        return None
    return sum(schedules_of(chain) for start in starts for chain in _chains(start, given, None))


def _search(
    crew: Crew, shown: Bars, known: Sequence[Result], scenario: Scenario, given: dict[str, Any]
) -> list[Result]:
    """Per seed the best of `known`, runs of policies, and of what the search finds."""
    metric = given["metric"]
    params = {key: given[key] for key in ("evaluations", "search_seed", "metric")}
    live = [result for result in known if result.setting.policy != DISTSERVE]
    starts = [
        choose([one for one in live if one.setting.seed == seed], metric) for seed in scenario.seeds
    ]
    chains = [chain for start in starts for chain in _chains(start.setting, given, start)]
    everything = [*known, *run_all(crew, chains, shown)]
    best = []
    for start in starts:
        seed = start.setting.seed
        found = choose([one for one in everything if one.setting.seed == seed], metric)
        policy = label((found.setting.policy, found.setting.params))
        note = found.note or f"no schedule better than that of {policy} was found"
        setting = structs.replace(start.setting, policy=ORACLE, params=params)
        best.append(structs.replace(found, setting=setting, note=note))
    return best


def print_reference(
    groups: Sequence[Group], reference: Reference, scenario: Scenario, title: str
) -> None:
    """Each policy's distance to what was found, what was found, and the bound; on stdout."""
    rule = Rule(scenario.rule)
    means = sorted((_means(group.policy, group.results) for group in groups), key=itemgetter(1))
    best = _means(SEARCHED, reference.best)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    for head in (*_heads(rule), "goodput below searched %"):
        table.add_column(head, justify="right")
    rows = [*means[::-1], best, (RELAXED, *reference.limits())]
    for row, goodput, attainment in rows:
        below = f"{100 * (1 - goodput / best[1]):.1f}" if best[1] > 0 and row != RELAXED else "-"
        table.add_row(row, f"{goodput:.3f}", f"{100 * attainment:.1f}", below)
    console = wide_console()
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for group in groups:
        if group.fault:
            console.print(f"{group.policy} failed: {group.fault}", markup=False)
    for result, bound in zip(reference.best, reference.bounds, strict=True):
        console.print(
            f"Seed {result.setting.seed}: {result.note}. At most {bound.attained} of {bound.sent} requests can attain"
            f" ({RULES[rule]}), {bound.compute} if KV had no limit, in at least {bound.least_s:.1f} s.",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip


def _heads(rule: Rule) -> tuple[str, str]:
    """Of the columns that a bound has a figure for."""
    return goodput_column(rule).head, attained_column(rule).head


def _means(name: str, results: Sequence[Result]) -> tuple[str, float, float]:
    """Goodput and attainment over the seeds; 0 where the policy failed."""
    goodput, attainment = (
        fmean(max(value_of(result, metric), 0.0) for result in results)
        for metric in get_args(Metric)
    )
    return name, goodput, attainment


def write_bounds(reference: Reference, path: Path) -> Path:
    """A row per seed beside the results."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(
            [
                "seed",
                "sent",
                "attained",
                "compute_alone",
                "least_s",
                "goodput",
                "attainment",
                "searched",
            ]
        )
        for result, bound in zip(reference.best, reference.bounds, strict=True):
            figures = [bound.sent, bound.attained, bound.compute, bound.least_s]
            writer.writerow(
                [result.setting.seed, *figures, bound.goodput, bound.attainment, result.note]
            )  # fmt: skip
    return path
