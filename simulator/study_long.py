"""What is wrong with the order: long prompts that wait."""

from __future__ import annotations

from accelgen.simulator.shown import Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Ask, Found, Scale, Section, faults
from accelgen.simulator.study_details import (
    attained,
    in_class,
    percent,
    percentile,
    requests_of,
    share,
)
from accelgen.simulator.study_ratios import WHOLE

LONG = "long prompts"
LONG_RATES = (1.0, 2.0)
CLASSES = ("short", "long")


def _asks(scale: Scale) -> list[Ask]:
    return scale.grid(LONG, scale.scenario("accelgen"), WHOLE, LONG_RATES, detailed=True)


def _table(found: Found) -> list[Table]:
    rows = []
    for rate in found.rates(LONG):
        for arm in found.arms(LONG):
            parts = requests_of(found, LONG, arm, rate)
            jct = [percentile(parts, "jct_s", in_class(name), 50) for name in CLASSES]
            row = [
                text(arm, "fault" if found.group(LONG, arm, rate).fault else ""),
                number(rate, "{:g}"),
            ]
            for q in (50, 99):
                row += [
                    number(percentile(parts, "ttft_s", in_class(name), q), "{:.1f}")
                    for name in CLASSES
                ]
            row += [number(value, "{:.1f}") for value in jct]
            row += [
                number(share(parts, attained, in_class(name)), "{:.1f}", 100) for name in CLASSES
            ]
            row.append(
                number(
                    share(parts, lambda one, i: one.preemptions[i] > 0, in_class("long")),
                    "{:.1f}",
                    100,
                )
            )
            rows.append(row)
    pairs = ("TTFT p50 s", "TTFT p99 s", "JCT p50 s", "attained %")
    heads = [
        "policy",
        "req/s",
        *(f"{name}: {head}" for head in pairs for name in CLASSES),
        "long: preempted %",
    ]
    note = "Short and long are the parts of the scenario: questions, and papers to be summarised. A dash: never."
    return [Table("long-prompts", "Short and long prompts", heads, rows, found.made(LONG), note)]


def _draw(found: Found) -> list[Figure]:
    arms, panels = found.arms(LONG), []
    for rate in found.rates(LONG):
        parts = {arm: requests_of(found, LONG, arm, rate) for arm in arms}
        kept, waited = [], []
        for name in CLASSES:
            own = in_class(name)
            kept.append(Series(name, arms, [percent(share(parts[a], attained, own)) for a in arms]))
            waited.append(
                Series(name, arms, [percentile(parts[a], "ttft_s", own, 90) for a in arms])
            )
        panels.append(
            Panel(f"Attained at {rate:g} requests/s", "% of the class", "policy", kept, "bars")
        )
        title = f"Time to first token, p90, at {rate:g} requests/s"
        panels.append(Panel(title, "s", "policy", waited, "bars"))
    return [Figure("long-prompts", "Short and long prompts", panels, found.made(LONG))]


def _say(found: Found) -> list[str]:
    said = []
    for rate in found.rates(LONG):
        words = []
        for arm in found.arms(LONG):
            parts = requests_of(found, LONG, arm, rate)
            short, long = (share(parts, attained, in_class(name)) for name in CLASSES)
            if short is not None and long is not None:
                words.append(
                    (100 * (short - long), f"{arm} {100 * short:.0f} and {100 * long:.0f} %")
                )
        if words:
            words.sort(reverse=True)
            worst, best = words[0], words[-1]
            said.append(
                f"At {rate:g} req/s the policies that favour short prompts most and least, attainment of short and of"
                f" long ones: {worst[1]}; {best[1]}."
            )
    return [*said, *faults(found, LONG)]


SECTION = Section(
    name="long-prompts",
    title="What is wrong: long prompts that wait",
    about="An order by remaining time, or by what fits, lets short prompts overtake long ones again and again. Who"
    " pays, under which policy? AccelGen's setting, the two kinds of requests apart.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
