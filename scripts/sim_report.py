"""`accelgen sim report`: the reproduction as one page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import msgspec

from accelgen.scripts.sim_options import jobs_option, results_options
from accelgen.scripts.sim_params import ListParam
from accelgen.simulator.crew import Crew
from accelgen.simulator.experiment import Store
from accelgen.simulator.studies import SCALES, SECTIONS, scale_of
from accelgen.simulator.study import Found, Scale, Section

NO_MATPLOTLIB = "a report without figures: they need matplotlib (pip install 'accelgen[plots]')"
_ROWS = Path("benchmarks/results")


class SectionParam(click.ParamType):
    """The name of a section."""

    name = "section"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Section:
        found = [section for section in SECTIONS if section.name == value]
        if not found:
            known = ", ".join(section.name for section in SECTIONS)
            self.fail(f"there is no section {value!r}; there is {known}", param, ctx)
        return found[0]


@click.command("report")
@click.option("--scale", type=click.Choice(SCALES), default="small", show_default=True,
              help="small: few requests, minutes; paper: the frozen requests, rates and seeds, days.")  # fmt: skip
@click.option(
    "--sections",
    type=ListParam(SectionParam()),
    metavar="NAME,...",
    show_default="all",
    help="Parts of the report.",
)
@click.option("--requests", type=click.IntRange(1, 2**31), help="At most so many per run.")
@click.option("--seeds", type=click.IntRange(1, 1000), show_default="1; all with --scale paper",
              help="At most so many of each scenario.")  # fmt: skip
@click.option("--rates", type=click.IntRange(1, 1000), show_default="4; all with --scale paper",
              help="At most so many of each scenario.")  # fmt: skip
@click.option("--tolerance", type=click.FloatRange(0.001, 0.5), show_default="0.15; 0.02 with --scale paper",
              help="Relative distance of a good and a bad rate at which searches end.")  # fmt: skip
@click.option("--rows", type=click.Path(exists=True, path_type=Path), show_default=f"{_ROWS}, if there",
              help="File or folder of JSON results of benchmarks, for the section on costs.")  # fmt: skip
@results_options
@jobs_option
def report(
    scale: str, sections: list[Section] | None, requests: int | None, seeds: int | None, rates: int | None,
    tolerance: float | None, synthetic: bool, rows: Path | None, out: Path, anew: bool, quiet: bool, jobs: int | None,
) -> None:  # fmt: skip
    """All tables and figures of the reproduction as one HTML page.

    Interrupted, it goes on where it was when it is started again. CSV and JSON lie beside every table and figure.
    """
    from accelgen.scripts.sim_bars import bars
    from accelgen.scripts.sim_report_draw import can_draw
    from accelgen.scripts.sim_report_run import find_all

    asked = _cut(scale_of(scale, synthetic), requests, seeds, rates, tolerance)
    chosen = list(SECTIONS) if sections is None else sections
    measured = _read_rows(rows or (_ROWS if _ROWS.is_dir() else None))
    drawn = can_draw()
    if not drawn:
        click.echo(NO_MATPLOTLIB, err=True)
    with Crew(jobs or os.cpu_count() or 1, Store(out / "runs"), anew) as crew, bars(quiet) as shown:
        found = find_all(crew, shown, chosen, asked, measured)
    path = out / f"{_stem(scale, sections)}.html"
    count = _write(path, chosen, found, drawn)
    click.echo(f"Wrote {path} and {count} files under {path.with_suffix('')}", err=True)


def _stem(scale: str, sections: Sequence[Section] | None) -> str:
    """A page of some sections does not take the place of the whole."""
    names = "".join(f"-{section.name}" for section in sections or ())
    return f"report-{scale}{names}"


def _cut(
    scale: Scale,
    requests: int | None,
    seeds: int | None,
    rates: int | None,
    tolerance: float | None,
) -> Scale:
    """A scale with what the options limit further, and the tolerance that they state."""
    if requests is not None:
        own = scale.requests or {}
        scale = replace(
            scale,
            requests={name: min(most, requests) for name, most in own.items()}
            | {"": min(own.get("", requests), requests)},
        )
    if seeds is not None:
        scale = replace(scale, seeds=min(scale.seeds, seeds))
    if tolerance is not None:
        scale = replace(scale, tolerance=tolerance)
    return scale if rates is None else replace(scale, rates=min(scale.rates, rates))


def _read_rows(place: Path | None) -> dict[str, Any]:
    """JSON files by name without suffix. Raises UsageError for one that is none."""
    if place is None:
        return {}
    found = {}
    for path in sorted(place.glob("*.json")) if place.is_dir() else [place]:
        try:
            found[path.stem] = msgspec.json.decode(path.read_bytes())
        except (OSError, msgspec.DecodeError) as error:
            raise click.UsageError(f"--rows: {path}: {error}") from error
    return found


def _write(path: Path, sections: Sequence[Section], found: Found, drawn: bool) -> int:
    """The page, and the data beside it. How many files those are."""
    from accelgen.scripts.sim_report_data import write_figure, write_table
    from accelgen.scripts.sim_report_draw import draw_whole
    from accelgen.scripts.sim_report_page import Part, make_page

    parts = [Part(s, s.tabulate(found), s.draw(found), s.say(found)) for s in sections]
    data, written = path.with_suffix(""), 0
    for part in parts:
        for table in part.tables:
            written += len(write_table(table, data / "tables"))
        for figure in part.figures:
            written += len(write_figure(figure, data / "figures"))
            if drawn:
                draw_whole(figure, data / "figures" / f"{figure.name}.svg")
                written += 1
    page = make_page(_head(found, data.name), parts, drawn)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page)
    return written


def _head(found: Found, data: str) -> Any:
    from accelgen.scripts.sim_report_page import Head

    scale = found.scale
    all_results = [
        *(r for group in found.runs.values() for r in group.results),
        *(r for _, results in found.searches.values() for r in results),
    ]
    failed = sum(bool(result.fault) for result in all_results)
    facts = [
        f"AccelGen {version('accelgen')}, {datetime.now():%Y-%m-%d %H:%M}, scale {scale.name}: {len(all_results)}"
        f" simulations, {failed} of which failed. Every figure is computed from them; what papers say is marked as"
        " theirs. Below each table and figure: with what settings it was made, and its numbers as CSV and JSON.",
    ]
    warnings = []
    if scale != scale_of("paper", scale.stand_ins):
        warnings.append(
            "Fewer requests, rates or seeds than frozen: this page shows the way, its figures are not to be quoted."
            " accelgen sim report --scale paper has the frozen sizes."
        )
    if scale.stand_ins:
        warnings.append(
            "Synthetic stand-ins, not the public traces: lengths and arrivals have their statistics only."
        )
    return Head("AccelGen: the reproduction", facts, warnings, data)
