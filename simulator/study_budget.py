"""What is wrong with the literal rule: a budget in proportion to the objective, although below the pivot iterations do
not get shorter in proportion."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from msgspec import structs

from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.simulator.device import Device, Iteration
from accelgen.simulator.groups import figure_of
from accelgen.simulator.scenarios import Goal, Scenario
from accelgen.simulator.shown import Figure, Line, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_details import details, percent
from accelgen.simulator.study_ratios import ATTAINED, GAP

TRACE = "azure2023_conv"
OBJECTIVES_MS = (15, 20, 30, 50, 80)
RATE = 3.0  # requests/s: far from what the device can do, so that it is the rule that misses
ARMS = (
    Arm.of("accelgen"), Arm.of("accelgen-calibrated"), Arm.of("accelgen-adaptive"), Arm.of("sarathi")
)  # fmt: skip


def _workload(objective_ms: float) -> str:
    return f"{TRACE}, {objective_ms:g} ms per token"


def _scenario(scale: Scale, objective_ms: float) -> Scenario:
    found = scale.scenario(TRACE)
    parts = [structs.replace(part, tpot=Goal(base_s=objective_ms / 1000)) for part in found.parts]
    return structs.replace(found, parts=parts, rule=GAP)


def _asks(scale: Scale) -> list[Ask]:
    return [
        ask
        for ms in OBJECTIVES_MS
        for ask in scale.grid(_workload(ms), _scenario(scale, ms), ARMS, [RATE], detailed=True)
    ]


def literal_budget(device: Device, most: int, objective_s: float) -> int:
    """S_b = S_pf * SLO / T_pf in tokens, from the fitted model."""
    size, seconds = CostModel(device.coefficients).pivot(most)
    return max(1, int(size * objective_s / seconds))


def prompt_s(device: Device, tokens: int) -> float:
    """What an iteration of so many prompt tokens takes."""
    return device.seconds(Iteration(Work(tokens, prefill_work=tokens * tokens / 2), sequences=1))


def overlong(found: Found, workload: str, arm: str) -> float | None:
    """Share of the iterations with decodes that take longer than the tightest objective of these."""
    longer = some = 0
    for detail in details(found, workload, arm, RATE):
        columns = detail.iterations
        for run_s, tightest_s in zip(columns.run_s, columns.tightest_s, strict=True):
            some += tightest_s is not None
            longer += tightest_s is not None and run_s > tightest_s
    return longer / some if some else None


def forward_sizes(found: Found, workload: str, arm: str) -> list[int]:
    """Tokens of the iterations that have prompts and decodes."""
    return [
        prefill + decodes
        for detail in details(found, workload, arm, RATE)
        for prefill, decodes in zip(
            detail.iterations.prefill, detail.iterations.decodes, strict=True
        )
        if prefill and decodes
    ]


def _table(found: Found) -> list[Table]:
    scenario = _scenario(found.scale, OBJECTIVES_MS[0])
    device, most = scenario.device(), scenario.max_num_batched_tokens
    rows = []
    for ms in OBJECTIVES_MS:
        budget = literal_budget(device, most, ms / 1000)
        for arm in ARMS:
            workload = _workload(ms)
            sizes = forward_sizes(found, workload, arm.name)
            group = found.group(workload, arm.name, RATE)
            rows.append(
                [
                    text(arm.name),
                    number(ms, "{:g}"),
                    number(budget, "{:.0f}"),
                    number(prompt_s(device, budget), "{:.1f}", 1000),
                    number(float(np.median(sizes)) if sizes else None, "{:.0f}"),
                    number(float(np.percentile(sizes, 90)) if sizes else None, "{:.0f}"),
                    number(overlong(found, workload, arm.name), "{:.1f}", 100),
                    number(group.mean(ATTAINED), "{:.1f}", 100),
                    number(group.mean(figure_of("latency.ttft_s.mean")), "{:.2f}"),
                ]
            )
    heads = [
        "policy", "objective ms", "literal budget, tokens", "which takes ms", "tokens used, p50", "p90",
        "iterations beyond the objective %", "attained %", "TTFT mean s",
    ]  # fmt: skip
    note = (
        "Tokens used: of iterations that have both prompts and decodes. What the literal budget takes: all of it one"
        " prompt."
    )
    made = found.made(*map(_workload, OBJECTIVES_MS))
    return [Table("budget", f"Iterations at {RATE:g} requests/s", heads, rows, made, note)]


def _draw(found: Found) -> list[Figure]:
    scenario = _scenario(found.scale, OBJECTIVES_MS[0])
    device, most = scenario.device(), scenario.max_num_batched_tokens
    size, pivot_s = CostModel(device.coefficients).pivot(most)
    objectives = [float(ms) for ms in OBJECTIVES_MS]
    takes = [1000 * prompt_s(device, literal_budget(device, most, ms / 1000)) for ms in objectives]
    model = Panel(
        "What the literal budget takes (fitted model)", "objective, ms per token", "iteration, ms",
        [Series("accelgen", objectives, list(takes)), Series("the objective", objectives, list(objectives))],
        x_scale="log", y_scale="log", lines=[Line("x", 1000 * pivot_s, f"time of the pivot ({size} tokens)")],
    )  # fmt: skip

    def panel(title: str, unit: str, read: Callable[[str, str], float | None]) -> Panel:
        series = [
            Series(
                arm.name,
                objectives,
                [percent(read(_workload(ms), arm.name)) for ms in OBJECTIVES_MS],
            )
            for arm in ARMS
        ]
        return Panel(title, "objective, ms per token", unit, series, x_scale="log")

    panels = [
        model,
        panel(
            "Iterations beyond the objective",
            "% of those with decodes",
            lambda w, arm: overlong(found, w, arm),
        ),
        panel(
            "Attainment, every gap",
            "% of requests sent",
            lambda w, arm: found.mean(w, arm, RATE, ATTAINED),
        ),
        _cloud(found, 20, size),
    ]
    title = "A budget in proportion to the objective"
    return [Figure("budget", title, panels, found.made(*map(_workload, OBJECTIVES_MS)))]


def _cloud(found: Found, ms: int, size: int) -> Panel:
    """Every iteration: its size and its time; at most 1,500 of each policy are drawn."""
    series = []
    for arm in ARMS[:2]:
        for detail in details(found, _workload(ms), arm.name, RATE)[:1]:
            columns = detail.iterations
            step = max(1, len(columns.run_s) // 1500)
            tokens = np.add(columns.prefill, columns.decodes)[::step]
            series.append(
                Series(
                    arm.name, [float(n) for n in tokens], [1000 * s for s in columns.run_s[::step]]
                )
            )
    lines = [Line("y", ms, f"objective of the cloud, {ms} ms"), Line("x", size, "the pivot")]
    title = f"Iterations at an objective of {ms} ms"
    return Panel(title, "tokens", "iteration, ms", series, "points", "log", "log", lines)


def _say(found: Found) -> list[str]:
    scenario = _scenario(found.scale, OBJECTIVES_MS[0])
    device, most = scenario.device(), scenario.max_num_batched_tokens
    size, pivot_s = CostModel(device.coefficients).pivot(most)
    said = [
        f"{scenario.model} on {scenario.hardware} saturates at {size} tokens, which take {1000 * pivot_s:.0f} ms"
        " without the host. The literal rule draws a line from there to the origin, but an iteration of a single token"
        f" takes {1000 * prompt_s(device, 1):.0f} ms."
    ]
    for ms in OBJECTIVES_MS:
        budget = literal_budget(device, most, ms / 1000)
        literal, fitted = (
            overlong(found, _workload(ms), arm) for arm in ("accelgen", "accelgen-calibrated")
        )
        kept = [found.mean(_workload(ms), arm.name, RATE, ATTAINED) for arm in ARMS[:2]]
        if literal is None or fitted is None or kept[0] is None or kept[1] is None:
            continue
        said.append(
            f"At {ms} ms it grants {budget} tokens, which take {1000 * prompt_s(device, budget):.1f} ms;"
            f" {100 * literal:.1f} % of accelgen's iterations with decodes take longer than the objective"
            f" ({100 * fitted:.1f} % of accelgen-calibrated's), and {100 * kept[0]:.0f} % of its requests keep every"
            f" gap and the first token ({100 * kept[1]:.0f} %)."
        )
    return [*said, *faults(found, *map(_workload, OBJECTIVES_MS))]


SECTION = Section(
    name="budget",
    title="What is wrong: the literal budget below the pivot",
    about="The budget is pivot size times objective by pivot time: a line through the origin. Iterations have a floor."
    " Azure's conversations with objectives per token from below to beyond the time of the pivot.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
