"""`accelgen policies`: what could schedule, and what does."""

from __future__ import annotations

import click

from accelgen.proto.messages import Directory, Role
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.policy_params import known_policies
from accelgen.supervisor.rundir import find_live


@click.command(name="policies")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(run_dir: str) -> int:
    """List the installed policies. Of a running server: which is active, in which epoch, for how long."""
    try:
        directory = ask_directory(find_live(run_dir))
    except StartError as error:
        if run_dir:
            raise click.ClickException(str(error)) from error
        directory = None
    for name in known_policies():
        click.echo(_line(name, directory))
    if directory is not None and (why := directory.config.get("rolled_back")):
        click.echo(f"\nrolled back: {why}")
    return 0


def _line(name: str, directory: Directory | None) -> str:
    if directory is None or directory.config.get("policy") != name:
        return f"  {name}"
    scheduler = max(
        (m for m in directory.members if m.role is Role.SCHEDULER), key=lambda m: m.epoch
    )
    return (
        f"* {name}   active, epoch {scheduler.epoch}, its process for {scheduler.uptime_s:,.0f} s"
    )
