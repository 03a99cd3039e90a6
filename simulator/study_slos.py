"""SLOs-Serve's six scenarios: capacity per replica beside the paper's ratios, its parts, four replicas, planning."""

from __future__ import annotations

from accelgen.simulator.distserve import NAME as DISTSERVE
from accelgen.simulator.published_slo import (
    SLOS,
    SLOS_CAPACITY,
    SLOS_MEAN,
    SLOS_PLANNING,
    SLOS_REPLICAS,
    SLOS_ROUTING,
)
from accelgen.simulator.shown import Figure, Line, Panel, Series
from accelgen.simulator.study import Found, Section, faults
from accelgen.simulator.study_admission import (
    ALONE,
    BASELINES,
    EDF_SIM,
    ME,
    OTHERS,
    PAIRS,
    REFUSING,
    REPLICATED,
    ROUND_ROBIN,
    ROUTED,
    WANTED,
    WORKLOADS,
    ablated,
    asks,
    geometric,
    per_replica,
    planning_s,
    ratio,
    waves,
)
from accelgen.simulator.study_admission_tables import (
    COUNTED,
    GAINS,
    SHOWN,
    gains,
    mean_ratio,
    tabulate,
    times_one,
)

# --- figures ---------------------------------------------------------------------------------------------------------


def _bars(found: Found) -> Figure:
    known = [one for one in WORKLOADS if per_replica(found, one, ME) is not None]
    names = [one.removeprefix("slos_") for one in known]
    absolute = [
        Series(arm, names, [per_replica(found, one, arm) for one in known]) for arm in SHOWN
    ]
    times = [
        Series(
            arm,
            names,
            [ratio(per_replica(found, one, ME), per_replica(found, one, arm)) for one in known],
        )
        for arm in SHOWN[1:]
    ]
    marks = [Line("x", 1.0, "the same"), Line("x", SLOS_MEAN.low, "the paper's mean, 2.2")]
    panels = [
        Panel(f"Capacity at {WANTED:.0%}", "requests/s per replica", "scenario", absolute, "bars"),
        Panel(f"{ME} to the others", "times", "scenario", times, "bars", lines=marks),
    ]
    title = "Capacity per replica"
    return Figure("slos-capacity", title, panels, found.made(*WORKLOADS))


def _tried(found: Found) -> Figure:
    """Attainment at the rates that the searches tried."""
    panels = []
    for workload in WORKLOADS:
        lines = []
        for arm in (
            ME,
            *(one.name for one in ALONE),
            *(one.name for one in PAIRS[:1]),
            REFUSING.name,
        ):
            capacity = found.capacity(workload, arm, WANTED)
            if capacity is not None:
                tried = sorted(dict(capacity.tried).items())
                replicas = PAIRS[0].replicas if arm == PAIRS[0].name else 1
                at = [rate / replicas for rate, _ in tried]
                lines.append(Series(arm, at, [100 * share for _, share in tried]))
        marks = [Line("y", 100 * WANTED, "wanted")]
        panels.append(
            Panel(
                workload,
                "requests/s per replica",
                "% that attain",
                lines,
                "lines",
                "log",
                lines=marks,
            )
        )
    title = "Attainment at the rates tried; of runs that were given up, the share until then"
    return Figure("slos-tried", title, panels, found.made(*WORKLOADS))


def _planned(found: Found) -> Figure:
    known = [one for one in WORKLOADS if planning_s(found, one, ME) is not None]
    names = [one.removeprefix("slos_") for one in known]
    panels = []
    for at, title in ((0, "Median"), (1, "99th percentile"), (2, "Longest")):
        series = []
        for arm in (ME, EDF_SIM.name):
            times = [planning_s(found, one, arm) for one in known]
            values = [None if one is None else 1000 * one[at] for one in times]
            series.append(Series("dp" if arm == ME else arm, names, values))
        panels.append(Panel(title, "ms of processor time", "scenario", series, "bars"))
    return Figure("slos-planning", "What a decision takes", panels, found.made(*WORKLOADS))


def _draw(found: Found) -> list[Figure]:
    return [_bars(found), _tried(found), _planned(found)]


# --- sentences -------------------------------------------------------------------------------------------------------


