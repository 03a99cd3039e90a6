"""AccelGen's own setting: every policy over rates, ratios beside the paper's ranges, ablations beside its losses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf

from accelgen.simulator.experiment import Result
from accelgen.simulator.groups import Group, Read, figure_of
from accelgen.simulator.metrics import Rule
from accelgen.simulator.published import ABLATIONS, ACCELGEN
from accelgen.simulator.study import (
    NONE,
    Arm,
    Ask,
    Band,
    Cell,
    Figure,
    Found,
    Line,
    Panel,
    Published,
    Scale,
    Section,
    Series,
    Table,
    faults,
    number,
    sweep,
    text,
)

BASELINES = ("orca", "vllm", "fastgen", "sarathi", "fastserve")
"""Those that the paper compares with."""
NEWER = ("edf", "srpf", "qoserve", "slidingserve")
OWN = ("accelgen", "accelgen-calibrated", "accelgen-adaptive")
WITHOUT = ("accelgen-no-chunking", "accelgen-no-ordering", "accelgen-no-batching")
ME = "accelgen"
GAP = Rule.EVERY_GAP


@dataclass(frozen=True)
class Measure:
    """A figure in which two policies are compared: `of` ours and theirs gives what the paper gives."""

    name: str
    read: Read
    of: Callable[[float, float], float | None]
    form: str = "{:.2f}×"


def _times(ours: float, theirs: float) -> float | None:
    """Infinite if they have nothing and we have something; None if neither has."""
    return ours / theirs if theirs > 0 else inf if ours > 0 else None


def _lower(ours: float, theirs: float) -> float | None:
    return _times(theirs, ours)


def _points(ours: float, theirs: float) -> float:
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
    Measure("goodput", GOODPUT, _times),
    Measure("token throughput", TOKENS, _times),
    Measure("request throughput", figure_of("request_throughput"), _times),
    Measure("mean JCT", figure_of("latency.jct_s.mean"), _lower),
    Measure("attainment", ATTAINED, _points, "{:+.1f} points"),
    Measure("JCT attainment", end_to_end, _points, "{:+.1f} points"),
    Measure(
        "compute utilisation", figure_of("machine.compute_utilisation"), _points, "{:+.1f} points"
    ),
    Measure("unallocated KV", figure_of("machine.kv_utilisation"), _points, "{:+.1f} points"),
)


def best_rate(found: Found, workload: str, arm: str = ME) -> float | None:
    """Where the arm's goodput is highest."""
    means = {rate: found.mean(workload, arm, rate, GOODPUT) for rate in found.rates(workload)}
    known = {rate: value for rate, value in means.items() if value is not None}
    return max(known, key=lambda rate: known[rate]) if known else None


def looked_at(found: Found, workload: str) -> list[float]:
    """The rate of AccelGen's highest goodput, and the highest rate."""
    best = best_rate(found, workload)
    rates = found.rates(workload)
    return sorted({*([best] if best is not None else []), *rates[-1:]})


# --- tables ----------------------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Read, str, float], ...] = (
    ("goodput req/s", GOODPUT, "{:.3f}", 1),
    ("attained %", ATTAINED, "{:.1f}", 100),
    ("TTFT kept %", figure_of("judged.ttft"), "{:.1f}", 100),
    ("every gap kept %", figure_of(f"judged.tpot.{GAP}"), "{:.1f}", 100),
    ("tokens/s", TOKENS, "{:.0f}", 1),
    ("req/s", figure_of("request_throughput"), "{:.3f}", 1),
    ("JCT mean s", figure_of("latency.jct_s.mean"), "{:.1f}", 1),
    ("TTFT p99 s", figure_of("latency.ttft_s.p99"), "{:.1f}", 1),
    ("KV used %", figure_of("machine.kv_utilisation"), "{:.0f}", 100),
    ("compute %", figure_of("machine.compute_utilisation"), "{:.0f}", 100),
    ("preemptions", figure_of("machine.preemptions"), "{:.0f}", 1),
)


