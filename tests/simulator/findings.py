"""Findings for tests of the report's sections: what every run would have come to."""

from __future__ import annotations

from functools import cache
from typing import Any

from msgspec import structs

from accelgen.simulator.capacity import Capacity
from accelgen.simulator.experiment import Result, Setting, run_setting
from accelgen.simulator.groups import Group
from accelgen.simulator.scenarios import find_scenario
from accelgen.simulator.shown import Cell, Table
from accelgen.simulator.studies import SECTIONS, scale_of
from accelgen.simulator.study import Found, Run, Scale, Section
from accelgen.simulator.times import Rule

SMALL = scale_of("small", stand_ins=True)


@cache
def measured() -> Result:
    """One real run, with everything in it."""
    scenario = find_scenario("accelgen_offline")
    return run_setting(
        Setting(name="x", scenario=scenario, policy="qoserve", rate=8.0, requests=6, stand_ins=True, detailed=True)
    )  # fmt: skip


def result(setting: Setting, fault: str = "", **figures: Any) -> Result:
    """The measured run as the outcome of another setting, with some figures of its summary changed."""
    summary = measured().summary
    assert summary is not None
    for name, value in figures.items():
        if name == "attained":
            judged = structs.replace(summary.judged, attainment=dict.fromkeys(Rule, value))
            summary = structs.replace(summary, judged=judged)
        elif name == "goodput":
            summary = structs.replace(summary, goodput=dict.fromkeys(Rule, value))
        else:
            summary = structs.replace(summary, **{name: value})
    detail = measured().detail if setting.detailed and not fault else None
    return structs.replace(
        measured(), setting=setting, summary=None if fault else summary, fault=fault, detail=detail
    )


def found_by(section: Section, scale: Scale = SMALL, fault: str = "", **figures: Any) -> Found:
    """As if every run that the section asks for had come to the same."""
    found = Found(scale)
    for ask in section.asks(scale):
        results = [result(setting, fault, **figures) for setting in ask.settings]
        if isinstance(ask, Run):
            found.runs[ask.workload, ask.arm, ask.rate] = Group(ask.arm, ask.rate, results)
        else:
            capacity = Capacity(2.0, 2.2, [(2.0, 1.0), (2.2, 0.5)])
            found.searches[ask.workload, ask.arm, ask.wanted] = capacity, results
    return found


def section(name: str) -> Section:
    return next(section for section in SECTIONS if section.name == name)


def row_of(table: Table, *begin: str) -> dict[str, Cell]:
    [row] = [row for row in table.rows if tuple(cell.text for cell in row[: len(begin)]) == begin]
    return dict(zip(table.heads, row, strict=True))
