"""What a drafter is worth to slos-serve and to vllm: on the device as it was fitted here, and by the times that the
authors' own planner goes by (arXiv 2504.08784, public code)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from accelgen.simulator.device import SLOS_SERVE
from accelgen.simulator.published_slo import SLOS_SPECULATION
from accelgen.simulator.shown import Figure, Line, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_admission import (
    DRAFTER,
    ME,
    SPECULATED,
    WANTED,
    geometric,
    ratio,
)
from accelgen.simulator.study_admission_tables import beside, paper
from accelgen.simulator.times import Rule


@dataclass(frozen=True)
class World:
    """A device and a rule under a name, and the drafter there."""

    name: str
    changes: Mapping[str, Any]
    drafter: Mapping[str, Any]

    def arm(self, policy: str, drafts: bool) -> Arm:
        more = self.drafter if drafts else {}
        words = f"{policy}, drafting, {self.name}" if drafts else f"{policy}, {self.base}"
        return Arm(words, policy, changes={**self.changes, **more})

    @property
    def base(self) -> str:
        """Without the drafter: worlds that differ in that alone share these runs."""
        return "the authors' times" if self.changes else "here"


THEIRS = {
    "hardware": SLOS_SERVE,
    "tensor_parallel": 1,
    "kv_gb": 46,
    "rule": Rule.MEAN,
}
WORLDS = (
    World("here", {}, DRAFTER),
    World("the authors' times", THEIRS, DRAFTER),
    World("the authors' times, 0.8", THEIRS, {**DRAFTER, "acceptance": 0.8}),
)
"""0.6 and 0.8 are the acceptances in their code: of its planner, and of its experiments."""
OTHER = "vllm"
POLICIES = (ME, OTHER)


def _asks(scale: Scale) -> list[Ask]:
    found: list[Ask] = []
    for workload in SPECULATED:
        scenario = scale.scenario(workload)
        arms = [
            world.arm(policy, drafts)
            for world in WORLDS
            for policy in POLICIES
            for drafts in (False, True)
        ]
        found += [
            scale.search(workload, scenario, arm, WANTED)
            for arm in {arm.name: arm for arm in arms}.values()
        ]
    return found


def _rate(found: Found, workload: str, world: World, policy: str, drafts: bool) -> float | None:
    capacity = found.capacity(workload, world.arm(policy, drafts).name, WANTED)
    return None if capacity is None else capacity.rate


def gain(found: Found, workload: str, world: World, policy: str = ME) -> float | None:
    """The capacity with the drafter to that without."""
    with_it, without = (_rate(found, workload, world, policy, drafts) for drafts in (True, False))
    return ratio(with_it, without)


def mean_gain(found: Found, world: World, policy: str = ME) -> float | None:
    return geometric(gain(found, workload, world, policy) for workload in SPECULATED)


def _table(found: Found) -> list[Table]:
    rows = []
    for world in WORLDS:
        for workload in SPECULATED:
            rates = [
                _rate(found, workload, world, policy, drafts)
                for policy in POLICIES
                for drafts in (False, True)
            ]
            if rates[1] is None:
                continue
            rows.append(
                [
                    text(world.name),
                    text(workload),
                    *(number(rate, "{:.3f}") for rate in rates),
                    beside(gain(found, workload, world), SLOS_SPECULATION),
                    paper(SLOS_SPECULATION),
                    number(gain(found, workload, world, OTHER), "{:.2f}×"),
                    number(ratio(rates[1], rates[3]), "{:.2f}×"),
                ]
            )
    heads = [
        "times and rule", "scenario", f"{ME}, req/s", "drafting, req/s", f"{OTHER}, req/s", "drafting, req/s",
        f"{ME}: drafting to not", "paper", f"{OTHER}: drafting to not", f"drafting: {ME} to {OTHER}",
    ]  # fmt: skip
    note = (
        f"A drafter of which each token is accepted with probability {DRAFTER['acceptance']:g} (or as said), those"
        f" before it being right, at most {DRAFTER['max_draft_tokens']} in an iteration, {DRAFTER['draft_ms']:g} ms for"
        " each step: what the authors' code has for OPT-125M beside OPT-13B. Here: the device as fitted here, every"
        " token must keep its cumulative deadline. The authors' times: 31.7 ms per iteration and 0.072 ms per token,"
        " and the mean time per token counts, which of our rules is the nearest to theirs (every 20th token, with a"
        f" tolerance of 5 %). {OTHER} drafts what the engine finds worth its time. The paper has no drafter for its"
        " other two scenarios."
    )
    return [
        Table(
            "speculation", "With a drafter and without", heads, rows, found.made(*SPECULATED), note
        )
    ]


def _draw(found: Found) -> list[Figure]:
    names = [one.removeprefix("slos_") for one in SPECULATED]
    panels = []
    for policy in POLICIES:
        series = [
            Series(world.name, names, [gain(found, one, world, policy) for one in SPECULATED])
            for world in WORLDS
        ]
        marks = [Line("x", 1.0, "the same")]
        if policy == ME:
            marks.append(Line("x", SLOS_SPECULATION.low, f"the paper's, {SLOS_SPECULATION.low:g}"))
        panels.append(
            Panel(
                policy, "times, with a drafter to without", "scenario", series, "bars", lines=marks
            )
        )
    title = f"Capacity at {WANTED:.0%}, with a drafter to without"
    return [Figure("speculation", title, panels, found.made(*SPECULATED))]


def _say(found: Found) -> list[str]:
    words = []
    for world in WORLDS:
        mine, other = mean_gain(found, world), mean_gain(found, world, OTHER)
        if mine is not None:
            theirs = "" if other is None else f" ({OTHER}: {other:.2f})"
            words.append(f"{mine:.2f}{theirs} {world.name}")
    said = (
        f"With a drafter {ME} has this many times the capacity that it has without, geometric mean of the scenarios:"
        f" {'; '.join(words)} (the paper: {SLOS_SPECULATION.low:g})."
        if words
        else ""
    )
    return [*filter(None, [said]), *faults(found, *SPECULATED)]


SECTION = Section(
    name="speculation",
    title="What a drafter is worth",
    about=f"SLOs-Serve's four scenarios with a drafter: the highest rate at which {WANTED:.0%} attain, with it and"
    " without. Drafts make room where an iteration's fixed time is long beside what is due in it: how much does their"
    " worth depend on the device, and on the rule?",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
    published=(SLOS_SPECULATION,),
)
