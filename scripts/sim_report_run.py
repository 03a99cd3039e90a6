"""Runs what the sections of a report ask for: every simulation once, side by side; searches beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from accelgen.scripts.sim_bars import Bars, schedules_of, side_by_side
from accelgen.simulator.capacity import Capacity, find_capacity
from accelgen.simulator.crew import Crew, CrewDied
from accelgen.simulator.experiment import Result, Setting, key_of
from accelgen.simulator.groups import Group
from accelgen.simulator.study import Ask, Found, Run, Scale, Search, Section


def find_all(
    crew: Crew, shown: Bars, sections: Sequence[Section], scale: Scale, rows: Mapping[str, Any]
) -> Found:
    """Everything that the sections want. Raises CrewError where something cannot be run at all (a trace is missing); a
    simulation that dies is a Result with a fault."""
    asks: list[Ask] = [ask for section in sections for ask in section.asks(scale)]
    shown.expect("report", None if any(isinstance(ask, Search) for ask in asks) else _count(asks))
    runs = list({_name(ask): ask for ask in asks if isinstance(ask, Run)}.values())
    searches = list({_name(ask): ask for ask in asks if isinstance(ask, Search)}.values())
    settings = {key_of(setting): setting for run in runs for setting in run.settings}

    # Simulations of grids first: they are known, so that no core waits. Each search waits for its own results, so
    # there are more searches under way than cores.
    results = dict(
        zip(
            settings,
            side_by_side(crew, lambda s: _one(crew, shown, s), list(settings.values()), crew.size),
            strict=True,
        )
    )
    capacities = side_by_side(crew, lambda s: _search(crew, shown, s), searches, 2 * crew.size)
    found = Found(scale, rows=rows)
    for run in runs:
        group = Group(run.arm, run.rate, [results[key_of(setting)] for setting in run.settings])
        found.runs[_key(run)] = group
    for search, one in zip(searches, capacities, strict=True):
        found.searches[search.workload, search.arm, search.wanted] = one
    return found


def _count(asks: Sequence[Ask]) -> int:
    settings = {key_of(setting): setting for ask in asks for setting in ask.settings}
    return sum(map(schedules_of, settings.values()))


def _name(ask: Ask) -> tuple[str, str, float]:
    return _key(ask) if isinstance(ask, Run) else (ask.workload, ask.arm, ask.wanted)


def _key(run: Run) -> tuple[str, str, float]:
    return run.workload, run.arm, run.rate


def _one(crew: Crew, shown: Bars, setting: Setting) -> Result:
    what = f"{setting.policy} on {setting.name} at {setting.rate:g}/s"
    with shown.one(what, schedules_of(setting)) as progress:
        try:
            return crew.run(setting, progress)
        except CrewDied as error:
            return Result(
                setting=setting, key=key_of(setting), sources={}, summary=None, fault=str(error)
            )


def _search(crew: Crew, shown: Bars, search: Search) -> tuple[Capacity, list[Result]]:
    runs: list[Result] = []

    def attained(rate: float) -> float:
        results = [_one(crew, shown, setting) for setting in search.at(rate)]
        runs.extend(results)
        return fmean(search.attained(result) for result in results)

    first = search.settings[0].rate
    found = find_capacity(attained, search.wanted, first, search.most, search.tolerance)
    return found, runs
