"""cacheopt beside the systems of its paper, without each of its parts, and its memory under others: what is run, and
the tables of it."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from accelgen.simulator.groups import Group, Read, figure_of
from accelgen.simulator.published_slo import (
    ARRIVAL_RATE,
    KEPT_TBT,
    KEPT_TTFT,
    TAIL_TBT,
    TAIL_TTFT,
)
from accelgen.simulator.shown import NONE, Cell, Published, Table, number, text
from accelgen.simulator.study import Arm, Found
from accelgen.simulator.study_ratios import ATTAINED, GAP, GOODPUT, Measure, lower, points
from accelgen.simulator.times import Rule

ME, MEMORY = "cacheopt", "cacheopt"
WANTED = 0.9
SWAP = {"preemption": "swap"}


def with_memory(name: str, policy: str, memory: str = MEMORY, **params: bool | int) -> Arm:
    """A policy under a memory policy; KV may be swapped."""
    return Arm(name, policy, changes={**SWAP, "memory": memory, "memory_params": params})


WHOLE = Arm(ME, ME, changes=SWAP)
BASELINES = (
    Arm.of("vllm"),
    Arm.of("sarathi"),
    Arm("vllm, swapping", "vllm", changes=SWAP),
    Arm("sarathi, swapping", "sarathi", changes=SWAP),
)
OTHERS = (Arm.of("qoserve"), Arm.of("accelgen"), Arm.of("accelgen-plus"))
"""Policies beside the paper's baselines; a further one is an Arm here."""
MAIN = (WHOLE, *BASELINES, *OTHERS)

UNDER = {policy: f"{policy} + memory" for policy in ("vllm", "sarathi", "qoserve", "accelgen")}
"""Policies alone, and by which name with cacheopt's memory."""
ON_DEMAND = with_memory("cacheopt, memory on demand", ME, "on-demand")
MEMORIES = (*(with_memory(name, policy) for policy, name in UNDER.items()), ON_DEMAND)

PARTS = (
    with_memory("without the pad", ME, pad=False),
    with_memory("without embedding", ME, embed=False),
    with_memory("without growth ahead", ME, growth=False),
    with_memory("without the reserve", ME, reserve=0),
    with_memory("without growth and reserve", ME, growth=False, reserve=0),
    with_memory("without its victims", ME, victims=False),
    with_memory("always swapping", ME, crossover=False),
    Arm("always recomputing", ME, changes={"preemption": "recompute"}),
)
"""cacheopt with each of its five parts switched off; the fifth, swap or recompute, in both ways."""
ARMS = (*MAIN, *MEMORIES, *PARTS)
SEARCHED = (*MAIN, *MEMORIES)

TTFT, TBT = figure_of("latency.ttft_s.p95"), figure_of("latency.itl_s.p95")
TTFT_KEPT, TBT_KEPT = figure_of("judged.ttft"), figure_of(f"judged.tpot.{GAP}")
PREEMPTIONS = figure_of("machine.preemptions")
MEASURES: tuple[tuple[Measure, Published], ...] = (
    (Measure("P95 TBT", TBT, lower), TAIL_TBT),
    (Measure("P95 TTFT", TTFT, lower), TAIL_TTFT),
    (Measure("TTFT kept", TTFT_KEPT, points, "{:+.1f} points"), KEPT_TTFT),
    (Measure("TBT kept", TBT_KEPT, points, "{:+.1f} points"), KEPT_TBT),
)


def looked_at(found: Found, workload: str) -> list[float]:
    """The rate at which cacheopt's goodput is highest, and the highest rate."""
    rates = found.rates(workload)
    means = {rate: found.mean(workload, ME, rate, GOODPUT) for rate in rates}
    known = {rate: value for rate, value in means.items() if value is not None}
    best = [max(known, key=lambda rate: known[rate])] if known else []
    return sorted({*best, *rates[-1:]})


# --- every policy at a rate ------------------------------------------------------------------------------------------

