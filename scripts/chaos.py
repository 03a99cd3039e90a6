"""`accelgen chaos`: break a server of one's own in every way there is, and see what becomes of its requests."""

from __future__ import annotations

import secrets
import signal
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from math import inf
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from accelgen.faults.campaign import Campaign, dump
from accelgen.faults.cases import MATRIX, Case, chosen
from accelgen.faults.rows import Row, append
from accelgen.faults.run import Pace
from accelgen.faults.schedule import Step, draw
from accelgen.proto.clocks import now_s

SEED_LIMIT = 2**31


@click.command(name="chaos")
@click.option(
    "--seed",
    type=click.IntRange(0, SEED_LIMIT - 1),
    help="Repeats a schedule; drawn and printed if not given.",
)
@click.option(
    "--minutes",
    type=click.FloatRange(0, min_open=True),
    default=10.0,
    show_default=True,
    help="No case is begun after that.",
)
@click.option(
    "--cases",
    "pattern",
    default="*",
    metavar="GLOB",
    help="Only the cases whose names match: 'sigkill/*', '*@swap', 'link-*/scheduler-*'.",
)
@click.option(
    "--slack",
    type=click.FloatRange(1.0),
    default=1.0,
    show_default=True,
    help="Multiplies how soon deaths and hangs must be noticed: for a machine with other work.",
)
@click.option("--once", is_flag=True, help="Each case once, however long that takes.")
@click.option("--list", "listed", is_flag=True, help="Show the cases and run none.")
@click.option(
    "--rows",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Append a line of JSON per case to this file; what clients saw of a failed one goes into a folder beside it.",
)
def command(
    seed: int | None,
    minutes: float,
    pattern: str,
    slack: float,
    once: bool,
    listed: bool,
    rows: Path | None,
) -> int:
    """Start a server, inject one fault after another under load, and check the reliability contract.

    The server is started for this and taken down again; no other one is touched. Every fault must prove that it took
    effect, and every case is first tried on a wrong target, where it must not. The same seed runs the same cases in the
    same order. Exit status 1 if a case has failed, 130 if interrupted."""
    cases = chosen(pattern)
    if not cases:
        raise click.BadParameter(f"no case matches {pattern!r}; see --list", param_hint="--cases")
    console = Console(highlight=False)
    if listed:
        show_matrix(console, cases)
        return 0
    if rows is not None and not rows.parent.is_dir():
        raise click.BadParameter(f"{rows.parent} is not a folder", param_hint="--rows")
    drawn = secrets.randbelow(SEED_LIMIT) if seed is None else seed
    extent = Extent(len(cases), inf) if once else Extent(None, 60 * minutes)
    what = f"{len(cases)} cases in random order" if len(cases) > 1 else escape(cases[0].name)
    console.print(f"seed {drawn}: {what}, {extent}")
    steps = islice(draw(drawn, cases), extent.cases)
    done, interrupted = run(console, Campaign(Pace(slack=slack)), steps, extent, rows)
    summarise(console, done)
    console.print(f"repeat it with --seed {drawn}")
    if interrupted:
        return 130
    return int(not all(row.passed for row in done))


@dataclass(frozen=True)
class Extent:
    """How far it goes: so many cases (None: no limit), and none begun after so many seconds."""

    cases: int | None
    seconds: float

    def __str__(self) -> str:
        if self.cases is None:
            minutes = self.seconds / 60
            return f"for {minutes:g} minute{'s' * (minutes != 1)}"
        return "each once" if self.cases > 1 else "once"


def run(
    console: Console, campaign: Campaign, steps: Iterable[Step], extent: Extent, path: Path | None
) -> tuple[list[Row], bool]:
    """Runs the steps and shows each row as it comes; all rows, and whether Ctrl-C ended it."""
    done: list[Row] = []
    begun_s = now_s()
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(30),
        TimeRemainingColumn(),
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the server is taken down, too
    with Progress(*columns, console=console, transient=True) as progress, campaign:
        task = progress.add_task("starting a server", total=extent.cases or extent.seconds)
        try:
            for step in steps:
                before_s = now_s()
                if before_s - begun_s >= extent.seconds:
                    break
                far = len(done) if extent.cases else before_s - begun_s
                progress.update(task, description=escape(step.case.name), completed=far)
                row = campaign.run(step)
                done.append(row)
                show(console, step.number, row, now_s() - before_s)
                if path is not None:
                    save(path, row, campaign)
        except KeyboardInterrupt:
            console.print("interrupted; taking the server down")
            return done, True
    return done, False


def save(path: Path, row: Row, campaign: Campaign) -> None:
    """The row, and the histories of a case that has failed."""
    append(path, row)
    if not row.passed:
        folder = path.with_suffix(".failed")
        folder.mkdir(exist_ok=True)
        name = f"{row.case.replace('/', '-')}.{row.seed}.json"
        (folder / name).write_bytes(dump(campaign.histories))


def show(console: Console, number: int, row: Row, took_s: float) -> None:
    """One case in one line, and what is wrong with it in further ones."""
    mark = "[green]pass[/]" if row.passed else "[red]FAIL[/]"
    figures = f"{row.requests:3d} requests, {row.failed} failed"
    if row.allowed:
        figures += f" ({row.allowed} of them may)"
    figures += f", silence {row.recovery_s:.2f} s"
    console.print(f"{number:4d} {mark} {row.case:44s} {took_s:5.1f} s  {figures}", soft_wrap=True)
    for line in row.broken:
        console.print(f"          {escape(line)}", style="red", soft_wrap=True)


def show_matrix(console: Console, cases: Sequence[Case]) -> None:
    """Every case by its name, grouped by fault."""
    table = Table(box=None, pad_edge=False)
    table.add_column("fault", style="bold", no_wrap=True)
    table.add_column("cases")
    by_fault: dict[str, list[str]] = defaultdict(list)
    for case in cases:
        name = case.name if case.first else case.name.removeprefix(f"{case.fault}/")
        by_fault[case.fault].append(name)
    for fault, names in by_fault.items():
        table.add_row(fault, escape("  ".join(names)))
    console.print(table)
    console.print(
        f"\n{len(cases)} of {len(MATRIX)} cases; a name is fault/target@moment or first+second"
    )


def summarise(console: Console, done: Sequence[Row]) -> None:
    """One line per fault."""
    if not done:
        console.print("no case was run")
        return
    table = Table(box=None, pad_edge=False)
    table.add_column("fault", style="bold")
    for title in ("cases", "passed", "requests", "failed", "may fail", "changed", "silence s"):
        table.add_column(title, justify="right")
    by_fault: dict[str, list[Row]] = defaultdict(list)
    for row in done:
        by_fault[row.fault].append(row)
    for fault, rows in [*sorted(by_fault.items()), ("all", list(done))]:
        passed = sum(row.passed for row in rows)
        table.add_row(
            fault,
            str(len(rows)),
            str(passed) if passed == len(rows) else f"[red]{passed}[/]",
            f"{sum(row.requests for row in rows):,}",
            str(sum(row.failed for row in rows)),
            str(sum(row.allowed for row in rows)),
            str(sum(row.different for row in rows)),
            f"{max(row.recovery_s for row in rows):.2f}",
            end_section=False,
        )
    console.print()
    console.print(table)
