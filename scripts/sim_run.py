"""`accelgen sim run`: one policy at one rate, in this process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.proto.config import Config
from accelgen.scripts.sim_bars import bars
from accelgen.scripts.sim_options import (
    label,
    pick_scenario,
    rate_option,
    requests_of,
    title_of,
    workload_options,
)
from accelgen.scripts.sim_params import PolicyParam, SwapParam
from accelgen.scripts.sim_table import print_summary, say_written, write_requests, write_results
from accelgen.simulator.experiment import PolicyAt, Result, Setting, Store, key_of, simulate
from accelgen.simulator.run import Fate
from accelgen.simulator.settings import Policy, middle_rate, setting_of


@click.command("run")
@workload_options
@click.option("--policy", type=PolicyParam(), default=Config().policy, show_default=True,
              help="Policy; NAME:key=value sets parameters.")  # fmt: skip
@rate_option
@click.option("--swap", "swaps", type=SwapParam(), multiple=True, metavar="SECONDS:POLICY",
              help="Another policy takes over at that time; several times if you like.")  # fmt: skip
@click.option("--save-detailed", is_flag=True, help="Write a CSV with a row per request.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure as JSON.")
def run(
    policy: Policy,
    rate: float | None,
    swaps: tuple[PolicyAt, ...],
    save_detailed: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Simulate one policy at one rate."""
    name, scenario = pick_scenario(given, [policy])
    at = rate or middle_rate(scenario)
    results = []
    for seed in scenario.seeds[:1] if given["seeds"] is None else scenario.seeds:
        setting = setting_of(name, scenario, policy, at, seed, given["synthetic"], swaps=swaps)
        result, fates = _simulate(setting, save_detailed, given)
        if not as_json:
            click.echo(f"{title_of(name, scenario)}\n{_who(setting)}")
        if result.summary is None:
            raise click.ClickException(f"{label(policy)} failed: {result.fault}")
        if not as_json:
            print_summary(result)
        path = given["out"] / f"run-{name}-{policy[0]}-{result.key[:8]}"
        say_written(_write(result, fates, path, save_detailed))
        results.append(result)
    if as_json:
        click.echo(msgspec.json.encode(results))


def _simulate(setting: Setting, anew: bool, given: dict[str, Any]) -> tuple[Result, list[Fate]]:
    """What came of it, from the store if it is there; then nobody knows any more what became of each request."""
    store = Store(given["out"] / "runs")
    result = None if given["anew"] or anew else store.load(key_of(setting))
    if result is not None:
        return result, []
    who = label((setting.policy, setting.params))
    with bars(given["quiet"]) as shown, shown.one(who) as progress:
        result, outcome = simulate(setting, progress)
    store.save(result)
    return result, outcome.fates


def _who(setting: Setting) -> str:
    later = [f", from {one.at_s:g} s {label((one.policy, one.params))}" for one in setting.swaps]
    policy = label((setting.policy, setting.params))
    requests = requests_of(setting.scenario, setting.stand_ins)
    return (
        f"{policy}{''.join(later)} at {setting.rate:g} requests/s, seed {setting.seed}; {requests}"
    )


def _write(result: Result, fates: list[Fate], path: Path, detailed: bool) -> list[Path]:
    written = write_results([result], path)
    if detailed:
        written.append(path.with_suffix(".requests.csv"))
        write_requests(fates, written[-1])
    return written