_COLUMNS: tuple[tuple[str, Read, str, float], ...] = (
    ("TTFT p50 s", figure_of("latency.ttft_s.p50"), "{:.2f}", 1),
    ("TTFT p95 s", TTFT, "{:.2f}", 1),
    ("TBT p95 ms", TBT, "{:.1f}", 1000),
    ("TBT p99 ms", figure_of("latency.itl_s.p99"), "{:.1f}", 1000),
    ("TTFT kept %", TTFT_KEPT, "{:.1f}", 100),
    ("every gap kept %", TBT_KEPT, "{:.1f}", 100),
    ("attained %", ATTAINED, "{:.1f}", 100),
    ("attained, cumulative %", figure_of(f"judged.attainment.{Rule.CUMULATIVE}"), "{:.1f}", 100),
    ("goodput req/s", GOODPUT, "{:.3f}", 1),
    ("s per token, mean", figure_of("latency.normalised_s.mean"), "{:.3f}", 1),
    ("KV in use %", figure_of("machine.kv_utilisation"), "{:.0f}", 100),
    ("preemptions", PREEMPTIONS, "{:.0f}", 1),
    ("copies wait %", figure_of("machine.copies"), "{:.2f}", 100),
)


def policies(found: Found, workload: str, rate: float) -> Table:
    names = [arm.name for arm in (*MAIN, *MEMORIES)]
    groups = [found.group(workload, name, rate) for name in names]
    best = max((group.mean(GOODPUT) or 0.0 for group in groups), default=0.0)
    rows = [_row(group, best) for group in groups if group.results]
    heads = ["policy", *(head for head, *_ in _COLUMNS)]
    title = f"{workload}: every policy at {rate:g} requests/s"
    note = (
        "`+ memory`: the policy with cacheopt's memory. KV in use counts blocks that are given, used or not. Copies:"
        " share of time in which the device waits for KV to be swapped. Best: the highest goodput."
    )
    return Table(f"{workload}-at-{rate:g}", title, heads, rows, found.made(workload), note)


def _row(group: Group, best: float) -> list[Cell]:
    if group.fault and not group.values(GOODPUT):
        return [text(group.policy), text("failed", "fault"), *[NONE] * (len(_COLUMNS) - 1)]
    cells = []
    for head, read, form, factor in _COLUMNS:
        value = group.mean(read)
        is_best = head.startswith("goodput") and best > 0 and value == best
        cells.append(number(value, form, factor, "best" if is_best else ""))
    name = group.policy + (" (a seed failed)" if group.fault else "")
    return [text(name, "fault" if group.fault else ""), *cells]


# --- beside the paper ------------------------------------------------------------------------------------------------


def compared(found: Found, workload: str, rate: float, measure: Measure, arm: str) -> float | None:
    """cacheopt against another policy: times lower, or points more."""
    ours = found.mean(workload, ME, rate, measure.read)
    theirs = found.mean(workload, arm, rate, measure.read)
    return None if ours is None or theirs is None else measure.of(ours, theirs)


def most(found: Found, workload: str, measure: Measure, arm: str) -> tuple[float, float] | None:
    """The highest of it over all rates, as papers' "up to", and the rate; None without any."""
    values = {rate: compared(found, workload, rate, measure, arm) for rate in found.rates(workload)}
    known = {rate: value for rate, value in values.items() if value is not None and isfinite(value)}
    if not known:
        return None
    rate = max(known, key=lambda one: known[one])
    return known[rate], rate


def beside(found: Found, workload: str) -> Table:
    """Ratios: the highest over the rates, and at the rates looked at."""
    rows = []
    names = [arm.name for arm in BASELINES]
    for measure, said in MEASURES:
        found_most = {name: most(found, workload, measure, name) for name in names}
        if not any(found_most.values()):
            continue
        cells = [
            NONE if one is None else _marked(one[0], measure, said, f" at {one[1]:g}")
            for one in found_most.values()
        ]
        paper = text(f"{said.low:g} [{said.evidence}]")
        rows.append([text(f"{measure.name}, most over the rates"), *cells, paper])
        for rate in looked_at(found, workload):
            values = [compared(found, workload, rate, measure, name) for name in names]
            shown = [number(value, measure.form) for value in values]
            rows.append([text(f"{measure.name} at {rate:g} req/s"), *shown, paper])
    heads = ["figure", *names, "paper, up to"]
    note = (
        "Tails: how many times lower cacheopt's is. Kept: how many points more of the requests keep the objective, TBT"
        " in every gap. Marked: less than the paper's figure, which is the highest of its experiments; against which"
        " system and at which rate it is, is not known."
    )
    title = f"{workload}: cacheopt against the paper's baselines"
    return Table(f"{workload}-ratios", title, heads, rows, found.made(workload), note)


def _marked(value: float, measure: Measure, said: Published, more: str) -> Cell:
    mark = "short" if value < said.low else ""
    cell = number(value, measure.form, mark=mark)
    return Cell(cell.text + more, cell.value, cell.mark)


