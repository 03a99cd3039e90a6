"""`accelgen logs`: what the processes have logged, in the order of time, made legible."""

from __future__ import annotations

import heapq
import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import LOCK, LOGS, find_logs, is_live

_FIRST_KEYS = ("timestamp", "level", "process", "event", "exception")
_COLORS = {"warning": "yellow", "error": "red", "critical": "red", "debug": "bright_black"}
_FOLLOW_S = 0.2


@click.command(name="logs")
@click.argument("process", default="")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is logged from now on.")
@click.option("-n", "--lines", "count", type=click.IntRange(min=0), default=50, show_default=True)
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(process: str, follow: bool, count: int, run_dir: str) -> int:
    """Show the last log lines of PROCESS (worker-0, scheduler-0, ...), or of all processes together.

    Without --run-dir: of the running server, or of the last one that failed."""
    try:
        logs = find_logs(run_dir)
        files = chosen_files(logs, process)
    except StartError as error:
        raise click.ClickException(str(error)) from error
    tails = [Tail(path) for path in files]
    first = list(merge([tail.new_lines() for tail in tails]))
    for line in first[max(0, len(first) - count) :]:
        click.echo(pretty(line))
    if not first:
        click.echo(f"accelgen: nothing logged yet in {logs}", err=True)
    with suppress(KeyboardInterrupt):
        if follow:
            go_on(logs.parent, tails)
    return 0


def go_on(run: Path, tails: list[Tail]) -> None:
    """Shows what is added until the server of run directory `run` has ended, and then says so."""
    alive = True
    while alive:
        alive = is_live(run)  # asked first: what it said last is still read
        for line in merge([tail.new_lines() for tail in tails]):
            click.echo(pretty(line))
        if alive:
            time.sleep(_FOLLOW_S)
    left = (run / LOCK).is_file()  # a server that ends well takes its folder away
    kept = f"its logs are in {run / LOGS}" if left else "it has taken its logs away"
    click.echo(f"accelgen: the server has ended; {kept}", err=True)


def chosen_files(logs: Path, process: str) -> list[Path]:
    """The log files of `process`: exactly that one, else all of that role, else all. Raises StartError."""
    files = sorted(logs.glob("*.log"))
    chosen = [path for path in files if not process or path.stem == process]
    chosen = chosen or [path for path in files if path.stem.split("-")[0] == process]
    if not files:
        raise StartError(f"there are no logs in {logs}")
    if not chosen:
        known = ", ".join(path.stem for path in files)
        raise StartError(f"there is no log of {process!r} in {logs}; there are: {known}")
    return chosen


class Tail:
    """Reads a growing file, complete lines only."""

    def __init__(self, path: Path) -> None:
        self._path, self._offset, self._stamp = path, 0, ""

    def new_lines(self) -> list[tuple[str, dict[str, Any]]]:
        """(time stamp, fields) of the lines added since the last call. Text that is no JSON line (a traceback)
        keeps the stamp of the line before it."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:  # the server has ended and taken its folder away
            return []
        whole, newline, _ = content.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        lines = []
        for text in whole.decode(errors="replace").splitlines():
            fields = _fields(text, self._path.stem)
            self._stamp = str(fields.get("timestamp", self._stamp))
            lines.append((self._stamp, fields))
        return lines


def merge(files: list[list[tuple[str, dict[str, Any]]]]) -> Iterator[dict[str, Any]]:
    """Lines of several files in the order of their time stamps; lines of one file keep their order."""
    for _, fields in heapq.merge(*files, key=lambda line: line[0]):
        yield fields


def pretty(fields: dict[str, Any]) -> str:
    """One line for people: time, process, level, event, and the rest as key=value."""
    stamp = str(fields.get("timestamp", ""))[11:23]
    level = str(fields.get("level", ""))
    head = f"{stamp:<12} {fields.get('process', ''):<12} {level:<7} {fields.get('event', '')}"
    rest = " ".join(f"{key}={_value(fields[key])}" for key in fields if key not in _FIRST_KEYS)
    line = printable(f"{head} {rest}".rstrip())
    if "exception" in fields:
        line += "\n" + "\n".join(map(printable, str(fields["exception"]).splitlines()))
    return click.style(line, fg=_COLORS[level]) if level in _COLORS else line


def _fields(text: str, process: str) -> dict[str, Any]:
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    return fields if isinstance(fields, dict) else {"process": process, "event": text}


def _value(value: Any) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value)


def printable(text: str) -> str:
    """Control characters escaped: a log line must not speak to the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
