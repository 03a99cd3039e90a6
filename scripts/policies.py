"""`accelgen policies`: what could schedule, and what does."""

from __future__ import annotations

import click

from accelgen.proto.policies import InOffice, in_office, known_policies
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live


@click.command(name="policies")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(run_dir: str) -> int:
    """List the installed policies. Of a running server: which is active, in which epoch, for how long."""
    try:
        office = in_office(ask_directory(find_live(run_dir)))
    except StartError as error:
        if run_dir:
            raise click.ClickException(str(error)) from error
        office = None
    for name in known_policies():
        click.echo(_line(name, office))
    if office is not None and office.swap:
        click.echo(f"\nswap under way: {office.swap['policy']}, {office.swap['stage']}")
    if office is not None and office.rolled_back:
        click.echo(f"\nrolled back: {office.rolled_back}")
    return 0


def _line(name: str, office: InOffice | None) -> str:
    if office is None or office.policy != name:
        return f"  {name}"
    params = "".join(f" {key}={value}" for key, value in office.params.items())
    line = f"* {name}{params}   active for {office.for_s:,.0f} s"
    if office.epoch is None:
        return f"{line}, no scheduler at the moment"
    return f"{line}, epoch {office.epoch}, its process for {office.process_s:,.0f} s"
