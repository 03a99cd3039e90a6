"""The sections of the report, in their order. A new one is a `Section` here."""

from __future__ import annotations

from accelgen.simulator import (
    study_adaptive,
    study_budget,
    study_cacheopt,
    study_costs,
    study_field,
    study_lengths,
    study_long,
    study_oracle,
    study_relegation,
    study_setting,
    study_slack,
    study_slos,
    study_speculation,
    study_staircase,
)
from accelgen.simulator.study import Scale, Section

SECTIONS: tuple[Section, ...] = (
    *study_setting.SECTIONS,
    study_oracle.SECTION,
    study_field.SECTION,
    study_cacheopt.SECTION,
    study_slos.SECTION,
    study_speculation.SECTION,
    study_staircase.SECTION,
    study_adaptive.SECTION,
    study_budget.SECTION,
    study_slack.SECTION,
    study_long.SECTION,
    study_relegation.SECTION,
    study_lengths.SECTION,
    study_costs.SECTION,
)

SCALES = ("small", "paper")
SMALL = {
    "": 60,
    "azure2023_code": 200,
    "accelgen_long": 20,
    "three_class": 200,
    "three_class_conv": 100,
    "cacheopt": 200,  # with fewer, KV is not short
    "slos_reasoning": 200,  # the first dozen comes at once
}
"""Requests per run, by scenario: the whole report in some minutes on two cores. Too few for figures to be quoted."""


def scale_of(name: str, stand_ins: bool) -> Scale:
    """`paper`: requests, rates and seeds as frozen."""
    if name == "small":
        return Scale(name, stand_ins, SMALL, seeds=1, rates=4, tolerance=0.15)
    assert name == "paper", name
    return Scale(name, stand_ins)
