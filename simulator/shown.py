"""What a report shows, as values: tables, figures, and what papers say. How a page is made of them is not known here
(scripts/sim_report_page.py, scripts/sim_report_draw.py)."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal

from msgspec import Struct


class Cell(Struct, frozen=True):
    """Of a table: what is shown, the value behind it, and how it is meant (`fault`: a run failed; `short`: less than a
    paper says; `best`)."""

    text: str
    value: float | str | None = None
    mark: Literal["", "fault", "short", "best"] = ""


NONE = Cell("–")


class Table(Struct, frozen=True):
    """`made` says with what settings; `rows` are as long as `heads`, the first column names the row."""

    name: str
    title: str
    heads: list[str]
    rows: list[list[Cell]]
    made: str = ""
    note: str = ""


class Series(Struct, frozen=True):
    """Points of one name (a policy, if its colour is to be the policy's); `low` and `high` the range over the seeds."""

    name: str
    x: list[float] | list[str]
    y: list[float | None]
    low: list[float | None] = []
    high: list[float | None] = []


class Line(Struct, frozen=True):
    """A straight line across a panel."""

    axis: Literal["x", "y"]
    at: float
    words: str


class Band(Struct, frozen=True):
    """A range of y, shaded."""

    low: float
    high: float
    words: str


Scaling = Literal["linear", "log"]


class Panel(Struct, frozen=True):
    """One pair of axes. `lines` over numbers, `points` of numbers, `bars`: a bar per name in x and series."""

    title: str
    x_label: str
    y_label: str
    series: list[Series]
    kind: Literal["lines", "points", "bars"] = "lines"
    x_scale: Scaling = "linear"
    y_scale: Scaling = "linear"
    lines: list[Line] = []
    bands: list[Band] = []


class Figure(Struct, frozen=True):
    name: str
    title: str
    panels: list[Panel]
    made: str = ""


@dataclass(frozen=True)
class Published:
    """What a paper says. `low` and `high` are its range; evidence: S stated in the source, N in a reader's note, C read
    in its code."""

    what: str
    said: str
    low: float
    high: float
    source: str
    evidence: str


def number(value: float | None, form: str = "{:.2f}", factor: float = 1.0, mark: Any = "") -> Cell:
    """A cell of a number; a dash without one."""
    if value is not None and not isfinite(value):
        return Cell("∞", None, mark)
    return NONE if value is None else Cell(form.format(value * factor), value * factor, mark)


def text(words: str, mark: Any = "") -> Cell:
    return Cell(words, words, mark)
