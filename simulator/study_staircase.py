"""QoServe's staircase: what each of its parts adds."""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.simulator.groups import figure_of, words_of
from accelgen.simulator.metrics import Rule
from accelgen.simulator.published import STAIRCASE, STAIRCASE_CAPACITY, STAIRCASE_VIOLATIONS
from accelgen.simulator.shown import Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_field import note_of

WANTED = 0.99
STEPS = (
    Arm("EDF", "edf", {"chunk_size": 256}),
    Arm("+ dynamic chunking", "qoserve", {"alpha_s": 0.0, "relegation": False}),
    Arm("+ relegation", "qoserve", {"alpha_s": 0.0}),
    Arm("+ hybrid priority", "qoserve"),
)
STAIRS = "three_class"
OVERLOAD = 6.0  # requests/s, as in the paper


def _asks(scale: Scale) -> list[Ask]:
    scenario = scale.scenario(STAIRS)
    searches: list[Ask] = [scale.search("staircase", scenario, arm, WANTED) for arm in STEPS]
    return [*searches, *scale.grid("staircase", scenario, STEPS, [OVERLOAD])]


def violations(found: Found, arm: str) -> float | None:
    """Percent of the requests at the overload rate."""
    attained = found.mean(
        "staircase", arm, OVERLOAD, figure_of(f"judged.attainment.{Rule.CUMULATIVE}")
    )
    return None if attained is None else 100 * (1 - attained)


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
                number(violations(found, arm.name), "{:.1f}"),
                number(STAIRCASE_VIOLATIONS[i], "{:.0f}"),
            ]
        )
    heads = [
        "step", "policy", "capacity at 99 %, req/s", "paper", "over the step before", "paper",
        f"violations at {OVERLOAD:g} req/s, %", "paper",
    ]  # fmt: skip
    return [
        Table(
            "staircase",
            "Each part added to the one before",
            heads,
            rows,
            found.made("staircase"),
            note_of(found, "staircase"),
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
        panel(f"Violations at {OVERLOAD:g} requests/s", "% of requests",
              [violations(found, name) for name in names], STAIRCASE_VIOLATIONS),
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
    missed = [violations(found, arm.name) for arm in STEPS]
    said = []
    rates = [capacity.rate for capacity in capacities if capacity is not None]
    if len(rates) == len(STEPS):
        down = [STEPS[i].name for i in range(1, len(rates)) if rates[i] < rates[i - 1]]
        shape = f"it falls at: {', '.join(down)}" if down else "no step falls, as in the paper"
        said.append(f"Capacity from {rates[0]:.2f} to {rates[-1]:.2f} req/s; {shape}.")
    known = [value for value in missed if value is not None]
    if len(known) == len(STEPS):
        up = [STEPS[i].name for i in range(1, len(known)) if known[i] > known[i - 1]]
        shape = (
            f"more are missed with: {', '.join(up)}"
            if up
            else "fewer with each step, as in the paper"
        )
        said.append(
            f"Violations at {OVERLOAD:g} req/s from {known[0]:.0f} % to {known[-1]:.0f} %; {shape}."
        )
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
