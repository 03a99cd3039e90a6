"""Draws the figures of a report with matplotlib. A policy has the same colour and marker everywhere."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from accelgen.simulator.shown import Figure, Panel, Series


@dataclass(frozen=True)
class Style:
    """A colour (hexadecimal), matplotlib's marker and a character that looks like it, and a dash."""

    colour: str
    marker: str
    sign: str
    dash: str = "-"


STYLES = {
    "accelgen": Style("#b3001b", "o", "●"),
    "accelgen-calibrated": Style("#e8590c", "s", "■"),
    "accelgen-plus": Style("#0b7a3b", "o", "●"),
    "accelgen-adaptive": Style("#d6336c", "D", "◆"),
    "accelgen-no-chunking": Style("#868e96", "v", "▼", "--"),
    "accelgen-no-ordering": Style("#5c7cfa", "^", "▲", "--"),
    "accelgen-no-batching": Style("#2b8a3e", "P", "✚", "--"),
    "orca": Style("#495057", "X", "✖"),
    "vllm": Style("#1864ab", "v", "▼"),
    "fastgen": Style("#0b7285", "^", "▲"),
    "sarathi": Style("#4dabf7", "s", "■"),
    "fastserve": Style("#9775fa", "P", "✚"),
    "edf": Style("#2f9e44", "D", "◆"),
    "srpf": Style("#94d82d", "<", "◀"),
    "qoserve": Style("#f08c00", "p", "⬟"),
    "slidingserve": Style("#a0763a", ">", "▶"),
    "slos-serve": Style("#7048e8", "h", "⬢"),
    "cacheopt": Style("#c2255c", "d", "◆"),
    "distserve": Style("#212529", "*", "★"),
    "vllm, swapping": Style("#0ca678", "v", "▼", "--"),
    "sarathi, swapping": Style("#22b8cf", "s", "■", "--"),
    "vllm + memory": Style("#364fc7", "v", "▼", "--"),
    "sarathi + memory": Style("#0c8599", "s", "■", "--"),
    "qoserve + memory": Style("#fab005", "p", "⬟", "--"),
    "accelgen + memory": Style("#ff8787", "o", "●", "--"),
    "refusing": Style("#c2255c", "h", "⬢", "--"),
    "edf_sim": Style("#e64980", "H", "⬣", "--"),
    "dp": Style("#7048e8", "h", "⬢"),
    "distserve 1:1": Style("#495057", "*", "★"),
    "here": Style("#b3001b", "o", "●"),
    "paper": Style("#adb5bd", "s", "■"),
    "the objective": Style("#868e96", "", "┄", "--"),
    "short": Style("#4dabf7", "s", "■"),
    "long": Style("#1864ab", "D", "◆"),
    "learnt": Style("#495057", "o", "●"),
    "true": Style("#2f9e44", "s", "■"),
    "off by sigma 0.5": Style("#f59f00", "^", "▲"),
    "off by sigma 1": Style("#e8590c", "D", "◆"),
}
"""Policies, and the few other names that series have."""

_OTHERS = ("#364fc7", "#c2255c", "#087f5b", "#e67700", "#5f3dc4", "#0c8599", "#66a80f", "#862e9c")
_SIGNS = (("o", "●"), ("s", "■"), ("^", "▲"), ("D", "◆"), ("v", "▼"), ("P", "✚"))
_PLAIN = Style("#495057", "o", "●")  # of a bar whose name is no policy's
_PANEL = (4.5, 3.1)  # inches