# --- the highest rate ------------------------------------------------------------------------------------------------


def rates(found: Found, workload: str) -> Table:
    """Where a share `WANTED` still attains."""
    mine = found.capacity(workload, ME, WANTED)
    baselines = {arm.name for arm in BASELINES}
    rows = []
    for arm in SEARCHED:
        capacity = found.capacity(workload, arm.name, WANTED)
        if capacity is None:
            continue
        ratio = None
        if mine is not None and arm.name != ME and capacity.rate > 0:
            ratio = mine.rate / capacity.rate
        is_short = arm.name in baselines and ratio is not None and ratio < ARRIVAL_RATE.low
        above = capacity.above
        attained = dict(capacity.tried)[above] if above is not None else None
        rows.append(
            [
                text(arm.name),
                number(capacity.rate, "{:.3f}"),
                number(ratio, "{:.2f}×", mark="short" if is_short else ""),
                number(above, "{:.3f}"),
                number(attained, "{:.1f}", 100),
                text(f"{ARRIVAL_RATE.low:g} [S]") if arm.name in baselines else NONE,
            ]
        )
    heads = [
        "policy", f"highest rate at {WANTED:.0%}, req/s", "cacheopt's of it", "lowest rate not kept",
        "attained there, %", "paper, up to",
    ]  # fmt: skip
    note = (
        f"The highest rate at which {WANTED:.0%} of the requests attain by the rule cumulative deadline: by that of"
        " every gap, vllm's iterations of prompts alone lose more than that at any rate. What has to hold at the"
        " paper's highest rate is in no source that we have."
    )
    title = f"{workload}: the highest rate"
    return Table(f"{workload}-rates", title, heads, rows, found.made(workload), note)


# --- parts, and memory under others ----------------------------------------------------------------------------------

_CHANGES: tuple[tuple[str, Read, str], ...] = (
    ("TTFT p95", TTFT, "%"), ("TBT p95", TBT, "%"), ("TTFT kept", TTFT_KEPT, "points"),
    ("every gap kept", TBT_KEPT, "points"), ("attained", ATTAINED, "points"), ("goodput", GOODPUT, "%"),
    ("preemptions", PREEMPTIONS, "%"),
)  # fmt: skip


def _changes(found: Found, workload: str, rate: float, from_: str, to: str) -> list[Cell]:
    cells = []
    for _, read, unit in _CHANGES:
        before, after = (found.mean(workload, arm, rate, read) for arm in (from_, to))
        if before is None or after is None or (unit == "%" and before <= 0):
            cells.append(NONE)
        elif unit == "points":
            cells.append(number(points(after, before), "{:+.1f}"))
        else:
            cells.append(number(100 * (after / before - 1), "{:+.0f} %"))
    return cells


def _change_heads() -> list[str]:
    return [f"{name}, points" if unit == "points" else name for name, _, unit in _CHANGES]


def parts(found: Found, workload: str, rates: Sequence[float]) -> Table:
    rows = [
        [text(arm.name), number(rate, "{:g}"), *_changes(found, workload, rate, ME, arm.name)]
        for rate in rates
        for arm in PARTS
        if found.group(workload, arm.name, rate).results
    ]
    title = f"{workload}: cacheopt without each of its parts"
    note = (
        "Change against cacheopt with all of them. A part is worth its place where its absence makes tails longer or"
        " fewer requests attain. The paper's own ablation is in no source that we have."
    )
    heads = ["cacheopt", "req/s", *_change_heads()]
    return Table(f"{workload}-parts", title, heads, rows, found.made(workload), note)


def memories(found: Found, workload: str, rates: Sequence[float]) -> Table:
    pairs = [*UNDER.items(), (ON_DEMAND.name, ME)]
    rows = [
        [text(alone), number(rate, "{:g}"), *_changes(found, workload, rate, alone, with_)]
        for rate in rates
        for alone, with_ in pairs
        if found.group(workload, with_, rate).results
    ]
    title = f"{workload}: what cacheopt's memory changes under each policy"
    note = (
        "With the memory policy against without; `cacheopt, memory on demand` is its order of requests alone. With it"
        " KV may be swapped, without it it is computed again (cacheopt's own order: swapped)."
    )
    heads = ["policy", "req/s", *_change_heads()]
    return Table(f"{workload}-memory", title, heads, rows, found.made(workload), note)
