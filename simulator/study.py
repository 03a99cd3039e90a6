"""What a report consists of, as values: sections that say which simulations they want, and make tables, figures and
sentences of what those found.

A section is one entry of `studies.SECTIONS`. Everything it shows is computed from results; what a paper says is a
`Published` with its source."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from msgspec import structs

from accelgen.simulator.capacity import Capacity
from accelgen.simulator.experiment import Result, Setting
from accelgen.simulator.groups import Group, Read
from accelgen.simulator.scenarios import SYNTHETIC, Scenario, find_scenario
from accelgen.simulator.settings import enough_for, middle_rate, most_rate, setting_of
from accelgen.simulator.shown import Figure, Published, Series, Table
from accelgen.simulator.synthetic import STAND_INS

# --- what is run ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A policy under the name that it has in tables and figures; `replicas` more than 1 only where it needs them.
    `changes`: fields of the scenario that are the arm's own (memory policy, what becomes of a victim's KV)."""

    name: str
    policy: str
    params: Mapping[str, Any] = field(default_factory=dict)
    replicas: int = 1
    length_error: float | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, policy: str, **params: Any) -> Arm:
        return cls(policy, policy, params)


@dataclass(frozen=True)
class Run:
    """A policy on a workload at a rate, once with each seed."""

    workload: str
    arm: str
    rate: float
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class Search:
    """The highest rate at which a share `wanted` of the requests attains, or, with `sessions`, of the sessions.
    `settings` at the rate to begin with, one per seed; of all devices together where an arm has more than one."""

    workload: str
    arm: str
    wanted: float
    settings: tuple[Setting, ...]
    most: float
    tolerance: float
    sessions: bool = False

    def at(self, rate: float) -> list[Setting]:
        return [structs.replace(setting, rate=rate) for setting in self.settings]

    def attained(self, result: Result) -> float:
        """What counts for the search of a run of it."""
        rule = result.setting.scenario.rule
        return result.sessions_attained(rule) if self.sessions else result.attainment(rule)


Ask = Run | Search


@dataclass(frozen=True)
class Scale:
    """How much is simulated. `requests`: at most so many per run, by scenario ("": of all others); None: as frozen.
    `seeds`: at most so many. `rates`: at most so many of a scenario's, evenly taken, both ends included."""

    name: str
    stand_ins: bool
    requests: Mapping[str, int] | None = None
    seeds: int = 1_000_000
    rates: int = 1_000_000
    tolerance: float = 0.02

    def scenario(self, name: str, **changes: Any) -> Scenario:
        """A frozen scenario, cut to this scale, with `changes` made."""
        found = find_scenario(name)
        if self.requests is not None:
            most = self.requests.get(name, self.requests.get("", found.requests))
            changes = {"requests": min(most, found.requests), **changes}
        return structs.replace(found, seeds=found.seeds[: self.seeds], **changes)

    def pick(self, rates: Sequence[float]) -> list[float]:
        """Some of `rates`."""
        if len(rates) <= self.rates:
            return list(rates)
        steps = max(1, self.rates - 1)
        return [rates[round(i * (len(rates) - 1) / steps)] for i in range(steps + 1)]

    def run(
        self, workload: str, scenario: Scenario, arm: Arm, rate: float, detailed: bool = False
    ) -> Run:
        settings = self._settings(workload, scenario, arm, rate, detailed=detailed)
        return Run(workload, arm.name, rate, settings)

    def grid(self, workload: str, scenario: Scenario, arms: Iterable[Arm], rates: Iterable[float],
             detailed: bool = False) -> list[Ask]:  # fmt: skip
        rates = list(rates)
        return [self.run(workload, scenario, arm, rate, detailed) for arm in arms for rate in rates]

    def search(
        self, workload: str, scenario: Scenario, arm: Arm, wanted: float, sessions: bool = False
    ) -> Search:
        """With `sessions` no run is given up early: requests that miss may be many of few sessions."""
        first = middle_rate(scenario) * arm.replicas
        enough = 0.0 if sessions else enough_for(wanted, scenario)
        settings = self._settings(workload, scenario, arm, first, enough=enough)
        most, tolerance = most_rate(scenario), self.tolerance
        return Search(workload, arm.name, wanted, settings, most, tolerance, sessions)

    def _settings(
        self, workload: str, scenario: Scenario, arm: Arm, rate: float, **more: Any
    ) -> tuple[Setting, ...]:
        scenario = structs.replace(scenario, **arm.changes)
        if arm.replicas > 1:
            scenario = structs.replace(scenario, replicas=arm.replicas)
        policy, error = (arm.policy, dict(arm.params)), arm.length_error
        return tuple(
            setting_of(
                workload, scenario, policy, rate, seed, self.stand_ins, length_error=error, **more
            )
            for seed in scenario.seeds
        )


