"""What a comparison of live policies has found: medians over rounds, ratios, the highest rate (live_policies.py)."""

from __future__ import annotations

from statistics import median
from typing import Any

Figures = dict[str, float | None]
FIGURES: dict[str, tuple[str, bool]] = {
    "ttft_p95_ms": ("TTFT p95 ms", True),
    "itl_p95_ms": ("TBT p95 ms", True),
    "itl_p99_ms": ("TBT p99 ms", True),
    "ttft_kept": ("TTFT kept", False),
    "tbt_kept": ("every gap kept", False),
    "attained": ("attained, cumulative", False),
    "goodput": ("goodput req/s", False),
    "preemptions": ("preemptions", True),
}
"""What is compared: its name in tables, and whether less of it is better."""


def report(
    rows: list[dict[str, Any]], names: list[str], rates: list[float], wanted: float
) -> dict[str, Any]:
    """Prints the tables; what is kept of them."""
    medians = {
        (name, rate): {key: _median(rows, name, rate, key) for key in FIGURES}
        for rate in rates
        for name in names
    }
    _print_head("policy")
    for (name, rate), figures in medians.items():
        cells = [form(key, value) for key, value in figures.items()]
        print(f"| {rate:.2f} | {name} | {' | '.join(cells)} |")
    ratios = [
        {"rate": rate, "against": name}
        | {key: compare(key, medians[names[0], rate], medians[name, rate]) for key in FIGURES}
        for rate in rates
        for name in names[1:]
    ]
    if ratios:
        print(f"\n{names[0]} to the others: times better (shares: points more)")
        _print_head("against")
    for one in ratios:
        cells = [_ratio_form(key, one[key]) for key in FIGURES]
        print(f"| {one['rate']:.2f} | {one['against']} | {' | '.join(cells)} |")
    highest = {
        name: highest_rate(rates, [medians[name, rate]["attained"] for rate in rates], wanted)
        for name in names
    }
    _print_highest(highest, names[0], rates[-1], wanted)
    kept = [{"policy": name, "rate": rate, **one} for (name, rate), one in medians.items()]
    return {"medians": kept, "ratios": ratios, "highest": highest}


def _print_head(second: str) -> None:
    print(f"| req/s | {second} | {' | '.join(head for head, _ in FIGURES.values())} |")
    print("|---" * (2 + len(FIGURES)) + "|")


def _print_highest(highest: dict[str, float | None], mine: str, last: float, wanted: float) -> None:
    print(f"\nhighest rate at {wanted:.0%} attained:")
    ours = highest[mine]
    for name, rate in highest.items():
        least = "at least " if rate == last else ""
        words = "below all rates tried" if rate is None else f"{least}{rate:.2f} req/s"
        times = f", {mine} {ours / rate:.2f} times" if ours and rate and name != mine else ""
        print(f"  {name} {words}{times}")


def _median(rows: list[dict[str, Any]], name: str, rate: float, key: str) -> float | None:
    values = [row[key] for row in rows if (row["policy"], row["rate"]) == (name, rate)]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def compare(key: str, ours: Figures, theirs: Figures) -> float | None:
    """How much better ours is: times, or for shares points."""
    mine, other = ours[key], theirs[key]
    if mine is None or other is None:
        return None
    if key in ("ttft_kept", "tbt_kept", "attained"):
        return 100 * (mine - other)
    above, below = (other, mine) if FIGURES[key][1] else (mine, other)
    return above / below if below else None


def highest_rate(rates: list[float], shares: list[float | None], wanted: float) -> float | None:
    """Where attainment first falls below `wanted`, ascending `rates`: the highest of all if it never does, None if it
    is below at the lowest."""
    before: tuple[float, float] | None = None
    for rate, share in zip(rates, shares, strict=True):
        if share is None:
            continue
        if share < wanted:
            if before is None:
                return None
            low, high = before
            return low + (rate - low) * (high - wanted) / (high - share)
        before = rate, share
    return before[0] if before else None


def form(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    if key in ("ttft_kept", "tbt_kept", "attained"):
        return f"{value:.1%}"
    return f"{value:.3f}" if key == "goodput" else f"{value:.0f}"


def _ratio_form(key: str, value: float | None) -> str:
    if value is None:
        return "-"
    share = key in ("ttft_kept", "tbt_kept", "attained")
    return f"{value:+.1f}" if share else f"{value:.2f}"