def _say(found: Found) -> list[str]:
    said = [_say_means(found), _say_declined(found), _say_parts(found), _say_replicas(found)]
    said += [_say_planning(found), _say_waves(found)]
    return [*filter(None, said), *faults(found, *WORKLOADS)]


def _say_means(found: Found) -> str:
    means = {arm: mean_ratio(found, arm) for arm in BASELINES}
    words = [
        f"{mean:.2f} times that of {arm} (the paper: {SLOS_CAPACITY[arm].low:g})"
        for arm, mean in means.items()
        if mean is not None
    ]
    if not words:
        return ""
    overall = geometric(means.values())
    nothing = [
        f"{arm} in {one}"
        for one in WORKLOADS
        for arm in (ME, *BASELINES)
        if per_replica(found, one, arm) == 0
    ]
    left_out = (
        f" Left out of means, for a capacity of nothing: {', '.join(nothing)}." if nothing else ""
    )
    return (
        f"Capacity of {ME} at {WANTED:.0%}, geometric mean of the scenarios: {', '.join(words)}; of the three together"
        f" {overall or 0:.2f} (the paper: {SLOS_MEAN.low:g}).{left_out}"
    )


def _say_declined(found: Found) -> str:
    if not any(per_replica(found, one, ME) is not None for one in WORKLOADS):
        return ""
    return (
        f"{COUNTED} So {ME} is at its capacity when it declines one in ten, at the latest; the requests that it has"
        " promised something may all be kept then, and are beyond that rate, too."
    )


def _say_parts(found: Found) -> str:
    words = []
    for arm in ablated():
        gain = geometric(gains(found, arm.name))
        if gain is not None:
            words.append(f"{GAINS[arm.name]} {gain:.2f} times")
    return f"Parts, geometric mean of the scenarios: {', '.join(words)}." if words else ""


def _say_replicas(found: Found) -> str:
    words = []
    for workload in REPLICATED:
        times = times_one(found, workload)
        if times is not None:
            words.append(f"{times:.2f} in {workload} (the paper: {SLOS_REPLICAS[workload].low:g})")
    routing = mean_ratio(found, ROUND_ROBIN.name, ROUTED.name, REPLICATED)
    if not words:
        return ""
    more = ""
    if routing is not None:
        more = f" Routing by planning to round robin: {routing:.2f} times (the paper: {SLOS_ROUTING.low:g})."
    return (
        f"{ROUTED.replicas} replicas have this many times one's capacity: {', '.join(words)}.{more}"
    )


def _say_planning(found: Found) -> str:
    words = []
    for name, arm in (("dp", ME), ("edf_sim", EDF_SIM.name)):
        times = [planning_s(found, one, arm) for one in WORKLOADS]
        known = [one for one in times if one is not None]
        if known:
            middle, high, longest = (1000 * max(one[i] for one in known) for i in range(3))
            words.append(f"{name} {middle:.2f}, {high:.1f} and {longest:.1f} ms")
    if not words:
        return ""
    return (
        "A decision takes, median, 99th percentile and longest, of the scenario in which each is highest:"
        f" {'; '.join(words)} (the paper: {SLOS_PLANNING.said})."
    )


def _say_waves(found: Found) -> str:
    """Capacities that are a border of single points."""
    names = [ME, *(one.name for one in (*ALONE, *PAIRS, *OTHERS, *ablated(), ROUTED, ROUND_ROBIN))]
    odd = []
    for workload in WORKLOADS:
        for name in names:
            capacity = found.capacity(workload, name, WANTED)
            if capacity is not None and waves(capacity):
                odd.append(f"{name} in {workload}")
    return (
        f"Attainment does not fall with the rate everywhere, the border is one of several: {', '.join(odd)}."
        if odd
        else ""
    )


SECTION = Section(
    name="slos",
    title="SLOs-Serve's six scenarios",
    about=f"The highest rate per replica at which {WANTED:.0%} of the requests keep the objectives of all their stages."
    f" How much higher is it with {ME} than with vllm, sarathi and {DISTSERVE}, which of its parts is that due to,"
    " what do four replicas serve, and what does planning take?",
    asks=asks,
    tabulate=tabulate,
    draw=_draw,
    say=_say,
    published=SLOS,
)
