"""`accelgen down`: ends a running server."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

import click

from accelgen.supervisor.client import ask_directory, ask_to_stop, await_end
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live, holder_of

ANSWER_S = 3.0
_BEYOND_DRAIN_S = (
    15.0  # what the supervisor may need at most after the drain, until it has killed the last one
)


@click.command(name="down")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
@click.option(
    "--timeout",
    "drain_s",
    type=click.FloatRange(0, 86400),
    show_default="the server's --shutdown-timeout",
    help="Seconds that running requests get to finish.",
)
def command(run_dir: str, drain_s: float | None) -> int:
    """Stop a running server, once its requests have finished. Exit status 1 if there is none, or it does not end.

    A server that is stopping already gets the time that it was given, or less with --timeout."""
    try:
        path = find_live(run_dir)
    except StartError as error:
        raise click.ClickException(str(error)) from error
    pid = holder_of(path)
    wait_s, ended = _stop(path, pid, drain_s)
    if not ended:
        raise click.ClickException(f"the server (pid {pid}) has not ended within {wait_s:.0f} s")
    click.echo(f"stopped the server with pid {pid}")
    return 0


def _stop(path: Path, pid: int, drain_s: float | None) -> tuple[float, bool]:
    """How long the server was waited for, and whether it has ended."""
    try:
        directory = ask_directory(path, ANSWER_S)
    except StartError:  # its socket may have been removed
        click.echo(f"the server (pid {pid}) does not answer: it gets SIGTERM instead", err=True)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
        wait_s = (drain_s or 0.0) + _BEYOND_DRAIN_S
        return wait_s, await_end(path, wait_s)
    own_s = float(directory.config.get("shutdown_timeout_s", 0.0))
    wait_s = (own_s if drain_s is None else drain_s) + _BEYOND_DRAIN_S
    if drain_s is None and directory.draining:
        return wait_s, await_end(path, wait_s)
    return wait_s, ask_to_stop(path, wait_s - _BEYOND_DRAIN_S, wait_s)
