"""What is wrong with using up slack: gaps as long as their objective, and what becomes of them under load."""

from __future__ import annotations

import numpy as np
from msgspec import structs

from accelgen.simulator.detail import BIN, BINS
from accelgen.simulator.groups import figure_of
from accelgen.simulator.shown import Figure, Line, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults, sweep
from accelgen.simulator.study_budget import TRACE
from accelgen.simulator.study_details import details, percent
from accelgen.simulator.study_ratios import ATTAINED, GAP
from accelgen.simulator.times import Rule

ARMS = tuple(map(Arm.of, ("sarathi", "accelgen", "accelgen-calibrated", "qoserve", "slidingserve")))
RATES = (3.0, 4.0, 5.0, 6.0)
SLACK = "slack"


def _asks(scale: Scale) -> list[Ask]:
    scenario = structs.replace(scale.scenario(TRACE), rule=GAP)
    return scale.grid(SLACK, scenario, ARMS, scale.pick(RATES), detailed=True)


def gaps_between(found: Found, arm: str, rate: float, low: float, high: float) -> float | None:
    """Share of the gaps that last from `low` to `high` times their objective; high infinite: the rest."""
    counts = np.zeros(BINS + 1)
    for detail in details(found, SLACK, arm, rate):
        counts += np.array(detail.gaps)
    begin, end = round(low / BIN), BINS + 1 if high == float("inf") else round(high / BIN)
    return float(counts[begin:end].sum() / counts.sum()) if counts.sum() else None


def _table(found: Found) -> list[Table]:
    rows = []
    for arm in found.arms(SLACK):
        for rate in found.rates(SLACK):
            group = found.group(SLACK, arm, rate)
            rows.append(
                [
                    text(arm, "fault" if group.fault else ""),
                    number(rate, "{:g}"),
                    number(gaps_between(found, arm, rate, 0.8, 1.0), "{:.2f}", 100),
                    number(gaps_between(found, arm, rate, 1.0, float("inf")), "{:.2f}", 100),
                    number(group.mean(figure_of("latency.itl_s.mean")), "{:.1f}", 1000),
                    number(group.mean(figure_of("latency.ttft_s.p99")), "{:.2f}"),
                    number(group.mean(ATTAINED), "{:.1f}", 100),
                    number(
                        group.mean(figure_of(f"judged.attainment.{Rule.CUMULATIVE}")), "{:.1f}", 100
                    ),
                ]
            )
    heads = [
        "policy", "req/s", "gaps of 0.8 to 1 times the objective %", "longer than it %", "gap mean ms", "TTFT p99 s",
        "attained, every gap %", "attained, cumulative %",
    ]  # fmt: skip
    note = (
        "The simulated device is the fitted model itself, its host time apart, and its times do not vary: what greedy"
        " use costs where a prediction is wrong is not in these figures. qoserve and slidingserve go by cumulative"
        " deadlines."
    )
    title = "Gaps between tokens beside their objective"
    return [Table("slack", title, heads, rows, found.made(SLACK), note)]


def _draw(found: Found) -> list[Figure]:
    rates = found.rates(SLACK)
    arms = found.arms(SLACK)
    panels = []
    for rate in sorted({*rates[:1], *rates[-1:]}):
        lines = []
        for arm in arms:
            centres = [BIN * (i + 0.5) for i in range(0, BINS, 2)]
            shares = [
                gaps_between(found, arm, rate, BIN * i, BIN * (i + 2)) for i in range(0, BINS, 2)
            ]
            lines.append(Series(arm, centres, [percent(share) for share in shares]))
        title, goal = f"Gaps at {rate:g} requests/s", Line("x", 1.0, "the objective")
        panels.append(
            Panel(
                title,
                "gap as a share of its objective",
                "% of gaps",
                lines,
                y_scale="log",
                lines=[goal],
            )
        )
    longer = [
        Series(
            arm,
            rates,
            [percent(gaps_between(found, arm, rate, 1.0, float("inf"))) for rate in rates],
        )
        for arm in arms
    ]
    panels.append(Panel("Gaps longer than the objective", "requests/s sent", "% of gaps", longer))
    kept = sweep(found, SLACK, arms, ATTAINED, 100)
    panels.append(Panel("Attainment, every gap", "requests/s sent", "% of requests sent", kept))
    return [Figure("slack", "How much of the slack is used", panels, found.made(SLACK))]


def _say(found: Found) -> list[str]:
    rates = found.rates(SLACK)
    said = []
    for arm in found.arms(SLACK):
        words = []
        for rate in sorted({*rates[:1], *rates[-1:]}):
            near = gaps_between(found, arm, rate, 0.8, 1.0)
            over = gaps_between(found, arm, rate, 1.0, float("inf"))
            kept = found.mean(SLACK, arm, rate, ATTAINED)
            mean_s = found.mean(SLACK, arm, rate, figure_of("latency.itl_s.mean"))
            if near is not None and over is not None and kept is not None and mean_s is not None:
                words.append(
                    f"at {rate:g} req/s {100 * near:.1f} % of its gaps are 0.8 to 1 times the objective,"
                    f" {100 * over:.2f} % are longer, the mean is {1000 * mean_s:.0f} ms,"
                    f" {100 * kept:.0f} % of the requests keep all"
                )
        if words:
            said.append(f"{arm}: {'; '.join(words)}.")
    return [*said, *faults(found, SLACK)]


SECTION = Section(
    name="slack",
    title="What is wrong: slack used greedily",
    about="A rule that makes every iteration as long as the tightest objective allows leaves nothing for an error of"
    " the model, and slows all decodes down to the pace of the tightest. How near to the objective do gaps come, and"
    " what becomes of it when the load rises? Azure's conversations, 50 ms per token.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