def _policies(found: Found, workload: str) -> list[Table]:
    tables = []
    for rate in looked_at(found, workload):
        groups = [found.group(workload, arm, rate) for arm in found.arms(workload)]
        best = max((group.mean(GOODPUT) or 0.0 for group in groups), default=0.0)
        heads = ["policy", *(head for head, *_ in _COLUMNS)]
        rows = [_policy_row(group, best) for group in groups if group.results]
        title = f"{workload}: every policy at {rate:g} requests/s"
        made = found.made(workload)
        tables.append(Table(f"{workload}-at-{rate:g}", title, heads, rows, made))
    return tables


def _policy_row(group: Group, best: float) -> list[Cell]:
    if group.fault and not group.values(GOODPUT):
        return [text(group.policy), text("failed", "fault"), *[NONE] * (len(_COLUMNS) - 1)]
    cells = [number(group.mean(read), form, factor) for _, read, form, factor in _COLUMNS]
    if best > 0 and group.mean(GOODPUT) == best:
        cells[0] = Cell(cells[0].text, cells[0].value, "best")
    name = group.policy + (" (a seed failed)" if group.fault else "")
    return [text(name, "fault" if group.fault else ""), *cells]


def _ratios(found: Found, workload: str) -> Table:
    rows = []
    for rate in looked_at(found, workload):
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


def _ablations(found: Found, workload: str) -> Table:
    rows = []
    measures = [
        measure
        for measure in MEASURES
        if measure.name in ("goodput", "token throughput", "attainment")
    ]
    for rate in looked_at(found, workload):
        for arm in WITHOUT:
            for measure in measures:
                whole = found.mean(workload, ME, rate, measure.read)
                part = found.mean(workload, arm, rate, measure.read)
                if whole is None or part is None:
                    continue
                loss = 100 * (part / whole - 1) if whole > 0 else None
                said = ABLATIONS.get((arm, measure.name))
                paper = NONE if said is None else text(f"{said.low:+g} % [{said.evidence}]")
                short = said is not None and (loss is None or loss > said.high)
                verdict = "loses less than in the paper" if short else "loses as much, or more"
                found_loss = number(loss, "{:+.0f} %", mark="short" if short else "")
                beside = NONE if said is None else text(verdict, "short" if short else "")
                rows.append(
                    [text(arm), number(rate, "{:g}"), text(measure.name), found_loss, paper, beside]
                )
    heads = ["policy", "req/s", "figure", "against accelgen", "paper", "beside the paper"]
    title = f"{workload}: what accelgen loses without each of its parts"
    note = "Change of the figure relative to accelgen's; the paper does not say at which rate its losses were measured."
    return Table(f"{workload}-ablations", title, heads, rows, found.made(workload), note)


# --- figures ------------------------------------------------------------------------------------------------------


def _figures(found: Found, workload: str) -> list[Figure]:
    whole = [arm for arm in found.arms(workload) if arm not in WITHOUT]
    parts = [ME, *(arm for arm in WITHOUT if arm in found.arms(workload))]
    made = found.made(workload)
    return [
        Figure(f"{workload}-sweep", f"{workload}: every policy over the rate", _panels(found, workload, whole), made),
        _ratio_figure(found, workload, made),
        Figure(
            f"{workload}-ablations", f"{workload}: without each part", _panels(found, workload, parts)[:4], made
        ),
    ]  # fmt: skip


def _panels(found: Found, workload: str, arms: list[str]) -> list[Panel]:
    def panel(title: str, unit: str, path: str, scale: str = "linear", factor: float = 1) -> Panel:
        series = sweep(found, workload, arms, figure_of(path), factor)
        return Panel(title, "requests/s sent", unit, series, x_scale="log", y_scale=scale)  # type: ignore[arg-type]

    return [
        panel("Goodput, every gap", "requests/s that attain", f"goodput.{GAP}"),
        panel(
            "Attainment, every gap", "% of requests sent", f"judged.attainment.{GAP}", factor=100
        ),
        panel("Throughput", "output tokens/s", "token_throughput"),
        panel("Job completion time, mean", "s", "latency.jct_s.mean", "log"),
        panel("Time to first token, 99th percentile", "s", "latency.ttft_s.p99", "log"),
        panel("Time per output token, 99th percentile", "s", "latency.tpot_s.p99", "log"),
    ]