@dataclass
class Found:
    """What the simulations found. `rows`: other measurements by file name, as they are in the files."""

    scale: Scale
    runs: dict[tuple[str, str, float], Group] = field(default_factory=dict)
    searches: dict[tuple[str, str, float], tuple[Capacity, list[Result]]] = field(
        default_factory=dict
    )
    rows: Mapping[str, Any] = field(default_factory=dict)

    def group(self, workload: str, arm: str, rate: float) -> Group:
        """Empty where nothing was found."""
        return self.runs.get((workload, arm, rate)) or Group(arm, rate)

    def mean(self, workload: str, arm: str, rate: float, read: Read) -> float | None:
        return self.group(workload, arm, rate).mean(read)

    def capacity(self, workload: str, arm: str, wanted: float) -> Capacity | None:
        found = self.searches.get((workload, arm, wanted))
        return None if found is None else found[0]

    def rates(self, workload: str) -> list[float]:
        return sorted({rate for one, _, rate in self.runs if one == workload})

    def arms(self, workload: str) -> list[str]:
        """In the order in which they were asked for."""
        keys = [*self.runs, *self.searches]
        return list(dict.fromkeys(arm for one, arm, _ in keys if one == workload))

    def results(self, *workloads: str) -> list[Result]:
        """All that were used for these workloads."""
        found = [
            r for (one, _, _), group in self.runs.items() if one in workloads for r in group.results
        ]
        for (one, _, _), (_, results) in self.searches.items():
            found += results if one in workloads else []
        return found

    def made(self, *workloads: str) -> str:
        return made_of(self.results(*workloads))


@dataclass(frozen=True)
class Section:
    """A part of the report. `about` says what it asks; a new section is one of these in `studies.SECTIONS`."""

    name: str
    title: str
    about: str
    asks: Callable[[Scale], list[Ask]]
    tabulate: Callable[[Found], list[Table]]
    draw: Callable[[Found], list[Figure]] = lambda found: []
    say: Callable[[Found], list[str]] = lambda found: []
    published: tuple[Published, ...] = ()


# --- with what settings ----------------------------------------------------------------------------------------------


def made_of(results: Sequence[Result]) -> str:
    """The settings behind results, in words."""
    if not results:
        return "nothing was run"
    settings = [result.setting for result in results]
    devices = sorted({f"{s.scenario.model} on {s.scenario.hardware}" for s in settings})
    failed = sum(bool(result.fault) for result in results)
    given_up = sum(result.given_up for result in results)
    words = [
        f"{len(results)} runs",
        f"{_span({s.requests for s in settings})} requests each",
        f"seeds {', '.join(map(str, sorted({s.seed for s in settings})))}",
        f"rates {_span({s.rate for s in settings})} req/s",
        "; ".join(devices),
        _sources(results),
    ]
    halves = sorted({s.half for s in settings} - {"all"})
    words += [f"the {half} half of traces" for half in halves]
    words += [f"{failed} failed"] if failed else []
    words += (
        [f"{given_up} given up once the attainment wanted was out of reach"] if given_up else []
    )
    return ", ".join(words)


def _span(values: set[Any]) -> str:
    low, high = min(values), max(values)
    return f"{low:,.4g}" if low == high else f"{low:,.4g} to {high:,.4g}"


def _sources(results: Sequence[Result]) -> str:
    """Traces with their digests, and what stood in for which."""
    digests = {
        name: digest for result in results for name, digest in sorted(result.sources.items())
    }
    stand_ins = any(result.setting.stand_ins for result in results)
    made = {
        name for name in digests if name.startswith(SYNTHETIC) or (stand_ins and name in STAND_INS)
    }
    real = sorted(set(digests) - made)
    words = []
    if real:
        words.append("real traces " + " ".join(f"{name} ({digests[name][:8]})" for name in real))
    if made:
        words.append(
            "synthetic stand-ins " + " ".join(sorted(name.removeprefix(SYNTHETIC) for name in made))
        )
    return " and ".join(words) or "no trace read"


# --- shorthands ------------------------------------------------------------------------------------------------------


def sweep(
    found: Found, workload: str, arms: Sequence[str], read: Read, factor: float = 1.0
) -> list[Series]:
    """A line per arm over the rates."""
    lines = []
    for arm in arms:
        groups = [found.group(workload, arm, rate) for rate in found.rates(workload)]
        groups = [group for group in groups if group.values(read)]
        values = [[factor * value for value in group.values(read)] for group in groups]
        if groups:
            lines.append(
                Series(
                    arm,
                    [group.rate for group in groups],
                    [sum(one) / len(one) for one in values],
                    [min(one) for one in values],
                    [max(one) for one in values],
                )
            )
    return lines


def faults(found: Found, *workloads: str) -> list[str]:
    """A sentence for each run that failed."""
    said = []
    for result in found.results(*workloads):
        if result.fault:
            s = result.setting
            said.append(
                f"Failed: {s.policy} on {s.name} at {s.rate:g} req/s, seed {s.seed}: {result.fault}"
            )
    return list(dict.fromkeys(said))
