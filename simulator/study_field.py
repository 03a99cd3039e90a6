"""The field: capacity of every policy on real workloads."""

from __future__ import annotations

from accelgen.simulator.distserve import NAME as DISTSERVE
from accelgen.simulator.published import (
    CODE_CAPACITY,
    CONV_CAPACITY,
    FIELD,
)
from accelgen.simulator.shown import NONE, Cell, Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_ratios import ARMS, WHOLE
from accelgen.simulator.times import Rule

WORKLOADS = (
    "azure2023_conv", "azure2023_code", "mooncake_conversation", "three_class", "three_class_conv"
)  # fmt: skip
WANTED = (0.99, 0.9)
PUBLISHED = {"three_class": CODE_CAPACITY, "three_class_conv": CONV_CAPACITY}
PAIR = Arm(DISTSERVE, DISTSERVE, replicas=2)
_REPLICAS = {arm.name: arm.replicas for arm in (*ARMS, PAIR)}


def _asks(scale: Scale) -> list[Ask]:
    asks: list[Ask] = []
    for workload in WORKLOADS:
        scenario = scale.scenario(workload)
        arms = [*(ARMS if scale.requests is None else WHOLE), PAIR]
        asks += [scale.search(workload, scenario, arm, wanted) for arm in arms for wanted in WANTED]
    return asks


def per_device(found: Found, workload: str, arm: str, wanted: float) -> float | None:
    capacity = found.capacity(workload, arm, wanted)
    return None if capacity is None else capacity.rate / _REPLICAS.get(arm, 1)


# --- tables ----------------------------------------------------------------------------------------------------------


def _table(found: Found, workload: str) -> Table:
    published = PUBLISHED.get(workload, {})
    names = found.arms(workload)
    best = {
        w: max((per_device(found, workload, a, w) or 0 for a in names), default=0) for w in WANTED
    }
    rows = [_row(found, workload, arm, best, published) for arm in names]
    heads = [
        "policy",
        *(f"capacity at {w:.0%}, req/s" for w in WANTED),
        *(f"of the best at {w:.0%}" for w in WANTED),
    ]
    heads += ["lowest rate not kept at 99 %", "attained there, %", "runs"]
    heads += ["QoServe's scripts sweep"] if published else []
    return Table(
        f"{workload}-capacity",
        workload,
        heads,
        rows,
        found.made(workload),
        note_of(found, workload),
    )


def _row(
    found: Found,
    workload: str,
    arm: str,
    best: dict[float, float],
    published: dict[str, tuple[float, float]],
) -> list[Cell]:
    rates = {wanted: per_device(found, workload, arm, wanted) for wanted in WANTED}
    replicas = _REPLICAS.get(arm, 1)
    shares = {
        w: None if rate is None or not best[w] else rate / best[w] for w, rate in rates.items()
    }
    row = [text(f"{arm}, per device of {replicas}" if replicas > 1 else arm)]
    row += [
        number(rate, "{:.3f}", mark="best" if rate and rate == best[w] else "")
        for w, rate in rates.items()
    ]
    row += [number(share, "{:.2f}") for share in shares.values()]
    capacity = found.capacity(workload, arm, WANTED[0])
    above = None if capacity is None else capacity.above
    attained = dict(capacity.tried)[above] if capacity is not None and above is not None else None
    row += [number(above, "{:.3f}", 1 / replicas), number(attained, "{:.1f}", 100)]
    results = [
        r for wanted in WANTED for r in found.searches.get((workload, arm, wanted), (None, []))[1]
    ]
    failed = sum(bool(result.fault) for result in results)
    runs = (
        text(f"{len(results)}, {failed} failed", "fault")
        if failed
        else number(len(results), "{:.0f}")
    )
    row.append(runs)
    if published:
        row.append(text("{:g} to {:g}".format(*published[arm])) if arm in published else NONE)
    return row


def note_of(found: Found, workload: str) -> str:
    results = found.results(workload)
    if not results:
        return ""
    scenario = results[0].setting.scenario
    words = f"Attainment by the rule {Rule(scenario.rule).replace('_', ' ')}, over requests sent."
    longest_s = max((part.e2e.base_s or 0 for part in scenario.parts if part.e2e), default=0)
    spans_s = scenario.requests / max(result.setting.rate for result in results)
    if longest_s > spans_s:
        words += (
            f" Runs of {scenario.requests:,} requests span {spans_s:.0f} s at the highest rate tried, less than the"
            f" longest completion time ({longest_s:.0f} s): such an objective can hardly be missed here, so capacities"
            " are too high."
        )
    allowed = (1 - WANTED[0]) * scenario.requests
    if allowed < 5:
        words += f" At {WANTED[0]:.0%} only {allowed:.1f} requests may miss: the border is that of single requests."
    return words


# --- figures and sentences ----------------------------------------------------------------------------------------


def _draw(found: Found) -> list[Figure]:
    figures = []
    for wanted in WANTED:
        panels = []
        for workload in WORKLOADS:
            arms = found.arms(workload)
            values = [per_device(found, workload, arm, wanted) for arm in arms]
            series = [Series("capacity", arms, values)]
            panels.append(Panel(workload, "requests/s", "policy", series, "bars"))
        title = f"The highest rate at which {wanted:.0%} of the requests attain"
        figures.append(Figure(f"capacity-{wanted:g}", title, panels, found.made(*WORKLOADS)))
    return figures


def _say(found: Found) -> list[str]:
    said = []
    for workload in WORKLOADS:
        rates = {
            arm: per_device(found, workload, arm, WANTED[0]) or 0.0 for arm in found.arms(workload)
        }
        order = sorted(rates, key=lambda arm: -rates[arm])
        if not order or not rates[order[0]]:
            continue
        first = ", ".join(f"{arm} {rates[arm]:.2f}" for arm in order[:3])
        words = f"{workload} at 99 %: {first} req/s"
        if "accelgen" in rates:
            place = 1 + sum(rate > rates["accelgen"] for rate in rates.values())
            words += f"; accelgen {rates['accelgen']:.2f}, place {place} of {len(rates)}"
        said.append(words + ".")
    return [*said, *faults(found, *WORKLOADS)]


SECTION = Section(
    name="field",
    title="The field",
    about="The highest rate at which 99 % and 90 % of the requests keep their objectives, by bisection: every policy on"
    " real arrivals and lengths, Llama-3-8B on one A100. DistServe has two devices and is given per device.",
    asks=_asks,
    tabulate=lambda found: [_table(found, workload) for workload in WORKLOADS],
    draw=_draw,
    say=_say,
    published=FIELD,
)
