"""The sections of the report: whatever was found, or not found, they say what the results say."""

from __future__ import annotations

from typing import Any

import pytest
from findings import SMALL, found_by, measured, result, row_of, section
from msgspec import structs

from accelgen.proto.policies import known_policies
from accelgen.simulator.capacity import Capacity
from accelgen.simulator.detail import Detail
from accelgen.simulator.groups import Group
from accelgen.simulator.published import ABLATIONS, ACCELGEN, STAIRCASE_CAPACITY
from accelgen.simulator.scenarios import find_scenario
from accelgen.simulator.shown import Cell
from accelgen.simulator.studies import SECTIONS, scale_of
from accelgen.simulator.study import Found, Scale, Search, made_of
from accelgen.simulator.study_relegation import same
from accelgen.simulator.times import Rule

GAP = Rule.EVERY_GAP
NAMES = [section.name for section in SECTIONS]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("what", ["all", "nothing", "faults"])
def test_every_section_stands_whatever_was_found(name: str, what: str) -> None:
    one = section(name)
    found = (
        Found(SMALL) if what == "nothing" else found_by(one, fault="it broke" * (what == "faults"))
    )
    tables, figures, said = one.tabulate(found), one.draw(found), one.say(found)
    assert tables and figures
    for table in tables:
        assert all(len(row) == len(table.heads) for row in table.rows)
        assert table.made
    for figure in figures:
        for series in (series for panel in figure.panels for series in panel.series):
            assert len(series.x) == len(series.y)
            assert not series.low or len(series.low) == len(series.high) == len(series.y)
    names = [one.name for one in (*tables, *figures)]
    assert len({*names[: len(tables)]}) == len(tables) and len({*names[len(tables) :]}) == len(
        figures
    )
    if what == "all" and name != "costs":
        assert said or name in ("accelgen", "accelgen_long", "accelgen_offline")
    if what == "faults" and name != "costs":
        assert any("it broke" in words for words in said)
        assert all("failed" in table.made for table in tables if "runs" in table.made)


def test_names_are_unique_and_asks_can_be_run() -> None:
    assert len(set(NAMES)) == len(NAMES)
    known = {*known_policies(), "distserve"}
    asks = [ask for section in SECTIONS for ask in section.asks(SMALL)]
    assert {ask.settings[0].policy for ask in asks} == known | {"oracle"}
    assert all(setting.requests <= 400 for ask in asks for setting in ask.settings)
    assert {setting.seed for ask in asks for setting in ask.settings} == {0}


def test_the_scale_of_the_paper_is_as_frozen() -> None:
    paper = scale_of("paper", stand_ins=False)
    asks = section("accelgen").asks(paper)
    frozen = find_scenario("accelgen")
    settings = [setting for ask in asks for setting in ask.settings]
    assert {s.rate for s in settings} == {*frozen.rates} and {s.seed for s in settings} == {
        *frozen.seeds
    }
    assert {s.requests for s in settings} == {frozen.requests}
    assert all(s.scenario == frozen for s in settings)


def test_picked_rates_have_both_ends() -> None:
    scale = Scale("x", True, rates=3)
    assert scale.pick([1.0, 2.0, 3.0, 4.0, 5.0]) == [1.0, 3.0, 5.0]
    assert scale.pick([1.0, 2.0]) == [1.0, 2.0]
    assert Scale("x", True, rates=1).pick([1.0, 2.0, 3.0]) == [1.0, 3.0]


def test_ratios_are_marked_where_they_fall_short_of_the_paper() -> None:
    found = found_by(section("accelgen"))
    top = find_scenario("accelgen").rates[-1]
    goodputs = {"accelgen": 1.0, "orca": 0.1, "vllm": 0.5, "fastgen": 0.9, "sarathi": 2.0}
    for (workload, arm, rate), group in [*found.runs.items()]:
        results = [result(one.setting, goodput=goodputs.get(arm, 0.01)) for one in group.results]
        found.runs[workload, arm, rate] = Group(arm, rate, results)
    table = section("accelgen").tabulate(found)[-2]
    assert table.name == "accelgen-ratios"
    rows = [row for row in table.rows if row[0].text == "goodput" and row[1].value == top]
    assert [cell.value for cell in rows[0][2:7]] == pytest.approx([10, 2, 1 / 0.9, 0.5, 100])
    assert [cell.mark for cell in rows[0][2:7]] == ["", "", "short", "short", ""]
    assert rows[0][8].text == "short of it against fastgen, sarathi"
    assert rows[0][7].text == "1.43 to 13.71 [S]"
    [one] = found.group("accelgen", "orca", top).results
    found.runs["accelgen", "orca", top] = Group("orca", top, [result(one.setting, goodput=0.0)])
    table = section("accelgen").tabulate(found)[-2]
    rows = [row for row in table.rows if row[0].text == "goodput" and row[1].value == top]
    assert (rows[0][2].text, rows[0][2].mark) == ("∞", "")
    jct = next(row for row in table.rows if row[0].text == "mean JCT")
    assert [cell.value for cell in jct[2:7]] == pytest.approx([1.0] * 5)
    said = " ".join(section("accelgen").say(found))
    assert "goodput against orca, vllm, fastserve of 5; token throughput against none of 5" in said
    assert "0.50 times that of sarathi" in said


