"""accelgen beside the systems of its paper and beside itself without each part: ratios and losses, and the paper's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

from accelgen.simulator.experiment import Result
from accelgen.simulator.groups import Read, figure_of
from accelgen.simulator.published import ABLATIONS, ACCELGEN
from accelgen.simulator.shown import (
    NONE,
    Band,
    Cell,
    Figure,
    Line,
    Panel,
    Published,
    Series,
    Table,
    number,
    text,
)
from accelgen.simulator.study import Arm, Found
from accelgen.simulator.times import Rule

BASELINES = ("orca", "vllm", "fastgen", "sarathi", "fastserve")
"""Those that the paper compares with."""
NEWER = ("edf", "srpf", "qoserve", "slidingserve", "slos-serve")
OWN = ("accelgen", "accelgen-calibrated", "accelgen-adaptive", "accelgen-plus")
WITHOUT = ("accelgen-no-chunking", "accelgen-no-ordering", "accelgen-no-batching")
WHOLE = tuple(map(Arm.of, (*BASELINES, *NEWER, *OWN)))
ARMS = (*WHOLE, *map(Arm.of, WITHOUT))
ME = "accelgen"
GAP = Rule.EVERY_GAP


@dataclass(frozen=True)
class Measure:
    """A figure in which two policies are compared: `of` ours and theirs gives what the paper gives."""

    name: str
    read: Read
    of: Callable[[float, float], float | None]
    form: str = "{:.2f}×"


def times_of(ours: float, theirs: float) -> float | None:
    """Infinite if they have nothing and we have something; None if neither has."""
    return ours / theirs if theirs > 0 else inf if ours > 0 else None


def lower(ours: float, theirs: float) -> float | None:
    return times_of(theirs, ours)


def points(ours: float, theirs: float) -> float:
    return 100 * (ours - theirs)


def end_to_end(result: Result) -> float | None:
    """Share of the requests with a completion time that kept it; None where there are none."""
    assert result.summary is not None
    parts = [part.name for part in result.setting.scenario.parts if part.e2e is not None]
    judged = [result.summary.by_class[name] for name in parts if name in result.summary.by_class]
    sent = sum(one.sent for one in judged)
    return sum(one.e2e * one.sent for one in judged) / sent if sent else None


ATTAINED = figure_of(f"judged.attainment.{GAP}")
GOODPUT = figure_of(f"goodput.{GAP}")
TOKENS = figure_of("token_throughput")
MEASURES = (
    Measure("goodput", GOODPUT, times_of),
    Measure("token throughput", TOKENS, times_of),
    Measure("request throughput", figure_of("request_throughput"), times_of),
    Measure("mean JCT", figure_of("latency.jct_s.mean"), lower),
    Measure("attainment", ATTAINED, points, "{:+.1f} points"),
    Measure("JCT attainment", end_to_end, points, "{:+.1f} points"),
    Measure(
        "compute utilisation", figure_of("machine.compute_utilisation"), points, "{:+.1f} points"
    ),
    Measure("unallocated KV", figure_of("machine.kv_utilisation"), points, "{:+.1f} points"),
)


def ratios(found: Found, workload: str, rates: Sequence[float]) -> Table:
    rows = []
    for rate in rates:
        for measure in MEASURES:
            said = next(one for one in ACCELGEN if one.what == measure.name)
            against = {arm: compared(found, workload, rate, measure, arm) for arm in BASELINES}
            if any(value is not None for value in against.values()):
                rows.append(_ratio_row(rate, measure, said, against))
    heads = ["figure", "req/s", *BASELINES, "paper", "beside the paper"]
    title = f"{workload}: accelgen against each of the paper's baselines"
    note = (
        "Ratios: accelgen's figure divided by the baseline's (JCT: the other way round, so that more is better)."
        " Points: accelgen's share minus the baseline's. Marked: less than the lower end of the paper's range. The"
        " rates are that of accelgen's highest goodput, and the highest; all others are in the data of the figures."
    )
    return Table(f"{workload}-ratios", title, heads, rows, found.made(workload), note)


def compared(found: Found, workload: str, rate: float, measure: Measure, arm: str) -> float | None:
    """accelgen against another policy."""
    ours = found.mean(workload, ME, rate, measure.read)
    theirs = found.mean(workload, arm, rate, measure.read)
    return None if ours is None or theirs is None else measure.of(ours, theirs)


def reached(found: Found, workload: str, rate: float) -> str:
    """Against whom the lower end of the paper's ranges is reached, in a sentence; "" without results."""
    words = []
    for measure in MEASURES[:5]:
        said = next(one for one in ACCELGEN if one.what == measure.name)
        against = {arm: compared(found, workload, rate, measure, arm) for arm in BASELINES}
        known = {arm: value for arm, value in against.items() if value is not None}
        good = [arm for arm, value in known.items() if value >= said.low]
        if known:
            words.append(f"{measure.name} against {', '.join(good) or 'none'} of {len(known)}")
    return f"The paper's ranges at {rate:g} req/s, reached in {'; '.join(words)}." if words else ""


