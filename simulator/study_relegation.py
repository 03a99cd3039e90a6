"""What is wrong with relegation: who is put behind all others, and what that buys."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf

import numpy as np

from accelgen.simulator.detail import Requests
from accelgen.simulator.shown import NONE, Cell, Figure, Panel, Series, Table, number, text
from accelgen.simulator.study import Arm, Ask, Found, Scale, Section, faults
from accelgen.simulator.study_details import (
    Pick,
    attained,
    percent,
    requests_of,
    share,
)

RELEGATION = "relegation"
WITH, WITHOUT = (
    Arm.of("qoserve"),
    Arm("qoserve without relegation", "qoserve", {"relegation": False}),
)
TRACE = "azure2023_code"  # bursts, so that a queue has requests that will be late
RATES = (2.0, 4.0, 6.0)


def _asks(scale: Scale) -> list[Ask]:
    return scale.grid(RELEGATION, scale.scenario(TRACE), (WITH, WITHOUT), RATES, detailed=True)


def slices(parts: Sequence[Requests]) -> dict[str, Pick]:
    """All requests, and thirds of them by prompt length."""
    prompts = [tokens for one in parts for tokens in one.prompt]
    low, high = np.percentile(prompts, (100 / 3, 200 / 3)) if prompts else (0, 0)
    return {
        "all": lambda one, i: True,
        "short prompts": lambda one, i: one.prompt[i] <= low,
        "middle prompts": lambda one, i: low < one.prompt[i] <= high,
        "long prompts": lambda one, i: one.prompt[i] > high,
    }


def relegated(one: Requests, i: int) -> bool:
    return one.relegated[i]


def same(found: Found, rate: float) -> Iterator[tuple[Requests, Requests]]:
    """The requests of a seed with relegation and the same ones without; of seeds where both succeeded."""
    without = {
        r.setting.seed: r.detail for r in found.group(RELEGATION, WITHOUT.name, rate).results
    }
    for result in found.group(RELEGATION, WITH.name, rate).results:
        other = without.get(result.setting.seed)
        if result.detail is not None and other is not None:
            yield result.detail.requests, other.requests


def _rows(found: Found, rate: float, name: str, of: Pick) -> list[list[Cell]]:
    rows = []
    pairs = list(same(found, rate))
    for words, chosen in (("relegated", True), ("others", False)):
        picked = [
            (one, other, i)
            for one, other in pairs
            for i in range(min(len(one.prompt), len(other.prompt)))
            if of(one, i) and one.relegated[i] == chosen
        ]
        if not picked:
            rows.append(
                [text(name), number(rate, "{:g}"), text(words), number(0, "{:.0f}"), *[NONE] * 5]
            )
            continue
        count = len(picked)
        kept = sum(one.attained[i] for one, _, i in picked) / count
        kept_without = sum(other.attained[i] for _, other, i in picked) / count
        ttft_s = [inf if (first := one.ttft_s[i]) is None else first for one, _, i in picked]
        prompts = [one.prompt[i] for one, _, i in picked]
        rows.append(
            [
                text(name),
                number(rate, "{:g}"),
                text(words),
                number(count, "{:.0f}"),
                number(float(np.median(prompts)), "{:.0f}"),
                number(kept, "{:.1f}", 100),
                number(kept_without, "{:.1f}", 100),
                number(100 * (kept - kept_without), "{:+.1f}"),
                number(float(np.median(ttft_s)), "{:.1f}"),
            ]
        )
    return rows


def _table(found: Found) -> list[Table]:
    rows = []
    for rate in found.rates(RELEGATION):
        parts = requests_of(found, RELEGATION, WITH.name, rate)
        for name, of in slices(parts).items():
            rows += _rows(found, rate, name, of)
    heads = [
        "third", "req/s", "requests", "how many", "prompt p50", "attained %", "the same without relegation %", "points",
        "TTFT p50 s",
    ]  # fmt: skip
    note = "The same requests, drawn by the same seeds, under qoserve with and without relegation."
    return [
        Table("relegation", "Fate of relegated requests", heads, rows, found.made(RELEGATION), note)
    ]


def _draw(found: Found) -> list[Figure]:
    panels = []
    for rate in found.rates(RELEGATION):
        parts = requests_of(found, RELEGATION, WITH.name, rate)
        picks = slices(parts) if parts else {}
        counts = [percent(share(parts, relegated, of)) for of in picks.values()]
        bars = [Series("relegated", list(picks), counts)]
        panels.append(
            Panel(f"Relegated at {rate:g} requests/s", "% of these", "prompts", bars, "bars")
        )
        series = []
        for arm in (WITH, WITHOUT):
            own = requests_of(found, RELEGATION, arm.name, rate)
            kept = [percent(share(own, attained, of)) for of in picks.values()]
            series.append(Series(arm.name, list(picks), kept))
        panels.append(
            Panel(f"Attained at {rate:g} requests/s", "% of these", "prompts", series, "bars")
        )
    return [
        Figure("relegation", "Who is relegated, and what it buys", panels, found.made(RELEGATION))
    ]


def _say(found: Found) -> list[str]:
    said = []
    for rate in found.rates(RELEGATION):
        pairs = list(same(found, rate))
        total = sum(len(one.prompt) for one, _ in pairs)
        gone = sum(sum(one.relegated) for one, _ in pairs)
        if not total:
            continue
        words = f"At {rate:g} req/s {gone} of {total} requests are relegated"
        if gone:
            late = sum(
                not a
                for one, _ in pairs
                for a, r in zip(one.attained, one.relegated, strict=True)
                if r
            )
            words += f"; {100 * late / gone:.0f} % of these miss their objectives"
        kept, before = (sum(sum(pair[k].attained) for pair in pairs) for k in (0, 1))
        said.append(f"{words}. In all {kept} attain, without relegation {before}.")
    return [*said, *faults(found, RELEGATION)]


SECTION = Section(
    name="relegation",
    title="What is wrong: relegation",
    about="Under overload QoServe puts prompts that would be late behind all others. Who is that, what becomes of them,"
    " and what do the others gain? Azure's code completion with its bursts.",
    asks=_asks,
    tabulate=_table,
    draw=_draw,
    say=_say,
)
