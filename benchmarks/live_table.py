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
        for name in names
        for rate in rates
    }
    print(f"| req/s | policy | {' | '.join(head for head, _ in FIGURES.values())} |")
    print("|---" * (2 + len(FIGURES)) + "|")
    for rate in rates:
        for name in names:
            cells = [form(key, value) for key, value in medians[name, rate].items()]
            print(f"| {rate:.2f} | {name} | {' | '.join(cells)} |")
    print(
        f"\n{names[0]} against the others: times lower or higher (better: more than 1), shares in points"
    )
    print(f"| req/s | against | {' | '.join(head for head, _ in FIGURES.values())} |")
    print("|---" * (2 + len(FIGURES)) + "|")
    ratios = []
    for rate in rates:
        for name in names[1:]:
            one = {
                key: compare(key, medians[names[0], rate], medians[name, rate]) for key in FIGURES
            }
            ratios.append({"rate": rate, "against": name, **one})
            print(f"| {rate:.2f} | {name} | {' | '.join(map(_ratio_form, one, one.values()))} |")
    highest = {
        name: highest_rate(rates, [medians[name, rate]["attained"] for rate in rates], wanted)
        for name in names
    }
    print(f"\nhighest rate at {wanted:.0%} attained: " + "; ".join(
        f"{name} {'-' if rate is None else f'{rate:.2f} req/s'}" for name, rate in highest.items()
    ))  # fmt: skip
    mine = highest[names[0]]
    for name in names[1:]:
        theirs = highest[name]
        if mine and theirs:
            print(f"{names[0]} to {name}: {mine / theirs:.2f} times")
    return {"medians": [{"policy": p, "rate": r, **m} for (p, r), m in medians.items()], "ratios": ratios,
            "highest": highest}  # fmt: skip


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
