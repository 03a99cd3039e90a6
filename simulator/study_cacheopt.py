"""CacheOPT's setting: tails, attainment and the highest rate beside the paper's, its parts, its memory under others."""

from __future__ import annotations

from msgspec import structs

from accelgen.simulator.groups import figure_of
from accelgen.simulator.published_slo import ARRIVAL_RATE, CACHEOPT
from accelgen.simulator.shown import Figure, Line, Panel, Series, Table
from accelgen.simulator.study import Ask, Found, Scale, Section, faults, sweep
from accelgen.simulator.study_ratios import ATTAINED, GAP, GOODPUT, points
from accelgen.simulator.study_tails import (
    ARMS,
    BASELINES,
    MAIN,
    ME,
    MEASURES,
    PARTS,
    SEARCHED,
    TBT,
    TTFT,
    UNDER,
    WANTED,
    beside,
    compared,
    looked_at,
    memories,
    most,
    parts,
    policies,
    rates,
)
from accelgen.simulator.times import Rule

WORKLOADS = {"cacheopt": "cacheopt", "cacheopt_mixed": "accelgen"}
"""By the name that it has here: the frozen scenario."""


def _asks(scale: Scale) -> list[Ask]:
    asks: list[Ask] = []
    for workload, name in WORKLOADS.items():
        scenario = scale.scenario(name)
        asks += scale.grid(workload, scenario, ARMS, scale.pick(scenario.rates))
        judged = structs.replace(scenario, rule=Rule.CUMULATIVE)  # see rates()
        asks += [scale.search(workload, judged, arm, WANTED) for arm in SEARCHED]
    return asks


def _tabulate(found: Found) -> list[Table]:
    tables = []
    for workload in WORKLOADS:
        at = looked_at(found, workload)
        tables += [beside(found, workload), rates(found, workload)]
        tables += [policies(found, workload, rate) for rate in at]
        tables += [parts(found, workload, at), memories(found, workload, at)]
    return tables


# --- figures ---------------------------------------------------------------------------------------------------------


def _panel(
    found: Found, workload: str, arms: list[str], title: str, unit: str, path: str,
    factor: float = 1.0, scale: str = "linear",
) -> Panel:  # fmt: skip
    series = sweep(found, workload, arms, figure_of(path), factor)
    return Panel(title, "requests/s sent", unit, series, x_scale="log", y_scale=scale)  # type: ignore[arg-type]


def _panels(found: Found, workload: str, arms: list[str]) -> list[Panel]:
    def panel(title: str, unit: str, path: str, factor: float = 1, scale: str = "linear") -> Panel:
        return _panel(found, workload, arms, title, unit, path, factor, scale)

    return [
        panel("TTFT, 95th percentile", "s", "latency.ttft_s.p95", scale="log"),
        panel("TBT, 95th percentile", "ms", "latency.itl_s.p95", 1000),
        panel("Preemptions", "in a run", "machine.preemptions"),
        panel("TTFT kept", "% of requests sent", "judged.ttft", 100),
        panel("TBT kept in every gap", "% of requests sent", f"judged.tpot.{GAP}", 100),
        panel("Goodput, every gap", "requests/s that attain", f"goodput.{GAP}"),
    ]


def _ratios(found: Found, workload: str) -> Figure:
    panels = []
    for measure, said in MEASURES:
        lines = []
        for arm in BASELINES:
            at = found.rates(workload)
            values = [compared(found, workload, rate, measure, arm.name) for rate in at]
            lines.append(Series(arm.name, at, values))
        times = measure.of is not points
        unit = "times lower" if times else "points more"
        marks = [Line("y", said.low, "the paper's highest"), Line("y", float(times), "the same")]
        title = f"{measure.name} (paper: up to {said.low:g})"
        scale = "log" if times else "linear"
        panels.append(
            Panel(title, "requests/s sent", unit, lines, "lines", "log", scale, marks)  # type: ignore[arg-type]
        )
    title = f"{workload}: cacheopt against each baseline"
    return Figure(f"{workload}-ratios", title, panels, found.made(workload))


