"""`accelgen sim report`: one page that needs nothing else, data beside it, nothing run twice."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from accelgen.scripts import sim_report_run
from accelgen.scripts.cli import main
from accelgen.scripts.sim_bars import bars
from accelgen.scripts.sim_report import _head
from accelgen.scripts.sim_report_draw import STYLES, draw_panel, draw_whole, styles_of
from accelgen.scripts.sim_report_page import Head, Part, make_page
from accelgen.scripts.sim_report_run import find_all
from accelgen.simulator.crew import Crew, CrewDied
from accelgen.simulator.experiment import Setting, Store, run_setting
from accelgen.simulator.shown import Band, Cell, Figure, Line, Panel, Series, Table
from accelgen.simulator.studies import scale_of
from accelgen.simulator.study import Arm, Found, Scale, Section, faults
from accelgen.simulator.traces import VARIABLE

TINY = ["--synthetic", "--requests", "6", "--jobs", "1", "--quiet", "--sections", "relegation"]
VOID = {"meta", "img", "br", "hr", "link", "input"}
NASTY = '<script>alert("1")</script> & "quoted" \'single\''


@pytest.fixture(autouse=True)
def somewhere_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)


def report(*words: str) -> Result:
    return CliRunner().invoke(main, ["sim", "report", *words])


class Page(HTMLParser):
    """Checks that tags nest, and collects what a browser would fetch, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        self.fetched += [
            given[key] or "" for key in ("src", "href", "srcset", "action") if key in given
        ]
        self.ids += [given["id"] or ""] if "id" in given else []
        assert not any(key.startswith("on") for key in given)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def files_in(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_one_page_with_data_beside_it_and_nothing_run_twice(tmp_path: Path) -> None:
    done = report(*TINY, "--out", "out")
    assert done.exit_code == 0, done.output
    [line] = done.output.strip().splitlines()
    assert (
        line
        == "Wrote out/report-small-relegation.html and 5 files under out/report-small-relegation"
    )
    html = (tmp_path / "out/report-small-relegation.html").read_text()
    page = Page(html)
    assert "script" not in page.tags and "link" not in page.tags and "url(" not in html
    shown = [one for one in page.fetched if not one.startswith(("data:image/svg+xml;base64,", "#"))]
    assert shown and all(
        (tmp_path / "out" / one).is_file() for one in shown
    )  # data, beside the page
    assert all(one[1:] in page.ids for one in page.fetched if one.startswith("#"))
    assert page.tags.count("img") == 6
    text = "".join(page.words)
    assert "Fate of relegated requests" in text and "synthetic stand-ins azure2023_code" in text
    assert "Fewer requests, rates or seeds than frozen" in text and "Synthetic stand-ins" in text
    rows = list(
        csv.DictReader((tmp_path / "out/report-small-relegation/tables/relegation.csv").open())
    )
    whole = json.loads(
        (tmp_path / "out/report-small-relegation/tables/relegation.json").read_text()
    )
    assert len(rows) == len(whole["rows"]) and "6 runs, 6 requests each" in whole["made"]
    points = list(
        csv.DictReader((tmp_path / "out/report-small-relegation/figures/relegation.csv").open())
    )
    assert {row["panel"] for row in points} == {
        f"{what} at {rate} requests/s" for what in ("Relegated", "Attained") for rate in (2, 4, 6)
    }

    before = files_in(tmp_path / "out/runs")
    assert len(before) == 6
    sorted(before)[0].unlink()  # as if it had been interrupted
    left = sorted(before)[1:]
    assert report(*TINY, "--out", "out").exit_code == 0
    after = files_in(tmp_path / "out/runs")
    assert after.keys() == before.keys() and all(after[path] == before[path] for path in left)
    assert report(*TINY, "--out", "out", "--anew").exit_code == 0
    assert all(files_in(tmp_path / "out/runs")[path] != after[path] for path in after)


def test_numbers_of_the_page_are_those_of_the_runs(tmp_path: Path) -> None:
    assert report(*TINY, "--out", "out").exit_code == 0
    scenario = scale_of("small", True).scenario("azure2023_code", requests=6)
    setting = Setting(
        name="relegation", scenario=scenario, policy="qoserve", rate=6.0, requests=6, stand_ins=True, detailed=True,
        half=scenario.part_of_trace,
    )  # fmt: skip
    alone = run_setting(setting)
    assert alone.summary is not None and alone.detail is not None
    rows = list(
        csv.DictReader((tmp_path / "out/report-small-relegation/tables/relegation.csv").open())
    )
    mine = [row for row in rows if (row["third"], row["req/s"]) == ("all", "6.0")]
    assert sum(float(row["how many"]) for row in mine) == 6
    attained = sum(
        float(row["how many"]) * float(row["attained %"]) / 100 for row in mine if row["attained %"]
    )
    assert attained == pytest.approx(6 * alone.summary.judged.attainment[scenario.rule])
    points = list(
        csv.DictReader((tmp_path / "out/report-small-relegation/figures/relegation.csv").open())
    )
    [point] = [
        row for row in points
        if (row["panel"], row["series"], row["x"]) == ("Attained at 6 requests/s", "qoserve", "all")
    ]  # fmt: skip
    assert float(point["y"]) == pytest.approx(100 * attained / 6)


def test_without_matplotlib_one_line_and_a_page_without_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = report(*TINY, "--out", "out")
    assert done.exit_code == 0
    lines = done.output.strip().splitlines()
    assert (
        lines[0] == "a report without figures: they need matplotlib (pip install 'accelgen[plots]')"
    )
    assert len(lines) == 2
    html = (tmp_path / "out/report-small-relegation.html").read_text()
    assert "Not drawn: matplotlib is missing." in html and "img" not in Page(html).tags
    assert (tmp_path / "out/report-small-relegation/figures/relegation.csv").is_file()


def test_a_page_of_less_than_was_frozen_says_so() -> None:
    frozen = scale_of("paper", False)
    assert _head(Found(frozen), "x").warnings == []
    for less in (replace(frozen, seeds=1), replace(frozen, rates=2), scale_of("small", False)):
        [said] = _head(Found(less), "x").warnings
        assert "not to be quoted" in said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sections", "relegatio"], "there is no section 'relegatio'; there is accelgen,"),
        (["--scale", "large"], "'large' is not one of 'small', 'paper'"),
        (["--sections", "relegation", "--requests", "5"], "ACCELGEN_TRACES can name a folder"),
        (["--rows", "nowhere"], "'nowhere' does not exist"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(words: list[str], said: str) -> None:
    done = report(*words, "--quiet")
    assert done.exit_code == 2 and said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_searches_end_where_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def find(crew: object, shown: object, chosen: object, scale: Scale, rows: object) -> Any:
        asked.append(scale.tolerance)
        raise click.ClickException("enough")

    monkeypatch.setattr(sim_report_run, "find_all", find)
    for words in ([], ["--tolerance", "0.3"], ["--scale", "paper"]):
        assert "enough" in report("--sections", "costs", *words, "--quiet").output
    assert asked == [0.15, 0.3, 0.02]
    assert "0.001<=x<=0.5" in report("--tolerance", "0").output


def test_rows_that_are_no_json_are_named(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("{")
    done = report(*TINY, "--rows", "rows.json")
    assert done.exit_code == 2 and "--rows: rows.json" in done.output


# --- the page ------------------------------------------------------------------------------------------------------


def test_everything_is_escaped() -> None:
    panel = Panel(NASTY, NASTY, NASTY, [Series(NASTY, [1.0, 2.0], [1.0, None])], lines=[Line("y", 1.0, NASTY)],
                  bands=[Band(1.0, 2.0, NASTY)])  # fmt: skip
    table = Table(
        "t", NASTY, [NASTY], [[Cell(NASTY, NASTY)], [Cell(NASTY, None, "fault")]], NASTY, NASTY
    )
    section = Section("s", NASTY, NASTY, lambda scale: [], lambda found: [])
    part = Part(section, [table], [Figure("f", NASTY, [panel], NASTY)], [NASTY])
    html = make_page(Head(NASTY, [NASTY], [NASTY], "data"), [part], drawn=False)
    page = Page(html)
    assert "script" not in page.tags and "<script" not in html
    assert "".join(page.words).count(NASTY) >= 8
    drawn = Page(make_page(Head("x", [], [], "data"), [part], drawn=True))
    assert drawn.tags.count("img") == 1


def test_policies_look_the_same_everywhere_and_differ() -> None:
    names = ["accelgen", "sarathi", "edf"]
    panel = Panel("a", "b", "c", [Series(name, [1.0], [1.0]) for name in names])
    other = Panel("a", "b", "c", [Series(name, [1.0], [1.0]) for name in names[::-1]])
    assert (
        dict(styles_of(panel)) == dict(styles_of(other)) == {name: STYLES[name] for name in names}
    )
    looks = [(style.colour, style.marker) for style in STYLES.values()]
    policies = looks[: list(STYLES).index("distserve") + 1]
    assert len({*policies}) == len(policies)
    unknown = Panel("a", "b", "c", [Series(f"policy {i}", [1.0], [1.0]) for i in range(8)])
    assert len({style.colour for _, style in styles_of(unknown)}) == 8


@pytest.mark.parametrize("kind", ["lines", "points", "bars"])
@pytest.mark.parametrize("scale", ["linear", "log"])
def test_odd_values_can_be_drawn(kind: Any, scale: Any, tmp_path: Path) -> None:
    x: Any = ["a", "b", "c"] if kind == "bars" else [0.0, 1.0, 1e6]
    series = [
        Series("accelgen", x, [None, 0.0, 5.0], [None, 0.0, 4.0], [None, 0.0, 6.0]),
        Series("other", x, [None, None, None]),
    ]
    panel = Panel("t", "x", "y", series, kind, scale, scale)
    assert draw_panel(panel).startswith(b"<?xml")
    draw_whole(Figure("f", "t", [panel, Panel("e", "x", "y", [], kind)]), tmp_path / "d" / "f.svg")
    assert b"<svg" in (tmp_path / "d" / "f.svg").read_bytes()


# --- the runs ------------------------------------------------------------------------------------------------------


def a_section(arms: list[Arm], show: Callable[[Found], list[Table]]) -> Section:
    def asks(scale: Scale) -> list[Any]:
        scenario = scale.scenario("azure2023_code")
        runs = scale.grid("w", scenario, arms, [2.0, 50.0])
        return [*runs, *runs, scale.search("w", scenario, arms[0], 0.9)]

    return Section("s", "s", "s", asks, show, say=lambda found: faults(found, "w"))


SCALE = Scale("x", True, {"": 15}, seeds=1, tolerance=0.5)


def test_runs_and_searches_are_found(tmp_path: Path) -> None:
    section = a_section(
        [Arm.of("sarathi"), Arm("edf!", "edf", {"chunk_size": 64})], lambda found: []
    )
    with Crew(1, Store(tmp_path)) as crew, bars(True) as shown:
        found = find_all(crew, shown, [section, section], SCALE, {})
    assert found.arms("w") == ["sarathi", "edf!"] and found.rates("w") == [2.0, 50.0]
    [result] = found.group("w", "edf!", 2.0).results
    assert result.setting.params == {"chunk_size": 64} and result.setting.rate == 2.0
    capacity = found.capacity("w", "sarathi", 0.9)
    assert capacity is not None and capacity.tried
    rates = {r.setting.rate for r in found.searches["w", "sarathi", 0.9][1]}
    assert rates == {rate for rate, _ in capacity.tried}
    assert found.capacity("w", "edf!", 0.9) is None
    made = found.made("w")
    assert f"{4 + len(capacity.tried)} runs" in made


def test_a_run_that_dies_is_a_fault_and_the_others_go_on() -> None:
    def run(setting: Setting, progress: object) -> Any:
        if setting.policy == "edf":
            raise CrewDied("the simulation of edf died: AssertionError")
        return run_setting(setting)

    crew: Any = SimpleNamespace(run=run, size=1, close=lambda: None)
    section = a_section([Arm.of("sarathi"), Arm.of("edf")], lambda found: [])
    with bars(True) as shown:
        found = find_all(crew, shown, [section], SCALE, {})
    assert found.group("w", "sarathi", 2.0).fault == ""
    assert "died: AssertionError" in found.group("w", "edf", 50.0).fault
    said = section.say(found)
    assert len(said) == 2 and all(words.startswith("Failed: edf on w at ") for words in said)
    assert "2 failed" in found.made("w")
