"""`accelgen sim capacity`: one bisection per policy, side by side, and what they found."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import click
import msgspec
from rich import box
from rich.table import Table

from accelgen.scripts.sim_bars import Bars, run_all, side_by_side
from accelgen.scripts.sim_figure import NO_MATPLOTLIB, draw_capacity
from accelgen.scripts.sim_options import label
from accelgen.scripts.sim_table import say_written, wide_console
from accelgen.simulator.capacity import Capacity, find_capacity
from accelgen.simulator.crew import Crew
from accelgen.simulator.experiment import Result
from accelgen.simulator.scenarios import Scenario
from accelgen.simulator.settings import Policy, enough_for, middle_rate, most_rate, setting_of
from accelgen.simulator.times import Rule

Capacities = dict[float, Capacity]
"""By the share of the requests that is to attain."""
Found = dict[str, tuple[Capacities, list[Result]]]


def search(
    crew: Crew,
    shown: Bars,
    name: str,
    scenario: Scenario,
    policies: list[Policy],
    wanted: list[float],
    tolerance: float,
    stand_ins: bool,
) -> Found:
    """Per policy: its capacity at each share of `wanted`, and the runs that these rest on, which they share: a run is
    given up when the least of them is out of reach. Attainment at a rate is the mean over the seeds."""
    shown.expect(name, None)
    enough = enough_for(min(wanted), scenario)

    def one(policy: Policy) -> tuple[Capacities, list[Result]]:
        runs: dict[float, list[Result]] = {}

        def attained(rate: float) -> float:
            if rate not in runs:
                settings = [
                    setting_of(name, scenario, policy, rate, seed, stand_ins, enough=enough)
                    for seed in scenario.seeds
                ]
                runs[rate] = run_all(crew, settings, shown)
            return fmean(result.attainment(scenario.rule) for result in runs[rate])

        first, most = middle_rate(scenario), most_rate(scenario)
        found = {share: find_capacity(attained, share, first, most, tolerance) for share in wanted}
        return found, [result for results in runs.values() for result in results]

    found = side_by_side(crew, one, policies, 4 * crew.size)
    return {label(policy): one for policy, one in zip(policies, found, strict=True)}


def report_capacities(found: Found, scenario: Scenario, title: str, about: str, path: Path) -> None:
    """Table on stdout, `about` below its title; CSV, JSON and figure under `path`."""
    console = wide_console()
    console.print(f"{title}\n{about}", markup=False, highlight=False, soft_wrap=True)
    console.print(_table(found))
    for policy, (_, results) in found.items():
        for fault in dict.fromkeys(result.fault for result in results if result.fault):
            console.print(f"{policy} failed: {fault}", markup=False)
    written = _write(found, scenario, path)
    try:
        capacities = {policy: capacities for policy, (capacities, _) in found.items()}
        draw_capacity(capacities, Rule(scenario.rule), title, path.with_suffix(".png"))
        written.append(path.with_suffix(".png"))
    except ImportError:
        click.echo(NO_MATPLOTLIB, err=True)
    say_written(written)


def _table(found: Found) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("policy")
    shares = next(iter(found.values()))[0]
    for share in shares:
        for head in (f"capacity at {100 * share:.4g}% (req/s)", "first bad rate", "rates tried"):
            table.add_column(head, justify="right")
    for policy, (capacities, _) in found.items():
        row = [policy]
        for capacity in capacities.values():
            above = "-" if capacity.above is None else f"{capacity.above:.3f}"
            row += [f"{capacity.rate:.3f}", above, str(len(capacity.tried))]
        table.add_row(*row)
    return table


def _write(found: Found, scenario: Scenario, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, whole = path.with_suffix(".csv"), path.with_suffix(".json")
    with rows.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(
            ["policy", "rule", "attainment", "capacity", "first_bad_rate", "rate", "attained"]
        )
        for policy, (capacities, _) in found.items():
            for share, capacity in capacities.items():
                head = [policy, scenario.rule, share, capacity.rate, capacity.above]
                writer.writerows([*head, *tried] for tried in capacity.tried)
    content = {
        policy: {"rule": scenario.rule, "capacities": capacities, "results": results}
        for policy, (capacities, results) in found.items()
    }
    whole.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
    return [rows, whole]
