"""CSV and JSON beside every table and figure of a report."""

from __future__ import annotations

import csv
from pathlib import Path

import msgspec

from accelgen.simulator.shown import Figure, Table


def write_table(table: Table, folder: Path) -> list[Path]:
    """NAME.csv has the values as they were computed, NAME.json the texts, marks and settings, too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{table.name}.csv"
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(table.heads)
        for row in table.rows:
            writer.writerow(["" if cell.value is None else cell.value for cell in row])
    return [path, _write_json(folder / f"{table.name}.json", table)]


def write_figure(figure: Figure, folder: Path) -> list[Path]:
    """A row per point in NAME.csv; NAME.json has the whole figure as it is drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{figure.name}.csv"
    with path.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["panel", "series", "x_label", "x", "y_label", "y", "low", "high"])
        for panel in figure.panels:
            for series in panel.series:
                for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
                    low = series.low[i] if series.low else y
                    high = series.high[i] if series.high else y
                    head = [panel.title, series.name, panel.x_label, x, panel.y_label]
                    writer.writerow(
                        [*head, *("" if one is None else one for one in (y, low, high))]
                    )
    return [path, _write_json(folder / f"{figure.name}.json", figure)]


def _write_json(path: Path, content: Table | Figure) -> Path:
    path.write_bytes(msgspec.json.format(msgspec.json.encode(content), indent=1))
    return path
