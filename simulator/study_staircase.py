"""QoServe's staircase: what each of its parts adds."""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.simulator.detail import Requests
from accelgen.simulator.groups import figure_of, words_of
from accelgen.simulator.published import STAIRCASE, STAIRCASE_CAPACITY, STAIRCASE_VIOLATIONS
from accelgen.simulator.shown import Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_details import requests_of, share
from accelgen.simulator.study_field import note_of
from accelgen.simulator.times import Rule

WANTED = 0.99
STEPS = (
    Arm("EDF", "edf", {"chunk_size": 256}),
    Arm("+ dynamic chunking", "qoserve", {"alpha_s": 0.0, "relegation": False}),
    Arm("+ relegation", "qoserve", {"alpha_s": 0.0}),
    Arm("+ hybrid priority", "qoserve"),
)
STAIRS = "three_class"
_NOTE = (
    "QoServe's code gives the next token one TBT more than its paper does, and uses up the slack that an early first"
    " token has earned: a long answer that it keeps in time by its own count ends late by up to one TBT by the paper's,"
    " which counts here. The last columns say how many of the violations are of this kind."
)
PUBLISHED_RATE = 6.0  # requests/s, at which the paper counts violations
OVERLOADS = (PUBLISHED_RATE, 10.0)  # [ours] this device is faster than the paper's system


def _asks(scale: Scale) -> list[Ask]:
    scenario = scale.scenario(STAIRS)
    searches: list[Ask] = [scale.search("staircase", scenario, arm, WANTED) for arm in STEPS]
    return [*searches, *scale.grid("staircase", scenario, STEPS, OVERLOADS, detailed=True)]


def violations(found: Found, arm: str, rate: float) -> float | None:
    """Percent of the requests."""
    attained = found.mean("staircase", arm, rate, figure_of(f"judged.attainment.{Rule.CUMULATIVE}"))
    return None if attained is None else 100 * (1 - attained)


def nearly(found: Found, arm: str, rate: float) -> float | None:
    """Share of the violations that are tokens behind their deadline by no more than one TPOT objective."""

    def missed(one: Requests, i: int) -> bool:
        return not one.attained[i]

    def is_near(one: Requests, i: int) -> bool:
        behind = one.behind[i]
        return one.met_ttft[i] and behind is not None and 0 < behind <= 1

    return share(requests_of(found, "staircase", arm, rate), is_near, missed)


def _table(found: Found) -> list[Table]:
    rows = []
    for i, arm in enumerate(STEPS):
        capacity = found.capacity("staircase", arm.name, WANTED)
        before = found.capacity("staircase", STEPS[max(0, i - 1)].name, WANTED)
        step = capacity.rate / before.rate if capacity and before and before.rate else None
        said = STAIRCASE_CAPACITY[i] / STAIRCASE_CAPACITY[max(0, i - 1)]
        rows.append(
            [
                text(arm.name),
                text(words_of(arm.policy, dict(arm.params))),
                number(None if capacity is None else capacity.rate),
                number(STAIRCASE_CAPACITY[i]),
                number(step if i else None, "×{:.2f}"),
                number(said if i else None, "×{:.2f}"),
                *(number(violations(found, arm.name, rate), "{:.1f}") for rate in OVERLOADS),
                number(STAIRCASE_VIOLATIONS[i], "{:.0f}"),
                *(number(nearly(found, arm.name, rate), "{:.0f}", 100) for rate in OVERLOADS),
            ]
        )
    heads = [
        "step", "policy", "capacity at 99 %, req/s", "paper", "over the step before", "paper",
        *(f"violations at {rate:g} req/s, %" for rate in OVERLOADS), f"paper, at {PUBLISHED_RATE:g} req/s",
        *(f"of those at {rate:g}, behind by no more than one TBT, %" for rate in OVERLOADS),
    ]  # fmt: skip
    return [
        Table(
            "staircase",
            "Each part added to the one before",
            heads,
            rows,
            found.made("staircase"),
            f"{note_of(found, 'staircase')} {_NOTE}",
        )
    ]


def _draw(found: Found) -> list[Figure]:
    names = [arm.name for arm in STEPS]
    capacities = [found.capacity("staircase", name, WANTED) for name in names]
    rates = [None if capacity is None else capacity.rate for capacity in capacities]

    def panel(title: str, unit: str, ours: list[float | None], theirs: Sequence[float]) -> Panel:
        series = [Series("here", names, ours), Series("paper", names, list(theirs))]
        return Panel(title, unit, "step", series, "bars")

    panels = [
        panel("Capacity at 99 %", "requests/s", rates, STAIRCASE_CAPACITY),
        *(
            panel(f"Violations at {rate:g} requests/s (paper: at {PUBLISHED_RATE:g})", "% of requests",
                  [violations(found, name, rate) for name in names], STAIRCASE_VIOLATIONS)
            for rate in OVERLOADS
        ),
    ]  # fmt: skip
    return [
        Figure(
            "staircase",
            "QoServe's staircase, here and in its paper",
            panels,
            found.made("staircase"),
        )
    ]


def _say(found: Found) -> list[str]:
    capacities = [found.capacity("staircase", arm.name, WANTED) for arm in STEPS]
    said = []
    rates = [capacity.rate for capacity in capacities if capacity is not None]
    if len(rates) == len(STEPS):
        down = [STEPS[i].name for i in range(1, len(rates)) if rates[i] < rates[i - 1]]
        shape = f"it falls at: {', '.join(down)}" if down else "no step falls, as in the paper"
        said.append(f"Capacity from {rates[0]:.2f} to {rates[-1]:.2f} req/s; {shape}.")
    for rate in OVERLOADS:
        known = [violations(found, arm.name, rate) for arm in STEPS]
        missed = [value for value in known if value is not None]
        if len(missed) == len(STEPS):
            up = [STEPS[i].name for i in range(1, len(missed)) if missed[i] > missed[i - 1]]
            shape = (
                f"more are missed with: {', '.join(up)}"
                if up
                else "with no step more, as in the paper"
            )
            each = ", ".join(f"{value:.1f}" for value in missed)
            said.append(f"Violations at {rate:g} req/s, step by step: {each} %; {shape}.")
    return [*said, *faults(found, "staircase")]


SECTION = Section(
    name="staircase",
    title="QoServe's staircase",
    about="QoServe's ablation on its three tiers over Azure's code completion: earliest deadline first with chunks of"
    " 256 tokens, then with dynamic chunking, relegation, and hybrid priority. The paper's own predictor and device"
    " differ: the shape is to be compared.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
    published=STAIRCASE,
)
