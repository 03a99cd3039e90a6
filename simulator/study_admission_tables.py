"""Tables of slos-serve's capacities: beside the paper's ratios, of its parts, of four replicas; and of its planning."""

from __future__ import annotations

from collections.abc import Sequence

from accelgen.simulator.published_slo import (
    SLOS_BURSTS,
    SLOS_CAPACITY,
    SLOS_CHATBOT,
    SLOS_PLANNING,
    SLOS_REPLICAS,
    SLOS_ROUTING,
    SLOS_SPECULATION,
)
from accelgen.simulator.shown import NONE, Cell, Published, Table, number, text
from accelgen.simulator.study import Found
from accelgen.simulator.study_admission import (
    ALONE,
    BASELINES,
    CHATBOT,
    EAGER,
    EDF_SIM,
    FEW,
    ME,
    OTHERS,
    REFUSING,
    REPLICATED,
    ROUND_ROBIN,
    ROUTED,
    SPECULATING,
    WANTED,
    WORKLOADS,
    ablated,
    geometric,
    per_replica,
    planning_s,
    ratio,
    span_s,
)

SHOWN = (ME, *BASELINES, *(arm.name for arm in OTHERS))
COUNTED = (
    "Attainment is over all requests sent: who is declined counts as missed, unless it attains as best effort all the"
    " same."
)


def beside(value: float | None, said: Published | None) -> Cell:
    """A ratio, marked where it is less than the paper's."""
    is_short = value is not None and said is not None and value < said.low
    return number(value, "{:.2f}×", mark="short" if is_short else "")


def paper(said: Published | None) -> Cell:
    return NONE if said is None else text(f"{said.low:g} [{said.evidence}]")


# --- tables ----------------------------------------------------------------------------------------------------------


def _capacities(found: Found) -> Table:
    rows = []
    for workload in WORKLOADS:
        rates = {arm: per_replica(found, workload, arm) for arm in SHOWN}
        if all(rate is None for rate in rates.values()):
            continue
        best = max(rate or 0.0 for rate in rates.values())
        cells = [
            number(rate, "{:.3f}", mark="best" if rate and rate == best else "")
            for rate in rates.values()
        ]
        against = [
            beside(ratio(rates[ME], rates[arm]), SLOS_CAPACITY.get(arm)) for arm in SHOWN[1:]
        ]
        rows.append(
            [text(workload), *cells, *against, number(span_s(found, workload, ME), "{:.0f}")]
        )
    if rows:
        means = {arm: mean_ratio(found, arm) for arm in SHOWN[1:]}
        blank = [NONE] * len(SHOWN)
        shown = [beside(means[arm], SLOS_CAPACITY.get(arm)) for arm in SHOWN[1:]]
        papers = [paper(SLOS_CAPACITY.get(arm)) for arm in SHOWN[1:]]
        rows.append([text("geometric mean"), *blank, *shown, NONE])
        rows.append([text("the paper's"), *blank, *papers, NONE])
    heads = [
        "scenario",
        *(f"{arm}, req/s" for arm in SHOWN),
        *(f"{ME} to {arm}" for arm in SHOWN[1:]),
    ]
    note = (
        f"The highest rate at which {WANTED:.0%} attain (cumulative rule), per replica; distserve: the best of 1:1, 2:1"
        f" and 1:2. slos_toolllm: sessions per second, of which every call has to attain. {COUNTED} Marked: less than"
        " the paper's mean. The last column: how long a run at that rate lasts."
    )
    title = "Capacity per replica in the six scenarios"
    return Table(
        "slos-capacity", title, [*heads, f"{ME}'s run, s"], rows, found.made(*WORKLOADS), note
    )


def mean_ratio(
    found: Found, arm: str, ours: str = ME, workloads: Sequence[str] = WORKLOADS
) -> float | None:
    return geometric(
        ratio(per_replica(found, one, ours), per_replica(found, one, arm)) for one in workloads
    )


def _few(found: Found) -> Table:
    mine = per_replica(found, CHATBOT, ME, FEW)
    rows = []
    for arm in (ME, *BASELINES):
        rate = per_replica(found, CHATBOT, arm, FEW)
        if rate is not None:
            times = None if arm == ME else ratio(mine, rate)
            said = SLOS_CHATBOT.get(arm)
            rows.append([text(arm), number(rate, "{:.3f}"), beside(times, said), paper(said)])
    heads = ["policy", f"capacity at {FEW:.0%}, req/s", f"{ME}'s of it", "paper"]
    title = f"{CHATBOT}: capacity per replica at {FEW:.0%}"
    return Table("slos-few", title, heads, rows, found.made(CHATBOT), COUNTED)


