"""Results of simulations as tables, CSV and JSON."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import msgspec
from rich import box
from rich.console import Console
from rich.table import Table

from accelgen.scripts.sim_options import label
from accelgen.simulator.experiment import Result
from accelgen.simulator.groups import Group, Read, figure_of
from accelgen.simulator.run import Fate
from accelgen.simulator.times import Rule, Times

RULES = {Rule.EVERY_GAP: "gap", Rule.CUMULATIVE: "cumul.", Rule.MEAN: "mean"}
NO_DATA = "-"
SPACE = 3  # between two columns
WIDE = 1000  # characters, where nobody says how many there are


@dataclass(frozen=True)
class Column:
    """A figure of a table: its name and unit, how it is read from a result, and how it is written."""

    name: str
    unit: str
    read: Read
    form: str = "{:.2f}"

    @property
    def head(self) -> str:
        return f"{self.name} {self.unit}".rstrip()


def columns(rule: Rule, results: Sequence[Result] = ()) -> list[Column]:
    """The figures in which policies are compared; of sessions where there are any in `results`."""
    sessions = Column(f"sessions ({RULES[rule]})", "%", _sessions(rule), "{:.1f}")
    return [
        goodput_column(rule),
        *map(attained_column, RULES),
        *([sessions] if any(sessions.read(one) is not None for one in results) else []),
        Column("throughput", "req/s", figure_of("request_throughput")),
        Column("output", "tok/s", figure_of("token_throughput"), "{:.0f}"),
        Column("TTFT mean", "s", figure_of("latency.ttft_s.mean")),
        Column("TTFT p99", "s", figure_of("latency.ttft_s.p99")),
        Column("TPOT mean", "ms", _times(1e3, "latency.tpot_s.mean"), "{:.1f}"),
        Column("TPOT p99", "ms", _times(1e3, "latency.tpot_s.p99"), "{:.1f}"),
        Column("JCT mean", "s", figure_of("latency.jct_s.mean")),
        Column("normalised latency", "s/token", figure_of("latency.normalised_s.mean"), "{:.3f}"),
        Column("KV", "%", _times(100, "machine.kv_utilisation"), "{:.0f}"),
        Column("compute", "%", _times(100, "machine.compute_utilisation"), "{:.0f}"),
        Column("preemptions", "", figure_of("machine.preemptions"), "{:.0f}"),
        Column("decision p99", "ms", _times(1e3, "decisions.each_s.p99")),
    ]


def goodput_column(rule: Rule) -> Column:
    return Column(f"goodput ({RULES[rule]})", "req/s", figure_of(f"goodput.{rule}"))


def attained_column(rule: Rule) -> Column:
    read = _times(100, f"judged.attainment.{rule}")
    return Column(f"attained ({RULES[rule]})", "%", read, "{:.1f}")


def _sessions(rule: Rule) -> Read:
    """Share of sessions that attained; nothing where every request is one by itself, as the other column says it."""

    def read(result: Result) -> float | None:
        summary = result.summary
        if summary is None or not summary.by_stage:
            return None
        return 100 * summary.sessions[rule]

    return read


def _times(factor: float, path: str) -> Read:
    read = figure_of(path)

    def scaled(result: Result) -> float | None:
        value = read(result)
        return None if value is None else factor * value

    return scaled


def print_groups(
    groups: Sequence[Group], rule: Rule, title: str, with_rate: bool, more: dict[str, dict[str, str]] | None = None
) -> None:  # fmt: skip
    """The table on stdout, in as many parts as the terminal is too narrow. A figure without data is a dash; a policy
    that failed has a line of its own below. `more`: further rows, by name, of cells by head; not with rates."""
    console = wide_console()
    names = [[group.policy, *([f"{group.rate:g}"] if with_rate else [])] for group in groups]
    names += [[name] for name in more or {}]
    shown = [
        (
            column.head,
            [
                *(_cell(group.mean(column.read), column) for group in groups),
                *(cells.get(column.head, NO_DATA) for cells in (more or {}).values()),
            ],
        )
        for column in columns(rule, [result for group in groups for result in group.results])
    ]
    console.print(title, markup=False, highlight=False, soft_wrap=True)
    heads = ["policy", "rate"][: 1 + with_rate]
    first = sum(max(map(len, cells)) + SPACE for cells in zip(heads, *names, strict=True))
    for part in _evenly(shown, console.width - first):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column("policy", no_wrap=True)
        if with_rate:
            table.add_column("rate", justify="right", no_wrap=True)
        for (head, _), width in zip(part, _widths(part, console.width - first), strict=True):
            table.add_column(head, justify="right", width=width)
        for row, name in enumerate(names):
            table.add_row(*name, *(cells[row] for _, cells in part))
        console.print(table)
    for group in groups:
        if group.fault:
            console.print(f"{group.policy} at {group.rate:g}/s failed: {group.fault}", markup=False)


def wide_console() -> Console:
    """Of stdout, which is as wide as its terminal, or has no end."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDE)


