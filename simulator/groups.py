"""Results that belong together: one policy at one rate, over all seeds; and how figures are read from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from accelgen.simulator.experiment import ORACLE, Result

SEARCHED = "oracle (searched)"
Read = Callable[[Result], float | None]


@dataclass(frozen=True)
class Group:
    """The results of one policy at one rate, over all seeds."""

    policy: str
    rate: float
    results: list[Result] = field(default_factory=list)

    @property
    def fault(self) -> str:
        """What went wrong in any of them, in words."""
        return next((result.fault for result in self.results if result.fault), "")

    def values(self, read: Read) -> list[float]:
        found = [read(result) for result in self.results if result.summary is not None]
        return [value for value in found if value is not None and math.isfinite(value)]

    def mean(self, read: Read) -> float | None:
        """Over the seeds; None without data."""
        values = self.values(read)
        return fmean(values) if values else None


def figure_of(path: str) -> Read:
    """Reads `latency.ttft_s.p99` and the like from a result's summary."""
    parts = path.split(".")

    def read(result: Result) -> float | None:
        value: Any = result.summary
        for part in parts:
            value = value[part] if isinstance(value, dict) else getattr(value, part, None)
        return value  # type: ignore[no-any-return]

    return read


def words_of(policy: str, params: dict[str, Any]) -> str:
    """A policy with its parameters, as it is written on the command line; what a search has found is called that."""
    if policy == ORACLE:
        return SEARCHED
    return ":".join([policy, *(f"{key}={value}" for key, value in params.items())])


def groups_of(results: Iterable[Result]) -> list[Group]:
    """By policy and rate, in the order in which they come."""
    found: dict[tuple[str, float], Group] = {}
    for result in results:
        setting = result.setting
        name = words_of(setting.policy, setting.params)
        group = found.setdefault((name, setting.rate), Group(name, setting.rate))
        group.results.append(result)
    return [*found.values()]
