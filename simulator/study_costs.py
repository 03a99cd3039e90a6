"""What the scheduler and the simulator themselves cost: processor time of decisions in this report's runs, and what the
benchmarks measured, if their results are given."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from accelgen.simulator.groups import figure_of
from accelgen.simulator.published import ACCELGEN
from accelgen.simulator.shown import NONE, Cell, Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Ask, Found, Scale, Section
from accelgen.simulator.study_ratios import ARMS

WORKLOAD = "accelgen"
SPEED = 100_000
"""Scheduled request-iterations per second and core that `sarathi` is wanted to reach."""
HOW = (
    "No results of benchmarks were given (--rows). To benchmarks/results write: python benchmarks/decisions.py --write"
    " (decisions), make bench (the simulator's speed), python benchmarks/simulator_truth.py (its truth)."
)
_SIMULATOR = re.compile(r"test_simulator\[(.+)\]$")


def _asks(scale: Scale) -> list[Ask]:
    """The highest rate of AccelGen's setting, which is run anyway."""
    scenario = scale.scenario(WORKLOAD)
    return scale.grid(WORKLOAD, scenario, ARMS, scenario.rates[-1:])


def _measured(found: Found) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Of `make bench`: file, name of the benchmark, figures."""
    for file, content in found.rows.items():
        results = content.get("results") if isinstance(content, dict) else None
        if isinstance(results, dict):
            for name, figures in results.items():
                if isinstance(figures, dict):
                    yield file, name, figures


def _known(figures: dict[str, Any], name: str) -> float | None:
    """A number of a file that anybody may have written."""
    value = figures.get(name)
    return value if isinstance(value, int | float) else None


def _own(found: Found) -> Table:
    rates = found.rates(WORKLOAD)
    rows = []
    for arm in found.arms(WORKLOAD) if rates else []:
        group = found.group(WORKLOAD, arm, rates[-1])
        speeds = [
            r.summary.machine.entries / r.wall_s
            for r in group.results
            if r.summary is not None and r.wall_s
        ]
        rows.append(
            [
                text(arm, "fault" if group.fault else ""),
                number(group.mean(figure_of("decisions.each_s.p50")), "{:.3f}", 1000),
                number(group.mean(figure_of("decisions.each_s.p99")), "{:.3f}", 1000),
                number(group.mean(figure_of("decisions.share_of_jct")), "{:.4f}", 100),
                number(sum(speeds) / len(speeds) if speeds else None, "{:,.0f}"),
            ]
        )
    said = next(one for one in ACCELGEN if one.what == "scheduler time")
    heads = [
        "policy",
        "decision p50 ms",
        "p99 ms",
        "share of JCT %",
        "request-iterations per second, loading included",
    ]
    rate = f" at {rates[-1]:g} requests/s" if rates else ""
    note = (
        f"Processor time of a decision: view, policy, projection. The paper: {said.said} [{said.evidence}]. These are"
        " the only figures here that do not repeat: other simulations ran beside them."
    )
    title = f"Decisions in the runs of {WORKLOAD}{rate}"
    return Table("costs-own", title, heads, rows, found.made(WORKLOAD), note)


def _rows_of(found: Found, *needed: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """File and row of all lists of rows that have these fields."""
    for file, content in found.rows.items():
        rows = content.get("rows") if isinstance(content, dict) else None
        for row in rows if isinstance(rows, list) else []:
            if isinstance(row, dict) and all(name in row for name in needed):
                yield file, row


def _decisions(found: Found) -> Table:
    rows = []
    for file, row in _rows_of(found, "policy", "waiting", "p99_ms", "budget_ms"):
        p99, budget = _known(row, "p99_ms"), _known(row, "budget_ms")
        kept: Cell = NONE
        if budget is not None and p99 is not None:
            kept = text("kept") if p99 <= budget else text("missed", "short")
        figures = [number(_known(row, name), "{:.2f}") for name in ("p50_ms", "p99_ms")]
        waiting = number(_known(row, "waiting"), "{:,.0f}")
        rows.append(
            [text(str(row["policy"])), waiting, *figures, number(budget, "{:g}"), kept, text(file)]
        )
    heads = ["policy", "waiting", "p50 ms", "p99 ms", "budget of p99 ms", "", "file"]
    note = (
        "Processor time of a whole plan of a full server: 256 requests run beside those that wait."
    )
    return Table(
        "costs-decisions", "A decision, measured", heads, rows, "benchmarks/decisions.py", note
    )


def _speeds(found: Found) -> Table:
    rows = []
    for file, name, figures in _measured(found):
        match = _SIMULATOR.search(name)
        rate = _known(figures, "entries_per_cpu_s")
        if match is None or rate is None:
            continue
        verdict = NONE
        if match[1].startswith("sarathi"):
            verdict = text("kept") if rate >= SPEED else text(f"missed: {SPEED:,} wanted", "short")
        rows.append(
            [
                text(match[1]),
                number(rate, "{:,.0f}"),
                number(_known(figures, "entries_per_step"), "{:.1f}"),
                verdict,
                text(file),
            ]
        )
    heads = [
        "policy",
        "request-iterations per second of processor time",
        "per iteration",
        "",
        "file",
    ]
    return Table("costs-simulator", "The simulator's speed, measured", heads, rows, "make bench")


def _truth(found: Found) -> Table:
    rows = []
    for file, row in _rows_of(found, "figure", "mean_error"):
        errors = [
            number(_known(row, name), "{:+.1f} %", 100) for name in ("mean_error", "p99_error")
        ]
        host = number(_known(row, "host_s"), "{:.2f}", 1000)
        which = text(str(row.get("requests", "")))
        rows.append([text(str(row["figure"])), which, host, *errors, text(file)])
    heads = ["figure", "requests", "host time ms", "error of the mean", "of the p99", "file"]
    made = "benchmarks/simulator_truth.py"
    return Table("costs-truth", "The simulator beside measured requests", heads, rows, made)


def _tabulate(found: Found) -> list[Table]:
    measured = [_decisions(found), _speeds(found), _truth(found)]
    return [_own(found), *(table for table in measured if table.rows)]


def _draw(found: Found) -> list[Figure]:
    panels = []
    for title, unit, path, factor in (
        ("Decision, 99th percentile", "ms of processor time", "decisions.each_s.p99", 1000),
        ("Scheduler time", "% of the JCT of all requests", "decisions.share_of_jct", 100),
    ):
        rates, arms = found.rates(WORKLOAD)[-1:], found.arms(WORKLOAD)
        means = [found.mean(WORKLOAD, arm, rate, figure_of(path)) for rate in rates for arm in arms]
        bars = Series(title, arms, [_times(mean, factor) for mean in means])
        panels.append(Panel(title, unit, "policy", [bars] if means else [], "bars"))
    return [Figure("costs", "What decisions cost", panels, found.made(WORKLOAD))]


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else factor * value


def _say(found: Found) -> list[str]:
    dated = [
        f"{file} ({content['date']})"
        for file, content in found.rows.items()
        if isinstance(content, dict) and "date" in content
    ]
    return [f"Measured results: {', '.join(sorted(dated))}."] if dated else [HOW]


SECTION = Section(
    name="costs",
    title="Speed and costs",
    about="What a decision takes, what share that is of a request's life, how fast and how true the simulator is.",
    asks=_asks,
    tabulate=_tabulate,
    draw=_draw,
    say=_say,
)