def _bars(found: Found, workload: str) -> Figure:
    """The highest rates, and what is left of the goodput without each part."""
    arms = [arm.name for arm in SEARCHED if found.capacity(workload, arm.name, WANTED)]
    found_rates = [found.capacity(workload, arm, WANTED) for arm in arms]
    series = [Series("highest rate", arms, [one.rate if one else None for one in found_rates])]
    panels = [
        Panel(
            f"Highest rate at {WANTED:.0%}", "requests/s", "policy", series if arms else [], "bars"
        )
    ]
    names = [ME, *(arm.name for arm in PARTS)]
    for rate in looked_at(found, workload):
        for title, unit, read, factor in (
            ("Attained", "% of requests sent", ATTAINED, 100.0),
            ("TTFT, 95th percentile", "s", TTFT, 1.0),
            ("TBT, 95th percentile", "ms", TBT, 1000.0),
        ):
            means = [found.mean(workload, name, rate, read) for name in names]
            values = [None if mean is None else factor * mean for mean in means]
            bars = [Series(title, names, values)]
            panels.append(Panel(f"{title}, at {rate:g} req/s", unit, "cacheopt", bars, "bars"))
    title = f"{workload}: highest rates, and cacheopt without each part"
    return Figure(f"{workload}-bars", title, panels, found.made(workload))


def _draw(found: Found) -> list[Figure]:
    figures = []
    for workload in WORKLOADS:
        made = found.made(workload)
        main = [arm.name for arm in MAIN]
        mixed = [ME, *UNDER, *UNDER.values()]
        figures += [
            Figure(f"{workload}-sweep", f"{workload}: policies over the rate", _panels(found, workload, main), made),
            _ratios(found, workload),
            _bars(found, workload),
            Figure(
                f"{workload}-memory", f"{workload}: policies with and without cacheopt's memory",
                _panels(found, workload, mixed), made,
            ),
        ]  # fmt: skip
    return figures


# --- sentences -------------------------------------------------------------------------------------------------------


def _say(found: Found) -> list[str]:
    said = []
    for workload in WORKLOADS:
        said += [_tails(found, workload), _rates(found, workload), _parts(found, workload)]
    return [*filter(None, said), *faults(found, *WORKLOADS)]


def _tails(found: Found, workload: str) -> str:
    words = []
    for measure, paper in MEASURES:
        each = {arm.name: most(found, workload, measure, arm.name) for arm in BASELINES}
        known = [
            f"{measure.form.format(one[0])} against {name} (at {one[1]:g} req/s)"
            for name, one in each.items()
            if one is not None
        ]
        if known:
            words.append(f"{measure.name}: {', '.join(known)}; the paper's highest {paper.low:g}")
    return f"{workload}, the most over the rates. {'. '.join(words)}." if words else ""


def _rates(found: Found, workload: str) -> str:
    mine = found.capacity(workload, ME, WANTED)
    if mine is None:
        return ""
    words = []
    for arm in BASELINES:
        theirs = found.capacity(workload, arm.name, WANTED)
        if theirs is not None and theirs.rate > 0:
            words.append(f"{mine.rate / theirs.rate:.2f} times that of {arm.name}")
        elif theirs is not None:
            words.append(f"{arm.name} reaches {WANTED:.0%} at no rate tried")
    return (
        f"{workload}: {WANTED:.0%} attain (cumulative) up to {mine.rate:.2f} req/s under cacheopt, {', '.join(words)};"
        f" the paper's highest {ARRIVAL_RATE.low:g} times."
    )


def _parts(found: Found, workload: str) -> str:
    """Which parts help, by goodput at the rate of the highest."""
    at = looked_at(found, workload)[:1]
    if not at:
        return ""
    whole = found.mean(workload, ME, at[0], GOODPUT)
    means = {arm.name: found.mean(workload, arm.name, at[0], GOODPUT) for arm in PARTS}
    if not whole:
        return ""
    losses = {name: mean / whole - 1 for name, mean in means.items() if mean is not None}
    helps = [f"{name} {loss:+.1%}" for name, loss in losses.items() if loss < 0]
    hurts = [f"{name} {loss:+.1%}" for name, loss in losses.items() if loss >= 0]
    words = f"{workload} at {at[0]:g} req/s: goodput falls {', '.join(helps) or 'without none of the parts'}"
    return words + (f"; it does not fall {', '.join(hurts)}." if hurts else ".")


SECTION = Section(
    name="cacheopt",
    title="CacheOPT's setting",
    about="OPT-13B on one A100 with 12 GB of KV, which is what is short: answers of ShareGPT (cacheopt), and with 35 %"
    " long prompts among them (cacheopt_mixed, AccelGen's setting). Are tails as much lower, and do as many more"
    " requests keep their objectives, as CacheOPT's paper says? Which of its five parts is that due to? What does its"
    " memory do for other policies? The paper's setting is in no source that we have; what is ours of this one,"
    " scenarios.toml says.",
    asks=_asks,
    tabulate=_tabulate,
    draw=_draw,
    say=_say,
    published=CACHEOPT,
)
