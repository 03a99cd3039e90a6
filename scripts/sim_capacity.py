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

Found = dict[str, tuple[Capacity, list[Result]]]


def search(
    crew: Crew,
    shown: Bars,
    name: str,
    scenario: Scenario,
    policies: list[Policy],
    wanted: float,
    tolerance: float,
    stand_ins: bool,
) -> Found:
    """Per policy: its capacity, and the runs it rests on. Attainment at a rate is the mean over the seeds."""
    shown.expect(name, None)
    enough = enough_for(wanted, scenario)

    def one(policy: Policy) -> tuple[Capacity, list[Result]]:
        runs: list[Result] = []

        def attained(rate: float) -> float:
            settings = [
                setting_of(name, scenario, policy, rate, seed, stand_ins, enough=enough)
                for seed in scenario.seeds
            ]
            results = run_all(crew, settings, shown)
            runs.extend(results)
            return fmean(result.attainment(scenario.rule) for result in results)

        first, most = middle_rate(scenario), most_rate(scenario)
        return find_capacity(attained, wanted, first, most, tolerance), runs

    found = side_by_side(crew, one, policies, 4 * crew.size)
    return {label(policy): one for policy, one in zip(policies, found, strict=True)}


def report_capacities(
    found: Found, scenario: Scenario, wanted: float, title: str, about: str, path: Path
) -> None:
    """Table on stdout, `about` below its title; CSV, JSON and figure under `path`."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for head in ("policy", f"capacity at {wanted:.0%} (req/s)", "first bad rate", "rates tried"):
        table.add_column(head, justify="left" if head == "policy" else "right")
    for policy, (capacity, _) in found.items():
        above = "-" if capacity.above is None else f"{capacity.above:.3f}"
        table.add_row(policy, f"{capacity.rate:.3f}", above, str(len(capacity.tried)))
    console = wide_console()
    console.print(f"{title}\n{about}", markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    for policy, (_, results) in found.items():
        for fault in dict.fromkeys(result.fault for result in results if result.fault):
            console.print(f"{policy} failed: {fault}", markup=False)
    written = _write(found, scenario, wanted, path)
    try:
        capacities = {policy: capacity for policy, (capacity, _) in found.items()}
        draw_capacity(capacities, wanted, Rule(scenario.rule), title, path.with_suffix(".png"))
        written.append(path.with_suffix(".png"))
    except ImportError:
        click.echo(NO_MATPLOTLIB, err=True)
    say_written(written)


def _write(found: Found, scenario: Scenario, wanted: float, path: Path) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, whole = path.with_suffix(".csv"), path.with_suffix(".json")
    with rows.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(
            ["policy", "rule", "attainment", "capacity", "first_bad_rate", "rate", "attained"]
        )
        for policy, (capacity, _) in found.items():
            for rate, attained in capacity.tried:
                head = [policy, scenario.rule, wanted, capacity.rate, capacity.above]
                writer.writerow([*head, rate, attained])
    content = {
        policy: {
            "attainment": wanted,
            "rule": scenario.rule,
            "capacity": capacity,
            "results": results,
        }
        for policy, (capacity, results) in found.items()
    }
    whole.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
    return [rows, whole]
