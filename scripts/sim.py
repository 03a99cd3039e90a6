"""`accelgen sim`: scheduling policies in the simulator, on the same workload, on any machine."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.scripts.sim_bars import bars
from accelgen.scripts.sim_options import (
    RATE,
    asked_of,
    jobs_option,
    pick_scenario,
    policies_option,
    rate_option,
    title_of,
    workload_options,
)
from accelgen.scripts.sim_params import ListParam
from accelgen.scripts.sim_report import report
from accelgen.scripts.sim_run import run
from accelgen.scripts.sim_search import search_options
from accelgen.simulator.crew import FAULTS, Crew, CrewError
from accelgen.simulator.experiment import Result, Setting, Store
from accelgen.simulator.groups import groups_of
from accelgen.simulator.scenarios import Scenario
from accelgen.simulator.settings import Policy, middle_rate, setting_of
from accelgen.simulator.times import Rule
from accelgen.simulator.traces import MissingTrace


class Fault(click.ClickException):
    """Something asked for is not there, or not right."""

    exit_code = 2


class Sim(click.Group):
    """Faults in what was asked for cost one line."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except FAULTS as error:
            hint = " (or: --synthetic)" if isinstance(error, MissingTrace) else ""
            raise Fault(f"{error}{hint}") from error
        except CrewError as error:
            raise click.ClickException(str(error)) from error


@click.group(name="sim", cls=Sim)
def command() -> None:
    """Simulate scheduling policies: the live scheduler and KV manager over a modelled device."""


command.add_command(run)
command.add_command(report)


@command.command("list")
@click.option(
    "--scenarios",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="TOML file of scenarios.",
)
def list_names(file: Path | None) -> None:
    """Scenarios, policies, devices and stand-ins for traces, by name."""
    from accelgen.proto.policies import known_memories, known_policies, known_routings
    from accelgen.simulator.device import known_devices
    from accelgen.simulator.scenarios import SYNTHETIC, load_scenarios
    from accelgen.simulator.synthetic import STAND_INS

    click.echo("Scenarios (--scenario):")
    for name, scenario in load_scenarios(file).items():
        rates = ", ".join(f"{rate:g}" for rate in scenario.rates)
        click.echo(
            f"  {name}: {scenario.about}; {scenario.model} on {scenario.hardware}, rates {rates}"
        )
    click.echo(f"Policies (--policy): {', '.join(known_policies())}")
    click.echo("  distserve: with --replicas 2 or more, not among the installed ones")
    click.echo(f"Memory policies (--memory): {', '.join(known_memories())}")
    click.echo(f"Routings (--routing): {', '.join(known_routings())}")
    devices = ", ".join(f"{model} on {hardware}" for model, hardware in known_devices())
    click.echo(f"Devices (--model, --hardware): {devices}")
    click.echo(f"Stand-ins (--trace {SYNTHETIC}NAME): {', '.join(STAND_INS)}")


@command.command("compare")
@workload_options
@policies_option
@rate_option
@click.option(
    "--oracle", is_flag=True, help="Rows of `sim oracle`: a searched upper reference, a bound."
)
@search_options
@jobs_option
def compare(
    policies: list[Policy], rate: float | None, oracle: bool, jobs: int | None, **given: Any
) -> None:
    """Compare policies at one rate: a table and a figure."""
    from accelgen.scripts.sim_figure import draw_comparison
    from accelgen.scripts.sim_oracle import with_reference

    name, scenario = pick_scenario(given, policies)
    at = rate or middle_rate(scenario)
    if not oracle:
        results = _run_grid(name, scenario, policies, [at], jobs, given)
        _report("compare", name, scenario, results, given["out"], draw_comparison, with_rate=False)
        return
    with _crew(jobs, given) as crew, bars(given["quiet"]) as shown:
        results, reference = with_reference(crew, shown, name, scenario, policies, at, given)
    draw = partial(draw_comparison, limits=reference.limits())
    results, rows = [*results, *reference.best], reference.rows(Rule(scenario.rule))
    _report("compare", name, scenario, results, given["out"], draw, with_rate=False, more=rows)


@command.command("oracle")
@workload_options
@policies_option
@rate_option
@search_options
@jobs_option
def oracle(policies: list[Policy], rate: float | None, jobs: int | None, **given: Any) -> None:
    """Hold policies against a searched upper reference, which knows all arrivals and lengths, and against a bound."""
    from accelgen.scripts.sim_oracle import print_reference, with_reference, write_bounds
    from accelgen.scripts.sim_table import say_written, write_results

    name, scenario = pick_scenario(given, policies)
    at = rate or middle_rate(scenario)
    with _crew(jobs, given) as crew, bars(given["quiet"]) as shown:
        results, reference = with_reference(crew, shown, name, scenario, policies, at, given)
    title = f"{title_of(name, scenario)}\n{asked_of(scenario, given['synthetic'], at)}"
    print_reference(groups_of(results), reference, scenario, title)
    everything = [*results, *reference.best]
    path = given["out"] / _stem("oracle", name, everything)
    written = write_results(everything, path)
    say_written([*written, write_bounds(reference, path.with_suffix(".bounds.csv"))])