def _ablations(found: Found) -> Table:
    """slos-serve's capacity, and what of it is left with a part otherwise."""
    said = {REFUSING.name: SLOS_BURSTS, SPECULATING.name: SLOS_SPECULATION}
    names = [arm.name for arm in ablated()]
    rows = []
    for workload in WORKLOADS:
        mine = per_replica(found, workload, ME)
        others = {name: per_replica(found, workload, name) for name in names}
        if mine is not None:
            rows.append(
                [
                    text(workload),
                    number(mine, "{:.3f}"),
                    *(number(rate, "{:.3f}") for rate in others.values()),
                    *(number(_gain(name, mine, rate), "{:.2f}×") for name, rate in others.items()),
                ]
            )
    if rows:
        worth = [geometric(gains(found, name)) for name in names]
        blank = [NONE] * (1 + len(names))
        shown = [beside(gain, said.get(name)) for name, gain in zip(names, worth, strict=True)]
        rows.append([text("geometric mean"), *blank, *shown])
        rows.append([text("the paper's"), *blank, *(paper(said.get(name)) for name in names)])
    heads = ["scenario", f"{ME}, req/s", *(f"{name}, req/s" for name in names)]
    heads += [GAINS.get(name, name) for name in names]
    note = (
        "edf_sim: admission by the simulation that the authors use now, in place of the dynamic program. Refusing: who"
        " is declined is refused, not put into the best-effort queue. Planning at arrivals: a round for each one, not"
        " for every tenth, or after 0.1 s, which is all the time that a short prompt has. The paper says no more of its"
        " ablation of bursts than its figure."
    )
    title = f"What the parts of {ME} are worth"
    return Table("slos-parts", title, heads, rows, found.made(*WORKLOADS), note)


GAINS = {
    EDF_SIM.name: "dp to edf_sim",
    REFUSING.name: "best effort to refusing",
    EAGER.name: "planning at arrivals to rounds",
    SPECULATING.name: "speculating to not",
}
_WITH = (EAGER.name, SPECULATING.name)  # arms that have something more, not less


def _gain(name: str, mine: float | None, other: float | None) -> float | None:
    """What the part is worth: with it to without."""
    return ratio(other, mine) if name in _WITH else ratio(mine, other)


def gains(found: Found, name: str) -> list[float | None]:
    return [
        _gain(name, per_replica(found, one, ME), per_replica(found, one, name)) for one in WORKLOADS
    ]


def times_one(found: Found, workload: str) -> float | None:
    """The capacity of four replicas to one's."""
    four, one = per_replica(found, workload, ROUTED.name), per_replica(found, workload, ME)
    return ratio(None if four is None else ROUTED.replicas * four, one)


def _replicas(found: Found) -> Table:
    rows = []
    for workload in REPLICATED:
        one, routed, turns = (
            per_replica(found, workload, name) for name in (ME, ROUTED.name, ROUND_ROBIN.name)
        )
        if routed is None:
            continue
        said = SLOS_REPLICAS[workload]
        rows.append(
            [
                text(workload),
                number(one, "{:.3f}"),
                number(routed, "{:.3f}", ROUTED.replicas),
                number(turns, "{:.3f}", ROUND_ROBIN.replicas),
                beside(times_one(found, workload), said),
                paper(said),
                beside(ratio(routed, turns), SLOS_ROUTING),
                paper(SLOS_ROUTING),
                number(span_s(found, workload, ME), "{:.0f}"),
                number(span_s(found, workload, ROUTED.name), "{:.0f}"),
            ]
        )
    heads = [
        "scenario", "1 replica, req/s", f"{ROUTED.name}, req/s", "of them by round robin, req/s",
        f"{ROUTED.replicas} to 1", "paper", "routing to round robin", "paper", "run of 1, s", "run of 4, s",
    ]  # fmt: skip
    note = (
        f"All replicas together, at {WANTED:.0%}. Four get the requests of one in a fraction of the time: the slice of"
        " the trace has no more, so their bursts are as long as before in requests, and shorter in time."
    )
    title = "Four replicas, routed by planning"
    return Table("slos-replicas", title, heads, rows, found.made(*REPLICATED), note)


_PLANNERS = (ME, EDF_SIM.name, *(arm.name for arm in ALONE))


def _planning(found: Found) -> Table:
    rows = []
    for workload in WORKLOADS:
        for arm in _PLANNERS:
            times = planning_s(found, workload, arm)
            if times is None:
                continue
            middle_s, high_s, longest_s = times
            most_s = SLOS_PLANNING.high
            is_long = arm in (ME, EDF_SIM.name) and longest_s > most_s
            rows.append(
                [
                    text(workload),
                    text("dp" if arm == ME else arm),
                    number(middle_s, "{:.3f}", 1000),
                    number(high_s, "{:.2f}", 1000),
                    number(longest_s, "{:.2f}", 1000, "short" if is_long else ""),
                ]
            )
    heads = ["scenario", "admission, or policy", "p50 ms", "p99 ms", "longest ms"]
    note = (
        "Processor time of a decision: view, planning where it is due, following the plan, projection; of all runs of a"
        " search, those far beyond capacity included: median of the runs' medians, the highest 99th percentile of a"
        f" run, the longest of all. The paper: {SLOS_PLANNING.said} [{SLOS_PLANNING.evidence}]; in Python here, in C++"
        " there. Marked: more than that. These figures do not repeat: other simulations ran beside them."
    )
    return Table("slos-planning", "What planning takes", heads, rows, found.made(*WORKLOADS), note)


def tabulate(found: Found) -> list[Table]:
    return [
        _capacities(found),
        _few(found),
        _ablations(found),
        _replicas(found),
        _planning(found),
    ]
