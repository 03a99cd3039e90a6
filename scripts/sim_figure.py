"""Figures of simulations. matplotlib comes with the extra `plots`; without it there are tables, CSV and JSON."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelgen.simulator.capacity import Capacity
from accelgen.simulator.groups import Group, Read, figure_of
from accelgen.simulator.times import Rule

NO_MATPLOTLIB = "no figure: it needs matplotlib (pip install 'accelgen[plots]')"
_MARKERS = "osD^vP*X<>hp"


def _pyplot() -> Any:
    """matplotlib's pyplot, without a display. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _panels(rule: Rule) -> list[tuple[str, Read, str]]:
    """What figures show: title, figure, scale."""
    return [
        (f"goodput, {_words(rule)} (req/s)", figure_of(f"goodput.{rule}"), "linear"),
        (f"attainment, {_words(rule)}", figure_of(f"judged.attainment.{rule}"), "linear"),
        ("output tokens/s", figure_of("token_throughput"), "linear"),
        ("TTFT p99 (s)", figure_of("latency.ttft_s.p99"), "log"),
        ("TPOT p99 (s)", figure_of("latency.tpot_s.p99"), "log"),
        ("JCT mean (s)", figure_of("latency.jct_s.mean"), "log"),
    ]


def _words(rule: Rule) -> str:
    return rule.replace("_", " ")


def draw_comparison(
    groups: Sequence[Group],
    rule: Rule,
    title: str,
    path: Path,
    limits: tuple[float, float] | None = None,
) -> None:
    """Bars, one per policy, with the range over the seeds; `limits`: bounds on goodput and attainment, as lines. Raises
    ImportError."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 1.6 + 0.5 * len(groups)), sharey=True)
    names = [group.policy for group in groups]
    for axis, (head, read, scale) in zip(axes.flat, _panels(rule), strict=True):
        means = [group.mean(read) or 0.0 for group in groups]
        ranges = [group.values(read) or [0.0] for group in groups]
        below = [max(0.0, m - min(r)) for m, r in zip(means, ranges, strict=True)]
        above = [max(0.0, max(r) - m) for m, r in zip(means, ranges, strict=True)]
        colours = [f"C{i % 10}" for i in range(len(groups))]
        axis.barh(names, means, xerr=(below, above), color=colours, ecolor="0.3")
        axis.set_title(head, fontsize=9)
        if scale == "log" and any(means):
            axis.set_xscale("log")
        axis.invert_yaxis() if not axis.yaxis_inverted() else None
        axis.grid(axis="x", alpha=0.3)
    for axis, limit in zip(axes.flat, limits or (), strict=False):
        axis.axvline(limit, color="0.2", linestyle="--", linewidth=1)
    _save(pyplot, figure, title, path)


def draw_sweep(groups: Sequence[Group], rule: Rule, title: str, path: Path) -> None:
    """Lines over the rate, one per policy, with the range over the seeds. Raises ImportError."""
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(2, 3, figsize=(13, 7), sharex=True)
    policies = list(dict.fromkeys(group.policy for group in groups))
    for axis, (head, read, scale) in zip(axes.flat, _panels(rule), strict=True):
        for number, policy in enumerate(policies):
            own = [g for g in groups if g.policy == policy and g.mean(read) is not None]
            rates = [group.rate for group in own]
            style = {"marker": _MARKERS[number % len(_MARKERS)], "color": f"C{number % 10}"}
            axis.plot(rates, [g.mean(read) for g in own], label=policy, markersize=4, **style)
            low, high = [min(g.values(read)) for g in own], [max(g.values(read)) for g in own]
            axis.fill_between(rates, low, high, alpha=0.15, color=style["color"])
        axis.set_title(head, fontsize=9)
        axis.set_yscale(scale)
        axis.grid(alpha=0.3)
    for axis in axes[1]:
        axis.set_xlabel("requests/s")
    axes[0][0].legend(fontsize=7)
    _save(pyplot, figure, title, path)


def draw_capacity(
    found: dict[str, dict[float, Capacity]], rule: Rule, title: str, path: Path
) -> None:
    """By policy and share of the requests: the capacities, and the points they rest on. Raises ImportError."""
    pyplot = _pyplot()
    shares = [*next(iter(found.values()))]
    figure, (bars, points) = pyplot.subplots(1, 2, figsize=(13, 1.8 + 0.4 * len(found)))
    for number, (policy, capacities) in enumerate(found.items()):
        colour, marker = f"C{number % 10}", _MARKERS[number % len(_MARKERS)]
        for at, share in enumerate(shares):
            thick, pale = 0.8 / len(shares), 1 - 0.5 * at / len(shares)
            place = number + thick * (at - (len(shares) - 1) / 2)
            bars.barh([place], [capacities[share].rate], thick, color=colour, alpha=pale)
        tried = sorted({point for capacity in capacities.values() for point in capacity.tried})
        rates, attained = [rate for rate, _ in tried], [share for _, share in tried]
        points.plot(rates, attained, marker=marker, markersize=4, color=colour, label=policy)
    words = ", ".join(f"{100 * share:.4g}%" for share in shares)
    bars.set_yticks(range(len(found)), [*found])
    bars.invert_yaxis()
    bars.set_title(
        f"highest rate with {words} of requests attaining, {_words(rule)} (req/s)", fontsize=9
    )
    bars.grid(axis="x", alpha=0.3)
    for share in shares:
        points.axhline(share, color="0.4", linewidth=0.8)
    points.set_title(
        "attainment at the rates tried (runs are ended once it is out of reach)", fontsize=9
    )
    points.set_xlabel("requests/s")
    points.legend(fontsize=7)
    points.grid(alpha=0.3)
    _save(pyplot, figure, title, path)


def _save(pyplot: Any, figure: Any, title: str, path: Path) -> None:
    figure.suptitle(title, fontsize=10)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
