"""What is wrong with predicted lengths: what true ones would be worth, and what bad ones cost."""

from __future__ import annotations

from accelgen.simulator.groups import figure_of
from accelgen.simulator.shown import Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_details import percent
from accelgen.simulator.study_ratios import end_to_end
from accelgen.simulator.times import Rule

POLICIES = ("accelgen", "edf", "qoserve", "slidingserve")
KNOWLEDGE: tuple[tuple[str, float | None], ...] = (
    ("learnt", None), ("true", 0.0), ("off by sigma 0.5", 0.5), ("off by sigma 1", 1.0)
)  # fmt: skip
LENGTH_WORKLOADS = {"accelgen_offline": 1.0, "three_class_conv": 4.5}


def _name(workload: str) -> str:
    return f"lengths, {workload}"


def _arm(policy: str, words: str) -> str:
    return f"{policy}, {words}"


def _asks(scale: Scale) -> list[Ask]:
    arms = [
        Arm(_arm(policy, words), policy, length_error=sigma)
        for policy in POLICIES
        for words, sigma in KNOWLEDGE
    ]
    return [
        ask
        for workload, rate in LENGTH_WORKLOADS.items()
        for ask in scale.grid(_name(workload), scale.scenario(workload), arms, [rate])
    ]


def _attained(found: Found, workload: str, policy: str, words: str) -> float | None:
    group = found.group(_name(workload), _arm(policy, words), LENGTH_WORKLOADS[workload])
    rules = {result.setting.scenario.rule for result in group.results}
    return group.mean(figure_of(f"judged.attainment.{Rule(rules.pop())}")) if rules else None


def _table(found: Found) -> list[Table]:
    rows = []
    for workload, rate in LENGTH_WORKLOADS.items():
        for policy in POLICIES:
            row = [text(policy), text(workload), number(rate, "{:g}")]
            for words, _ in KNOWLEDGE:
                row.append(number(_attained(found, workload, policy, words), "{:.1f}", 100))
            for words, _ in KNOWLEDGE:
                arm = _arm(policy, words)
                row.append(
                    number(found.mean(_name(workload), arm, rate, end_to_end), "{:.1f}", 100)
                )
            rows.append(row)
    heads = ["policy", "workload", "req/s"]
    heads += [f"attained, lengths {words} %" for words, _ in KNOWLEDGE]
    heads += [f"completion times kept, lengths {words} %" for words, _ in KNOWLEDGE]
    note = (
        "Learnt: the median of the last outputs of the same class, as live. True: the output of each request. Off: that"
        " times exp(normal(0, sigma)). Lengths matter to requests with a completion time only: policies use them for"
        " nothing else."
    )
    made = found.made(*map(_name, LENGTH_WORKLOADS))
    return [Table("lengths", "What it is worth to know output lengths", heads, rows, made, note)]


def _draw(found: Found) -> list[Figure]:
    panels = []
    for workload, rate in LENGTH_WORKLOADS.items():
        series = [
            Series(
                words,
                list(POLICIES),
                [percent(_attained(found, workload, one, words)) for one in POLICIES],
            )
            for words, _ in KNOWLEDGE
        ]
        panels.append(
            Panel(f"{workload} at {rate:g} requests/s", "% that attain", "policy", series, "bars")
        )
    made = found.made(*map(_name, LENGTH_WORKLOADS))
    return [Figure("lengths", "Attainment with learnt, true and wrong lengths", panels, made)]


def _say(found: Found) -> list[str]:
    said = []
    for workload, rate in LENGTH_WORKLOADS.items():
        words = []
        for policy in POLICIES:
            learnt, true, _, worst = (
                _attained(found, workload, policy, known) for known, _ in KNOWLEDGE
            )
            if learnt is not None and true is not None and worst is not None:
                words.append(
                    f"{policy} {100 * (true - learnt):+.1f} and {100 * (worst - learnt):+.1f}"
                )
        if words:
            said.append(
                f"{workload} at {rate:g} req/s, points of attainment with true lengths, and with lengths off by a"
                f" factor of e (sigma 1), against learnt ones: {'; '.join(words)}."
            )
    return [*said, *faults(found, *map(_name, LENGTH_WORKLOADS))]


SECTION = Section(
    name="lengths",
    title="What is wrong: lengths that nobody knows",
    about="Completion times are planned with predicted output lengths. What would true ones be worth, what do bad ones"
    " cost?",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