def test_ablations_beside_the_paper() -> None:
    found = found_by(section("accelgen"))
    for (workload, arm, rate), group in [*found.runs.items()]:
        tokens = {"accelgen": 1000.0, "accelgen-no-chunking": 20.0}.get(arm, 900.0)
        found.runs[workload, arm, rate] = Group(
            arm, rate, [result(one.setting, token_throughput=tokens) for one in group.results]
        )
    table = section("accelgen").tabulate(found)[-1]
    rows = {(row[0].text, row[2].text): row for row in table.rows}
    chunking = rows["accelgen-no-chunking", "token throughput"]
    assert chunking[3].value == pytest.approx(-98) and chunking[5].text == "loses as much, or more"
    batching = rows["accelgen-no-batching", "token throughput"]
    assert batching[3].value == pytest.approx(-10) and batching[3].mark == "short"
    assert batching[4].text == "-61 % [N]"


def test_an_ablation_of_nothing_is_no_verdict() -> None:
    table = section("accelgen").tabulate(found_by(section("accelgen"), token_throughput=0.0))[-1]
    rows = [row for row in table.rows if row[2].text == "token throughput"]
    assert rows and all(row[4].text != "–" for row in rows)
    assert {row[3] for row in rows} == {row[5] for row in rows} == {Cell("–")}


def test_policies_at_a_rate_are_the_means_over_seeds() -> None:
    scale = Scale("x", True, {"": 6}, seeds=3, rates=1)
    one = section("accelgen")
    found = found_by(one, scale)
    for (workload, arm, rate), group in [*found.runs.items()]:
        results = [
            result(r.setting, goodput=1.0 + r.setting.seed + (arm == "edf")) for r in group.results
        ]
        found.runs[workload, arm, rate] = Group(arm, rate, results)
    table = one.tabulate(found)[0]
    row, best = row_of(table, "vllm"), row_of(table, "edf")
    assert row["goodput req/s"].value == pytest.approx(2.0) and row["goodput req/s"].mark == ""
    assert (
        best["goodput req/s"].value == pytest.approx(3.0) and best["goodput req/s"].mark == "best"
    )
    judged = measured().summary.judged  # type: ignore[union-attr]
    assert row["attained %"].value == pytest.approx(100 * judged.attainment[GAP])
    panel = one.draw(found)[0].panels[0]
    edf = next(series for series in panel.series if series.name == "edf")
    assert (edf.low[0], edf.y[0], edf.high[0]) == pytest.approx((2.0, 3.0, 4.0))


def test_a_failed_policy_is_shown_as_such() -> None:
    one = section("accelgen")
    found = found_by(one)
    for key, group in [*found.runs.items()]:
        if key[1] == "orca":
            found.runs[key] = Group(
                key[1], key[2], [result(r.setting, "stuck") for r in group.results]
            )
    row = row_of(one.tabulate(found)[0], "orca")
    assert row["goodput req/s"] == Cell("failed", "failed", "fault")
    assert any("orca" in words and "stuck" in words for words in one.say(found))


def test_capacity_is_per_device() -> None:
    one = section("field")
    found = found_by(one)
    table = next(t for t in one.tabulate(found) if t.name == "three_class-capacity")
    alone, pair = row_of(table, "sarathi"), row_of(table, "distserve, per device of 2")
    assert (
        alone["capacity at 99%, req/s"].value == 2.0
        and alone["capacity at 99%, req/s"].mark == "best"
    )
    assert pair["capacity at 99%, req/s"].value == 1.0
    assert (
        alone["lowest rate not kept at 99 %"].value == 2.2
        and alone["attained there, %"].value == 50
    )
    assert alone["QoServe's scripts sweep"].text == "1.45 to 1.9"
    assert "capacities are too high" in table.note  # 400 requests are over long before half an hour


def test_the_staircase_beside_the_published_one() -> None:
    one = section("staircase")
    found = found_by(one, attained=0.25)
    rates = iter((2.0, 3.0, 2.5, 4.0))
    for key in [*found.searches]:
        found.searches[key] = Capacity(next(rates), 9.0, [(9.0, 0.1)]), []
    [table] = one.tabulate(found)
    assert [row[2].value for row in table.rows] == [2.0, 3.0, 2.5, 4.0]
    assert [row[3].value for row in table.rows] == list(STAIRCASE_CAPACITY)
    assert [row[4].text for row in table.rows] == ["–", "×1.50", "×0.83", "×1.60"]
    assert (
        [row[6].value for row in table.rows] == [row[7].value for row in table.rows] == [75.0] * 4
    )
    assert "it falls at: + relegation" in one.say(found)[0]