def style_of(name: str) -> Style:
    """That of the policy; another name has one that depends on nothing but the name."""
    if name in STYLES:
        return STYLES[name]
    hashed = zlib.crc32(name.encode())
    marker, sign = _SIGNS[hashed // 97 % len(_SIGNS)]
    return Style(_OTHERS[hashed % len(_OTHERS)], marker, sign)


def styles_of(panel: Panel) -> list[tuple[str, Style]]:
    """Names for a legend: of the series of a panel. Those that would look alike are set apart."""
    named, used = [], set()
    for series in panel.series:
        style, number = style_of(series.name), 0
        while style.colour in used and number < len(_OTHERS):
            marker, sign = _SIGNS[number % len(_SIGNS)]
            style, number = Style(_OTHERS[number], marker, sign), number + 1
        used.add(style.colour)
        named.append((series.name, style))
    return named


def can_draw() -> bool:
    """Whether matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def draw_panel(panel: Panel) -> bytes:
    """One panel as SVG, without a legend (the page has it). Raises ImportError."""
    pyplot = _pyplot()
    height = _PANEL[1]
    if panel.kind == "bars":
        height = 1.0 + 0.19 * sum(len(series.x) + 0.4 for series in panel.series)
    figure, axes = pyplot.subplots(figsize=(_PANEL[0], max(2.2, height)), layout="constrained")
    _fill(axes, panel)
    return _svg(pyplot, figure)


def draw_whole(figure: Figure, path: Path) -> None:
    """All panels with a legend, to a file. Raises ImportError."""
    pyplot = _pyplot()
    columns = 2 if len(figure.panels) == 4 else min(3, len(figure.panels))
    rows = -(-len(figure.panels) // columns)
    size = (columns * _PANEL[0], rows * (_PANEL[1] + 0.6) + 0.9)
    drawn, axes = pyplot.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained")
    names: dict[str, Any] = {}
    for axis, panel in zip(axes.flat, figure.panels, strict=False):
        _fill(axis, panel)
        handles, labels = axis.get_legend_handles_labels()
        names |= dict(zip(labels, handles, strict=True))
    for axis in axes.flat[len(figure.panels) :]:
        axis.set_visible(False)
    drawn.suptitle(figure.title, fontsize=11)
    if names:
        drawn.legend(names.values(), names.keys(), loc="outside lower center", ncols=5, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_svg(pyplot, drawn))


def _pyplot() -> Any:
    """matplotlib's pyplot, without a display. Raises ImportError."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": "accelgen", "font.size": 9})
    from matplotlib import pyplot

    return pyplot


def _svg(pyplot: Any, figure: Any) -> bytes:
    content = BytesIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(content, format="svg", metadata=nothing)
    pyplot.close(figure)
    return content.getvalue()


# --- one panel -------------------------------------------------------------------------------------------------------


def _fill(axes: Any, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=9.5)
    for band in panel.bands:
        axes.axhspan(
            band.low, band.high, color="#ffd43b", alpha=0.25, linewidth=0, label=band.words
        )
    if panel.kind == "bars":
        _bars(axes, panel)
    else:
        _lines(axes, panel)
    for line in panel.lines:
        draw = axes.axvline if line.axis == "x" else axes.axhline
        draw(line.at, color="#212529", linewidth=0.9, linestyle=":", label=line.words)
    axes.spines[["top", "right"]].set_visible(False)


def _lines(axes: Any, panel: Panel) -> None:
    _scale(axes, panel)
    for series, (_, style) in zip(panel.series, styles_of(panel), strict=True):
        shown = [
            i
            for i, y in enumerate(series.y)
            if y is not None and (y > 0 or panel.y_scale == "linear")
        ]
        xs, ys = [series.x[i] for i in shown], [series.y[i] for i in shown]
        if panel.kind == "points":
            axes.scatter(xs, ys, s=7, alpha=0.4, color=style.colour, label=series.name)
            continue
        few = {"marker": style.marker or None, "markersize": 4} if len(xs) < 25 else {}
        axes.plot(
            xs,
            ys,
            color=style.colour,
            linestyle=style.dash,
            linewidth=1.3,
            label=series.name,
            **few,
        )
        if series.low and any(series.low[i] != series.high[i] for i in shown):
            low, high = [series.low[i] for i in shown], [series.high[i] for i in shown]
            axes.fill_between(xs, low, high, color=style.colour, alpha=0.12, linewidth=0)
    axes.set_xlabel(panel.x_label)
    axes.set_ylabel(panel.y_label)
    axes.grid(alpha=0.25)


def _scale(axes: Any, panel: Panel) -> None:
    """Log axes where there is something to show on them, with plain numbers where they span little."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ys = [y for series in panel.series for y in series.y if y is not None and y > 0]
    xs = [x for series in panel.series for x in series.x if not isinstance(x, str) and x > 0]
    for scale, values, axis, setter in (
        (panel.x_scale, xs, axes.xaxis, axes.set_xscale),
        (panel.y_scale, ys, axes.yaxis, axes.set_yscale),
    ):
        if scale != "log" or not values:
            continue
        setter("log")
        if max(values) / min(values) < 1000:
            axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axis.set_minor_formatter(NullFormatter())


def _bars(axes: Any, panel: Panel) -> None:
    """Horizontal, grouped by the names in x. With one series a bar has the colour of its name."""
    names = list(dict.fromkeys(str(x) for series in panel.series for x in series.x))
    count = len(panel.series)
    thick = 0.8 / max(1, count)
    for number, (series, (_, style)) in enumerate(zip(panel.series, styles_of(panel), strict=True)):
        places = [names.index(str(x)) - 0.4 + (number + 0.5) * thick for x in series.x]
        values = [y or 0.0 for y in series.y]
        colours = (
            [STYLES.get(str(x), _PLAIN).colour for x in series.x] if count == 1 else style.colour
        )
        axes.barh(places, values, height=0.9 * thick, color=colours, label=series.name if count > 1 else None,
                  xerr=_errors(series, values), ecolor="#495057", error_kw={"linewidth": 0.8})  # fmt: skip
        for place, y in zip(places, series.y, strict=True):
            shown = "–" if y is None else f" {y:.3g}"
            axes.text(y or 0.0, place, shown, va="center", fontsize=7)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlabel(panel.x_label)
    axes.margins(x=0.14)
    if panel.x_scale == "log" and all((y or 0) > 0 for series in panel.series for y in series.y):
        axes.set_xscale("log")
    else:
        most = max((y or 0.0 for series in panel.series for y in series.y), default=0.0)
        axes.set_xlim(left=0, right=None if most > 0 else 1.0)
    axes.grid(axis="x", alpha=0.25)


def _errors(series: Series, values: list[float]) -> Any:
    if not series.low or series.low == series.high:
        return None
    below = [
        max(0.0, v - (low if low is not None else v))
        for v, low in zip(values, series.low, strict=True)
    ]
    above = [
        max(0.0, (high if high is not None else v) - v)
        for v, high in zip(values, series.high, strict=True)
    ]
    return below, above
