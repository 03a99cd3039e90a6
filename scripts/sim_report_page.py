"""The page of a report: one HTML file that needs nothing else, readable on a phone and on paper. Figures are inlined as
SVG images; their legends are text, so that they never lie on a curve. All that is shown goes through `html.escape`."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from accelgen.scripts.sim_report_draw import Style, draw_panel, styles_of
from accelgen.simulator.shown import Cell, Figure, Panel, Published, Table
from accelgen.simulator.study import Section

_STYLE = """
:root { --ink: #212529; --dim: #5c636a; --line: #dee2e6; --soft: #f8f9fa; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 76rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .5rem 0; }
h2 { font-size: 1.35rem; margin: 2.5rem 0 .5rem; border-top: 2px solid var(--ink); padding-top: .7rem; }
h3 { font-size: 1.05rem; margin: 1.6rem 0 .3rem; }
p { max-width: 46rem; margin: .5rem 0; }
.made, .note, figcaption, .dim { color: var(--dim); font-size: .82rem; }
.wide { overflow-x: auto; -webkit-overflow-scrolling: touch; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .3rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: top; }
th { border-bottom: 2px solid var(--dim); vertical-align: bottom; line-height: 1.2; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff;
  white-space: nowrap; }
td.words { text-align: left; } td.long { min-width: 12rem; }
tbody tr:hover td { background: var(--soft); }
td.short { background: #fff3bf; } td.fault { background: #ffc9c9; } td.best { background: #d3f9d8; font-weight: 600; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); gap: .6rem; }
.even { grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }
figure { margin: 1rem 0; } .panels img { width: 100%; max-width: 34rem; height: auto; display: block; }
.legend { display: flex; flex-wrap: wrap; gap: .15rem .9rem; font-size: .85rem; padding: 0; margin: .2rem 0; list-style: none; }
ul.contents { columns: 18rem; padding-left: 1.2rem; }
details summary { cursor: pointer; margin: .4rem 0; }
.warn { border-left: 4px solid #f08c00; padding: .3rem .8rem; background: #fff9db; max-width: 46rem; }
a { color: #1864ab; }
@media (max-width: 30rem) { body { padding: .6rem; font-size: 15px; } h1 { font-size: 1.35rem; } h2 { font-size: 1.15rem; }
  th, td { padding: .2rem .4rem; } }
@media print { body { max-width: none; font-size: 10pt; } h2 { break-before: page; } figure img, tr { break-inside: avoid; }
  .wide { overflow: visible; } details::details-content { content-visibility: visible; height: auto; } table { font-size: 6.5pt; } th, td { padding: .1rem .25rem; } td.long { min-width: 0; }
  .panels, .even { grid-template-columns: 1fr 1fr; } th:first-child, td:first-child { position: static; white-space: normal; } }
"""  # noqa: E501


@dataclass(frozen=True)
class Part:
    """A section with what came of it. `files` are names in the folder of data, by table or figure."""

    section: Section
    tables: Sequence[Table]
    figures: Sequence[Figure]
    said: Sequence[str]


@dataclass(frozen=True)
class Head:
    """What is said about the whole report. `warnings` in the order of their weight."""

    title: str
    facts: Sequence[str]
    warnings: Sequence[str]
    data: str  # the folder beside the page


def make_page(head: Head, parts: Sequence[Part], drawn: bool) -> str:
    """The HTML. Without `drawn` figures are named, not shown. Raises ImportError if they cannot be drawn."""
    body = [
        f"<h1>{escape(head.title)}</h1>",
        *(f"<p>{escape(fact)}</p>" for fact in head.facts),
        *(f'<p class="warn">{escape(words)}</p>' for words in head.warnings),
        '<nav><ul class="contents">',
        *(
            f'<li><a href="#{_id(p.section.name)}">{escape(p.section.title)}</a></li>'
            for p in parts
        ),
        "</ul></nav>",
    ]
    for part in parts:
        body += _part(part, head.data, drawn)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(head.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _part(part: Part, data: str, drawn: bool) -> list[str]:
    section = part.section
    lines = [
        f'<section id="{_id(section.name)}">',
        f"<h2>{escape(section.title)}</h2>",
        f"<p>{escape(section.about)}</p>",
        *(f"<p>{escape(words)}</p>" for words in part.said),
    ]
    if section.published:
        lines += _published(section.published)
    for figure in part.figures:
        lines += _figure(figure, data, drawn)
    for table in part.tables:
        lines += _table(table, data)
    return [*lines, "</section>"]


def _published(published: Sequence[Published]) -> list[str]:
    rows = [
        [Cell(one.what), Cell(one.said, one.said), Cell(one.source, one.source), Cell(one.evidence, one.evidence)]
        for one in published
    ]  # fmt: skip
    words = (
        "What is published (S: stated in the source, N: a reader's note of it, C: read in its code)"
    )
    heads = ["figure", "published", "source", "evidence"]
    return [f"<details><summary>{escape(words)}</summary>", *_rows(heads, rows), "</details>"]


def _table(table: Table, data: str) -> list[str]:
    lines = [f"<h3>{escape(table.title)}</h3>"]
    lines += _rows(table.heads, table.rows) if table.rows else ["<p>No results.</p>"]
    if table.note:
        lines.append(f'<p class="note">{escape(table.note)}</p>')
    lines.append(f'<p class="made">{escape(table.made)}. {_data(f"{data}/tables", table.name)}</p>')
    return lines


def _rows(heads: Sequence[str], rows: Sequence[Sequence[Cell]]) -> list[str]:
    lines = ['<div class="wide"><table><thead><tr>']
    lines.append("".join(f'<th scope="col">{escape(head)}</th>' for head in heads))
    lines.append("</tr></thead><tbody>")
    for row in rows:
        lines.append("<tr>" + "".join(map(_cell, row)) + "</tr>")
    lines.append("</tbody></table></div>")
    return lines


def _cell(cell: Cell) -> str:
    kinds: list[str] = [cell.mark] if cell.mark else []
    if isinstance(cell.value, str):
        kinds.append("long words" if len(cell.text) > 24 else "words")
    shown = f' class="{escape(" ".join(kinds))}"' if kinds else ""
    return f"<td{shown}>{escape(cell.text)}</td>"


def _figure(figure: Figure, data: str, drawn: bool) -> list[str]:
    panels = [panel for panel in figure.panels if any(series.x for series in panel.series)]
    lines = ["<figure>", f"<h3>{escape(figure.title)}</h3>"]
    if not panels:
        lines.append("<p>No results.</p>")
    elif drawn:
        kind = "panels even" if len(panels) in (2, 4) else "panels"
        lines += [*_legend(panels), f'<div class="{kind}">', *map(_image, panels), "</div>"]
    else:
        lines.append("<p>Not drawn: matplotlib is missing.</p>")
    made = f"{escape(figure.made)}. " if figure.made else ""
    return [
        *lines,
        f"<figcaption>{made}{_data(f'{data}/figures', figure.name)}</figcaption>",
        "</figure>",
    ]


def _image(panel: Panel) -> str:
    content = base64.b64encode(draw_panel(panel)).decode()
    words = f"{panel.title}: {panel.y_label} over {panel.x_label}"
    return f'<img alt="{escape(words)}" src="data:image/svg+xml;base64,{content}">'


def _legend(panels: Sequence[Panel]) -> list[str]:
    """Of all panels together. A panel of bars with one series has its names at the bars."""
    named: dict[str, Style] = {}
    for panel in panels:
        if panel.kind != "bars" or len(panel.series) > 1:
            named |= dict(styles_of(panel))
    others = dict.fromkeys(
        [("#e6b800", "▬", band.words) for panel in panels for band in panel.bands]
        + [("#212529", "┄", line.words) for panel in panels for line in panel.lines]
    )
    items = [(style.colour, style.sign, name) for name, style in named.items()]
    return [
        '<ul class="legend">',
        *(
            f'<li><span style="color:{escape(colour)}" aria-hidden="true">{escape(sign)}</span> {escape(name)}</li>'
            for colour, sign, name in [*items, *others]
        ),
        "</ul>",
    ]


def _data(folder: str, name: str) -> str:
    """Where the numbers are: beside the page."""
    links = [
        f'<a href="{escape(f"{folder}/{name}.{kind}")}">{kind.upper()}</a>'
        for kind in ("csv", "json")
    ]
    return f"Data: {', '.join(links)}"


def _id(name: str) -> str:
    return escape(name.replace(" ", "-"))