def test_the_best_found_is_at_least_every_policy() -> None:
    one = section("oracle")
    found = found_by(one)
    goodputs = {"accelgen": 0.5, "edf": 0.8, "chains of the search": 0.7}
    for (workload, arm, rate), group in [*found.runs.items()]:
        results = [result(r.setting, goodput=goodputs.get(arm, 0.1)) for r in group.results]
        found.runs[workload, arm, rate] = Group(arm, rate, results)
    [table] = one.tabulate(found)
    rows = [row for row in table.rows if row[1].text == "1"]
    shown = {row[0].text: row for row in rows}
    assert shown["the best found"][2] == Cell("0.800", 0.8, "best")
    assert shown["accelgen"][4].value == pytest.approx(-37.5) and shown["edf"][4].value == 0
    bound = shown["no schedule more than"]
    assert bound[4] == Cell("–") and 0 < float(bound[3].value or 0) <= 100
    assert [cell.value for cell in table.rows[-1][4:]] == [-6, -12, -1.1, 22]
    assert "accelgen is 37.5 % below the best found" in one.say(found)[0]
    assert "nearest to it comes edf, 0.0 % below" in one.say(found)[0]


def test_relegation_compares_the_same_requests() -> None:
    one = section("relegation")
    found = found_by(one, Scale("x", True, {"": 6}, rates=1))
    [rate, *_] = found.rates("relegation")
    for arm, failed in (("qoserve", 0), ("qoserve without relegation", 1)):
        group = found.group("relegation", arm, rate)
        seeds = [structs.replace(group.results[0].setting, seed=seed) for seed in range(3)]
        results = [result(each, "stuck" * (each.seed == failed)) for each in seeds]
        marked = [
            structs.replace(r, detail=r.detail and marked_with(r.detail, r.setting.seed))
            for r in results
        ]
        found.runs["relegation", arm, rate] = Group(arm, rate, marked)
    pairs = [(with_.prompt[0], without.prompt[0]) for with_, without in same(found, rate)]
    assert pairs == [(2, 2)]


def marked_with(detail: Detail, seed: int) -> Detail:
    requests = structs.replace(detail.requests, prompt=[seed] * len(detail.requests.prompt))
    return structs.replace(detail, requests=requests)


def test_costs_read_the_results_of_benchmarks() -> None:
    one = section("costs")
    assert "make bench" in one.say(Found(SMALL))[0]
    decisions = [
        {"policy": "sarathi", "waiting": 2000, "p50_ms": 0.2, "p99_ms": 0.4, "budget_ms": 1.0},
        {"policy": "accelgen", "waiting": 10_000, "p50_ms": 0.2, "p99_ms": 7.0, "budget_ms": 5.0},
    ]
    speed = {
        "bench_simulator.py::test_simulator[sarathi-prefix-cache]": {"entries_per_cpu_s": 90_000}
    }
    rows: dict[str, Any] = {
        "decisions": {"date": "today", "rows": decisions},
        "components": {"results": speed},
        "odd": [1],
        "other": {"results": 3, "rows": 4},
        "truth": {"rows": [3, {"figure": "TTFT", "mean_error": "much", "p99_error": 0.5}]},
    }
    found = Found(SMALL, rows=rows)
    own, decided, fast, truth = one.tabulate(found)
    assert own.rows == []
    assert row_of(decided, "sarathi")[""].text == "kept"
    assert row_of(decided, "accelgen")[""].mark == "short"
    assert fast.rows[0][3].mark == "short"
    assert [cell.text for cell in truth.rows[0][3:5]] == ["–", "+50.0 %"]
    assert one.say(found) == ["Measured results: decisions (today)."]


def test_made_of_says_with_what() -> None:
    setting = measured().setting
    results = [
        measured(),
        structs.replace(
            measured(), setting=structs.replace(setting, seed=3, rate=2.0), given_up=True
        ),
        structs.replace(measured(), summary=None, fault="x"),
    ]
    said = made_of(results)
    for words in ("3 runs", "6 requests each", "seeds 0, 3", "rates 2 to 8 req/s", "opt-13b on a100",
                  "synthetic stand-ins", "1 failed", "1 given up"):  # fmt: skip
        assert words in said
    assert "real traces" not in said
    real = structs.replace(measured(), setting=structs.replace(setting, stand_ins=False))
    assert "real traces" in made_of([real]) and "stand-ins" not in made_of([real])


def test_a_search_gives_up_where_the_mean_is_out_of_reach() -> None:
    scale = Scale("x", True)
    searches = [ask for ask in section("field").asks(scale) if isinstance(ask, Search)]
    seeds = {
        len(search.settings): search.settings[0].enough
        for search in searches
        if search.wanted == 0.9
    }
    assert seeds[1] == pytest.approx(0.9) and seeds[3] == pytest.approx(0.7)


def test_published_numbers_have_a_source() -> None:
    for one in (*ACCELGEN, *ABLATIONS.values(), *(p for s in SECTIONS for p in s.published)):
        assert one.source and one.evidence in ("S", "N", "C") and one.low <= one.high