@command.command("sweep")
@workload_options
@policies_option
@click.option(
    "--rates",
    type=ListParam(RATE),
    metavar="R,...",
    show_default="those of the scenario",
    help="Requests/s.",
)
@jobs_option
def sweep(
    policies: list[Policy], rates: list[float] | None, jobs: int | None, **given: Any
) -> None:
    """Compare policies over rates: a table and a figure."""
    from accelgen.scripts.sim_figure import draw_sweep

    name, scenario = pick_scenario(given, policies)
    results = _run_grid(name, scenario, policies, rates or scenario.rates, jobs, given)
    _report("sweep", name, scenario, results, given["out"], draw_sweep, with_rate=True)


@command.command("capacity")
@workload_options
@policies_option
@click.option(
    "--attainment",
    "shares",
    type=ListParam(click.FloatRange(0, 1, min_open=True)),
    metavar="SHARE,...",
    default="0.99",
    show_default=True,
    help="Of the requests sent, that must keep their objectives; several share their runs.",
)
@click.option("--tolerance", type=click.FloatRange(0.001, 0.5), default=0.02, show_default=True,
              help="Relative distance of a good and a bad rate at which the search ends.")  # fmt: skip
@jobs_option
def capacity(
    policies: list[Policy], shares: list[float], tolerance: float, jobs: int | None, **given: Any
) -> None:
    """Find the highest rate at which enough requests keep their objectives, by bisection."""
    from accelgen.scripts.sim_capacity import report_capacities, search

    name, scenario = pick_scenario(given, policies)
    with _crew(jobs, given) as crew, bars(given["quiet"]) as shown:
        found = search(crew, shown, name, scenario, policies, shares, tolerance, given["synthetic"])
    stem = _stem("capacity", name, [result for _, results in found.values() for result in results])
    about = asked_of(scenario, given["synthetic"])
    report_capacities(found, scenario, title_of(name, scenario), about, given["out"] / stem)


# --- shared ------------------------------------------------------------------------------------------------------


def _run_grid(
    name: str,
    scenario: Scenario,
    policies: Sequence[Policy],
    rates: Sequence[float],
    jobs: int | None,
    given: dict[str, Any],
) -> list[Result]:
    """Every policy at every rate with every seed."""
    from accelgen.scripts.sim_bars import run_all

    settings: list[Setting] = [
        setting_of(name, scenario, policy, rate, seed, given["synthetic"])
        for policy in policies
        for rate in rates
        for seed in scenario.seeds
    ]
    with _crew(jobs, given) as crew, bars(given["quiet"]) as shown:
        shown.expect(name, len(settings))
        return run_all(crew, settings, shown)


@contextmanager
def _crew(jobs: int | None, given: dict[str, Any]) -> Iterator[Crew]:
    store = Store(given["out"] / "runs")
    with Crew(jobs or os.cpu_count() or 1, store, given["anew"]) as crew:
        yield crew


def _report(
    verb: str,
    name: str,
    scenario: Scenario,
    results: list[Result],
    out: Path,
    draw: Callable[..., None],
    with_rate: bool,
    more: dict[str, dict[str, str]] | None = None,
) -> None:
    from accelgen.scripts.sim_figure import NO_MATPLOTLIB
    from accelgen.scripts.sim_table import print_groups, say_written, write_results

    groups, rule, title = groups_of(results), Rule(scenario.rule), title_of(name, scenario)
    setting = results[0].setting
    about = asked_of(scenario, setting.stand_ins, None if with_rate else setting.rate)
    print_groups(groups, rule, f"{title}\n{about}", with_rate, more)
    path = out / _stem(verb, name, results)
    written = write_results(results, path)
    try:
        draw(groups, rule, title, path.with_suffix(".png"))
        written.append(path.with_suffix(".png"))
    except ImportError:
        click.echo(NO_MATPLOTLIB, err=True)
    say_written(written)


def _stem(verb: str, name: str, results: Sequence[Result]) -> str:
    """Another name for other settings, so that nothing is overwritten but what is made again."""
    settings = msgspec.json.encode([result.setting for result in results], order="sorted")
    return f"{verb}-{name}-{sha256(settings).hexdigest()[:8]}"
