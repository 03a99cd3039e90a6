"""`accelgen down`: ends a running server."""

from __future__ import annotations

import click

from accelgen.supervisor.client import ask_to_stop
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live, holder_of

_BEYOND_DRAIN_S = (
    15.0  # what the supervisor may need at most after the drain, until it has killed the last one
)


@click.command(name="down")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
@click.option(
    "--timeout",
    "drain_s",
    type=click.FloatRange(0, 86400),
    default=5.0,
    show_default=True,
    help="Seconds that running requests get to finish.",
)
def command(run_dir: str, drain_s: float) -> int:
    """Stop a running server, once its requests have finished. Exit status 1 if there is none, or it does not end."""
    try:
        path = find_live(run_dir)
    except StartError as error:
        raise click.ClickException(str(error)) from error
    pid = holder_of(path)
    if not ask_to_stop(path, drain_s, drain_s + _BEYOND_DRAIN_S):
        raise click.ClickException(
            f"the server (pid {pid}) has not ended within {drain_s + _BEYOND_DRAIN_S:.0f} s"
        )
    click.echo(f"stopped the server with pid {pid}")
    return 0