def _ratio_row(
    rate: float, measure: Measure, said: Published, against: dict[str, float | None]
) -> list[Cell]:
    cells, short = [], []
    for arm, value in against.items():
        is_short = value is not None and value < said.low
        short += [arm] if is_short else []
        cells.append(number(value, measure.form, mark="short" if is_short else ""))
    known = [value for value in against.values() if value is not None]
    if short:
        verdict = text(f"short of it against {', '.join(short)}", "short")
    elif max(known) > said.high:
        verdict = text("reached, and beyond its upper end")
    else:
        verdict = text("reached")
    paper = text(f"{said.low:g} to {said.high:g} [{said.evidence}]")
    return [text(measure.name), number(rate, "{:g}"), *cells, paper, verdict]


def ablations(found: Found, workload: str, rates: Sequence[float]) -> Table:
    rows = []
    measures = [
        measure
        for measure in MEASURES
        if measure.name in ("goodput", "token throughput", "attainment")
    ]
    for rate in rates:
        for arm in WITHOUT:
            for measure in measures:
                whole = found.mean(workload, ME, rate, measure.read)
                part = found.mean(workload, arm, rate, measure.read)
                if whole is None or part is None:
                    continue
                loss = 100 * (part / whole - 1) if whole > 0 else None
                said = ABLATIONS.get((arm, measure.name))
                paper, beside = NONE, NONE
                if said is not None:
                    paper = text(f"{said.low:+g} % [{said.evidence}]")
                if said is not None and loss is not None:
                    beside = _beside(loss, said)
                found_loss = number(loss, "{:+.0f} %", mark=beside.mark)
                rows.append(
                    [text(arm), number(rate, "{:g}"), text(measure.name), found_loss, paper, beside]
                )
    heads = ["policy", "req/s", "figure", "against accelgen", "paper", "beside the paper"]
    title = f"{workload}: what accelgen loses without each of its parts"
    note = "Change of the figure relative to accelgen's; the paper does not say at which rate its losses were measured."
    return Table(f"{workload}-ablations", title, heads, rows, found.made(workload), note)


def _beside(loss: float, said: Published) -> Cell:
    """A loss, negative, in words beside the paper's."""
    if loss > 0:
        return text("gains, where the paper's loses", "short")
    if loss > said.high:
        return text("loses less than in the paper", "short")
    return text("loses as much, or more")


def ratio_figure(found: Found, workload: str) -> Figure:
    panels = []
    for measure in MEASURES[:4]:
        said = next(one for one in ACCELGEN if one.what == measure.name)
        lines = []
        for arm in BASELINES:
            rates = found.rates(workload)
            values = [compared(found, workload, rate, measure, arm) for rate in rates]
            values = [value if value is not None and 0 < value < inf else None for value in values]
            lines.append(Series(arm, rates, values))
        band = Band(said.low, said.high, "the paper's range")
        title = f"{measure.name} (paper: {said.low:g} to {said.high:g})"
        one = Line("y", 1.0, "the same")
        panels.append(
            Panel(
                title,
                "requests/s sent",
                "times better",
                lines,
                "lines",
                "log",
                "log",
                [one],
                [band],
            )
        )
    return Figure(
        f"{workload}-ratios",
        f"{workload}: accelgen against each baseline, and the paper's ranges",
        panels,
        found.made(workload),
    )
