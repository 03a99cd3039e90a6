"""accelgen-adaptive against literal accelgen: on two shapes of models and several devices, whole and part by part."""

from __future__ import annotations

from accelgen.scheduler.cost_model import CostModel
from accelgen.simulator.groups import figure_of
from accelgen.simulator.shown import Figure, Panel, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults, sweep
from accelgen.simulator.study_ratios import ATTAINED, GAP, GOODPUT, TOKENS

ARMS = (
    Arm.of("accelgen"),
    Arm.of("accelgen-adaptive"),
    Arm("adaptive: pivot alone", "accelgen-adaptive", {"overtake": False}),
    Arm("adaptive: overtaking alone", "accelgen-adaptive", {"learn_pivot": False}),
    Arm.of("accelgen-calibrated"),
)
DEVICES = {
    ("opt-13b", "a100"): (0.5, 1.0, 2.0),
    ("llama-3-8b", "a100"): (2.0, 4.0, 8.0),
    ("llama-3-8b", "h100"): (4.0, 8.0, 16.0),
    ("llama-3-8b", "l40s"): (1.0, 2.0, 4.0),
}
"""Rates in requests/s: from where most attain to beyond what the device does. [ours]"""


def _workload(model: str, hardware: str) -> str:
    return f"{model} on {hardware}"


def _asks(scale: Scale) -> list[Ask]:
    asks: list[Ask] = []
    for (model, hardware), rates in DEVICES.items():
        scenario = scale.scenario("accelgen", model=model, hardware=hardware)
        asks += scale.grid(_workload(model, hardware), scenario, ARMS, rates)
    return asks


def _table(found: Found) -> list[Table]:
    rows = []
    for (model, hardware), rates in DEVICES.items():
        workload = _workload(model, hardware)
        for rate in rates:
            literal = found.mean(workload, "accelgen", rate, GOODPUT)
            for arm in ARMS:
                group = found.group(workload, arm.name, rate)
                goodput = group.mean(GOODPUT)
                gain = goodput / literal if goodput is not None and literal else None
                rows.append(
                    [
                        text(workload),
                        number(rate, "{:g}"),
                        text(arm.name, "fault" if group.fault else ""),
                        number(goodput, "{:.3f}"),
                        number(
                            gain,
                            "×{:.2f}",
                            mark="best" if gain is not None and gain > 1.005 else "",
                        ),
                        number(group.mean(ATTAINED), "{:.1f}", 100),
                        number(group.mean(figure_of("judged.ttft")), "{:.1f}", 100),
                        number(group.mean(figure_of(f"judged.tpot.{GAP}")), "{:.1f}", 100),
                        number(group.mean(TOKENS), "{:.0f}"),
                        number(group.mean(figure_of("latency.jct_s.mean")), "{:.1f}"),
                        number(group.mean(figure_of("machine.preemptions")), "{:.0f}"),
                    ]
                )
    heads = [
        "device", "req/s", "policy", "goodput req/s", "against accelgen", "attained %", "TTFT kept %",
        "every gap kept %", "tokens/s", "JCT mean s", "preemptions",
    ]  # fmt: skip
    return [
        Table(
            "adaptive", "accelgen-adaptive beside accelgen", heads, rows, found.made(*_workloads())
        )
    ]


def _workloads() -> list[str]:
    return [_workload(*device) for device in DEVICES]


def _draw(found: Found) -> list[Figure]:
    names = [arm.name for arm in ARMS]
    panels = [
        Panel(f"{workload}: attainment", "requests/s sent", "% of requests sent",
               sweep(found, workload, names, ATTAINED, 100), x_scale="log")
        for workload in _workloads()
    ]  # fmt: skip
    return [Figure("adaptive", "Attainment, every gap", panels, found.made(*_workloads()))]


def _say(found: Found) -> list[str]:
    said = []
    for device in DEVICES:
        workload = _workload(*device)
        ratios = []
        for rate in found.rates(workload):
            literal = found.mean(workload, "accelgen", rate, GOODPUT)
            adaptive = found.mean(workload, "accelgen-adaptive", rate, GOODPUT)
            if literal and adaptive is not None:
                ratios.append((rate, adaptive / literal))
        if ratios:
            scenario = found.results(workload)[0].setting.scenario
            size, pivot_s = CostModel(scenario.device().coefficients).pivot(
                scenario.max_num_batched_tokens
            )
            each = ", ".join(f"{ratio:.2f} at {rate:g} req/s" for rate, ratio in ratios)
            said.append(
                f"{workload}: the goodput of accelgen-adaptive is {each} times that of accelgen. The fitted pivot is"
                f" {size} tokens, {1000 * pivot_s:.0f} ms."
            )
    return [*said, *faults(found, *_workloads())]


SECTION = Section(
    name="adaptive",
    title="accelgen-adaptive against accelgen",
    about="The paper's own future work, as we understand it: a pivot learnt from iterations, and long prompts that give"
    " way. AccelGen's workload and objectives with 12 GB of KV, on two shapes of models and three devices; each of the"
    " two rules alone beside both.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
