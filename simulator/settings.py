"""The simulations of a scenario, as the command line and the report both want them."""

from __future__ import annotations

from typing import Any

from accelgen.simulator.experiment import Setting
from accelgen.simulator.scenarios import Scenario

Policy = tuple[str, dict[str, Any]]
"""Its name and its parameters."""


def setting_of(
    name: str,
    scenario: Scenario,
    policy: Policy,
    rate: float,
    seed: int,
    stand_ins: bool,
    **more: Any,
) -> Setting:
    """One simulation of the scenario; `more`: other fields of the Setting."""
    return Setting(
        name=name,
        scenario=scenario,
        policy=policy[0],
        params=policy[1],
        rate=rate,
        requests=scenario.requests,
        seed=seed,
        half=scenario.part_of_trace,
        stand_ins=stand_ins,
        **more,
    )


def middle_rate(scenario: Scenario) -> float:
    """The rate at which a scenario is looked at if nobody names one, and at which a search for capacity begins."""
    return scenario.rates[len(scenario.rates) // 2]


def most_rate(scenario: Scenario) -> float:
    """Beyond this no search for capacity goes."""
    return 64 * scenario.rates[-1]


def enough_for(wanted: float, scenario: Scenario) -> float:
    """Below this attainment in one of the seeds the mean `wanted` is out of reach, however good the others: the run can
    end."""
    return max(0.0, 1 - len(scenario.seeds) * (1 - wanted))