def _cell(value: float | None, column: Column) -> str:
    return NO_DATA if value is None else column.form.format(value)


Shown = tuple[str, list[str]]
"""A column as it is shown: its head, and its cells."""


def _evenly(shown: Sequence[Shown], width: int) -> list[list[Shown]]:
    """Columns in as few groups as `width` allows, none of them much narrower than the others."""
    fewest = len([*_fitting(shown, width)])
    tried = ([*_fitting(shown, narrower)] for narrower in range(1, max(1, width) + 1))
    return next(parts for parts in tried if len(parts) == fewest)


def _fitting(shown: Sequence[Shown], width: int) -> Iterator[list[Shown]]:
    """Columns in groups that fit `width`, heads broken between words."""
    part: list[Shown] = []
    used = 0
    for one in shown:
        needed = SPACE + _least(one)
        if part and used + needed > width:
            yield part
            part, used = [], 0
        part.append(one)
        used += needed
    yield part


def _least(one: Shown) -> int:
    """The width of a column whose head is broken wherever it can be."""
    head, cells = one
    return max(map(len, (*head.split(), *cells)))


def _widths(part: Sequence[Shown], width: int) -> list[int]:
    """Of each column; heads are given what room is left, those on the left first. (Left to itself rich gives some less
    than a cell needs, and cuts the last column off.)"""
    room = width - sum(SPACE + _least(one) for one in part)
    found = []
    for head, cells in part:
        least = _least((head, cells))
        more = max(0, min(len(head) - least, room))
        room -= more
        found.append(least + more)
    return found


def print_summary(result: Result) -> None:
    """The figures of one run that comparisons show, one below the other."""
    assert result.summary is not None
    shown = [
        (column.name, _cell(column.read(result), column), column.unit)
        for column in columns(Rule(result.setting.scenario.rule), [result])
    ]
    shown = [
        ("requests sent", str(result.summary.sent), ""),
        ("succeeded", str(result.summary.succeeded), ""),
        *shown,
    ]
    names, values, _ = (max(map(len, cells)) for cells in zip(*shown, strict=True))
    for name, value, unit in shown:
        click.echo(f"{name:{names}}  {value:>{values}} {unit}".rstrip())


def flatten(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` as `{"a.b": 1}`."""
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        name = f"{before}{key}"
        flat |= flatten(inner, f"{name}.") if isinstance(inner, dict) else {name: inner}
    return flat


def write_results(results: Sequence[Result], path: Path) -> list[Path]:
    """All figures of all runs: `path` with .csv (a row per run) and .json (the results whole)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for result in results:
        setting = result.setting
        head = {
            "scenario": setting.name,
            "policy": label((setting.policy, setting.params)),
            "rate": setting.rate,
            "seed": setting.seed,
            "requests": setting.requests,
            "fault": result.fault,
            "given_up": result.given_up,
            "note": result.note,
        }
        figures = {} if result.summary is None else msgspec.to_builtins(result.summary)
        rows.append({**head, **flatten(figures)})
    table, whole = path.with_suffix(".csv"), path.with_suffix(".json")
    names = list(dict.fromkeys(name for row in rows for name in row))
    with table.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, names)
        writer.writeheader()
        writer.writerows(rows)
    whole.write_bytes(msgspec.json.format(msgspec.json.encode(list(results)), indent=1))
    return [table, whole]


def say_written(paths: Sequence[Path]) -> None:
    click.echo(f"Wrote {', '.join(map(str, paths))}", err=True)


_REQUEST_COLUMNS = (
    "sent_s", "slo_class", "prompt_tokens", "output_tokens", "ttft_goal_s", "tpot_goal_s", "e2e_goal_s", "end",
    "ttft_s", "tpot_s", "jct_s", "preemptions", "cached_tokens", *Rule,
)  # fmt: skip


def write_requests(fates: Sequence[Fate], path: Path) -> None:
    """One row per request: what it asked for and what became of it. Times in seconds."""
    times = Times.of(fates)
    attained = times.attains()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(_REQUEST_COLUMNS)
        ttft_s, tpot_s, jct_s = times.ttft_s, times.tpot_s, times.jct_s
        for i, fate in enumerate(fates):
            arrival, goal = fate.arrival, fate.arrival.objective
            writer.writerow(
                [
                    arrival.at_s,
                    arrival.slo_class,
                    arrival.prompt_tokens,
                    len(fate.token_s),
                    goal.ttft_s,
                    goal.tpot_s,
                    goal.e2e_s,
                    fate.end.name.lower() if fate.end is not None else "",
                    *(
                        value if math.isfinite(value) else ""
                        for value in (ttft_s[i], tpot_s[i], jct_s[i])
                    ),
                    fate.preemptions,
                    fate.cached_tokens,
                    *(int(attained[rule][i]) for rule in Rule),
                ]  # fmt: skip
            )