def _ratio_figure(found: Found, workload: str, made: str) -> Figure:
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
        title = f"accelgen against each: {measure.name} (paper: {said.low:g} to {said.high:g})"
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
    return Figure(f"{workload}-ratios", f"{workload}: ratios and the paper's ranges", panels, made)


# --- sentences ----------------------------------------------------------------------------------------------------


def _say(found: Found, workload: str) -> list[str]:
    said = [_why(found, workload, rate) for rate in looked_at(found, workload)]
    return [*filter(None, said), *faults(found, workload)]


def _why(found: Found, workload: str, rate: float) -> str:
    """Where requests are lost, by accelgen and by the best baseline, and which resource is short."""
    means = {arm: found.mean(workload, arm, rate, GOODPUT) for arm in BASELINES}
    known = {arm: value for arm, value in means.items() if value is not None}
    ours = found.mean(workload, ME, rate, GOODPUT)
    if ours is None or not known:
        return ""
    best = max(known, key=lambda arm: known[arm])
    ratio = f"{ours / known[best]:.2f} times " if known[best] else ""
    words = [
        f"At {rate:g} req/s accelgen's goodput is {ours:.3f} req/s, {ratio}that of {best} ({known[best]:.3f}), the best"
        f" of the paper's baselines here."
    ]
    for arm in (ME, best):
        group = found.group(workload, arm, rate)

        def share(path: str, group: Group = group) -> float:
            return 100 * (group.mean(figure_of(path)) or 0.0)

        words.append(
            f"Of {arm}'s requests {100 - share('judged.ttft'):.0f} % miss the first token's objective and"
            f" {100 - share(f'judged.tpot.{GAP}'):.0f} % some gap's; KV blocks are in use to"
            f" {share('machine.kv_utilisation'):.0f} %, compute to {share('machine.compute_utilisation'):.0f} %,"
            f" {group.mean(figure_of('machine.preemptions')) or 0:.0f} preemptions,"
            f" {group.mean(figure_of('machine.batch')) or 0:.1f} requests per iteration."
        )
    return " ".join(words)


# --- the sections ----------------------------------------------------------------------------------------------------


def _section(workload: str, title: str, about: str) -> Section:
    def asks(scale: Scale) -> list[Ask]:
        scenario = scale.scenario(workload)
        arms = [Arm.of(name) for name in (*BASELINES, *NEWER, *OWN, *WITHOUT)]
        return scale.grid(workload, scenario, arms, scale.pick(scenario.rates))

    return Section(
        name=workload,
        title=title,
        about=about,
        asks=asks,
        tabulate=lambda found: [
            *_policies(found, workload), _ratios(found, workload), _ablations(found, workload)
        ],
        draw=lambda found: _figures(found, workload),
        say=lambda found: _say(found, workload),
        published=(*ACCELGEN, *ABLATIONS.values()),
    )  # fmt: skip


SECTIONS = (
    _section(
        "accelgen",
        "AccelGen's setting",
        "OPT-13B on one A100 with 12 GB of KV, 35 % long prompts, Poisson arrivals, objectives of the paper. Does"
        " accelgen do better than the systems it was compared with, by as much as the paper says?",
    ),
    _section(
        "accelgen_long",
        "AccelGen's setting, longer prompts",
        "The same with long prompts of 4,000 to 12,000 tokens, as long as 12 GB of KV allow.",
    ),
    _section(
        "accelgen_offline",
        "AccelGen's setting, a fifth offline",
        "The same with a fifth of the requests that have a completion time instead of objectives for each token.",
    ),
)
