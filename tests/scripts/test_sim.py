"""`accelgen sim`: what its verbs print, write and refuse."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result
from rich.console import Console
from rich.progress import Progress

from accelgen.proto.policies import known_policies
from accelgen.scripts import sim_bars, sim_table
from accelgen.scripts.cli import main
from accelgen.scripts.sim_options import requests_of
from accelgen.simulator.crew import Crew
from accelgen.simulator.experiment import Setting, key_of, run_setting
from accelgen.simulator.groups import groups_of
from accelgen.simulator.oracle import CHAINS, VARIANTS
from accelgen.simulator.scenarios import find_scenario
from accelgen.simulator.settings import Policy, setting_of
from accelgen.simulator.study import Scale
from accelgen.simulator.times import Rule
from accelgen.simulator.traces import VARIABLE

SMALL = ["--trace", "synthetic:azure2023_code", "--requests", "20", "--quiet", "--slo", "ttft=500"]


@pytest.fixture(autouse=True)
def no_traces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


def sim(*words: str, out: Path | None = None) -> Result:
    where = ["--out", str(out)] if out else []
    return CliRunner().invoke(main, ["sim", *words, *where])


def test_list_names_everything() -> None:
    shown = sim("list").output
    for name in ("three_class", "sarathi", "opt-13b on a100", "azure2023_conv", "on-demand"):
        assert name in shown


def test_run_prints_what_matters_and_keeps_every_figure(tmp_path: Path) -> None:
    words = ["run", *SMALL, "--policy", "sarathi:chunk_size=256", "--rate", "3", "--save-detailed"]
    done = sim(*words, out=tmp_path)
    assert done.exit_code == 0, done.output
    assert "sarathi:chunk_size=256 at 3 requests/s, seed 0" in done.output
    shown = [line for line in done.stdout.splitlines() if line.startswith("TTFT p99")]
    assert len(shown) == 1 and shown[0].endswith(" s") and len(done.stdout.splitlines()) < 25
    [table] = [path for path in tmp_path.glob("*.csv") if "requests" not in path.name]
    [row] = csv.DictReader(table.open())
    assert f"{float(row['latency.ttft_s.p99']):.2f}" in shown[0]
    [requests] = tmp_path.glob("*.requests.csv")
    rows = list(csv.DictReader(requests.open()))
    assert len(rows) == 20 and {row["end"] for row in rows} == {"stop"}
    assert all(float(row["ttft_s"]) <= float(row["jct_s"]) for row in rows)
    again = sim(*words[:-1], out=tmp_path)
    assert again.stdout == done.stdout
    [result] = json.loads(sim(*words[:-1], "--json", out=tmp_path).stdout)
    assert result["summary"]["latency"]["ttft_s"]["p99"] == float(row["latency.ttft_s.p99"])


def test_a_memory_policy_beside_every_policy(tmp_path: Path) -> None:
    """Named in the title; other results than without it, and than with other parameters."""
    words = ["run", *SMALL, "--policy", "sarathi", "--rate", "40", "--kv-blocks", "1000", "--quiet"]
    plain = sim(*words, "--json", out=tmp_path)
    found = {json.loads(plain.stdout)[0]["key"]}
    for more in ([], ["--memory-param", "pad=false"], ["--memory-param", "embed=false"]):
        done = sim(*words, "--memory", "cacheopt", *more, "--json", out=tmp_path)
        assert done.exit_code == 0, done.output
        [result] = json.loads(done.stdout)
        assert result["setting"]["scenario"]["memory"] == "cacheopt"
        assert result["summary"]["judged"]["sent"] == 20
        found.add(result["key"])
    assert len(found) == 4
    shown = sim(*words, "--memory", "cacheopt", "--memory-param", "reserve=0", out=tmp_path).output
    assert "memory cacheopt:reserve=0" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--memory", "cacheop"], "there is no memory policy 'cacheop'; did you mean cacheopt?"),
        (["--memory", "cacheopt", "--memory-param", "pda=1"], "cacheopt has no parameter 'pda'"),
        (["--memory", "cacheopt", "--memory-param", "pad"], "'pad' is not of the form key=value"),
        (["--memory-param", "pad=false"], "on-demand has no parameter 'pad'; it has none"),
        (["--policy", "cacheopt", "--memory-param", "pda=1"], "cacheopt has no parameter 'pda'"),
        (["--policy", "distserve", "--replicas", "2", "--memory-param", "pad=false"],
         "of which memory policy? Say --memory, too: distserve has rules of its own"),
    ],
)  # fmt: skip
def test_memory_policies_that_cannot_be(words: list[str], said: str, tmp_path: Path) -> None:
    done = sim("run", *SMALL, *words, out=tmp_path)
    assert done.exit_code == 2 and said in " ".join(done.output.split())


def test_parameters_of_the_memory_policy_that_a_policy_brings(tmp_path: Path) -> None:
    words = [
        *SMALL,
        "--rate",
        "40",
        "--kv-blocks",
        "1000",
        "--quiet",
        "--memory-param",
        "pad=false",
    ]
    done = sim("run", *words, "--policy", "cacheopt", "--json", out=tmp_path)
    assert done.exit_code == 0, done.output
    scenario = json.loads(done.stdout)[0]["setting"]["scenario"]
    assert (scenario["memory"], scenario["memory_params"]) == ("cacheopt", {"pad": False})
    done = sim("compare", *words, "--policies", "cacheopt,sarathi", out=tmp_path)
    said = "of which memory policy? Say --memory, too: cacheopt has cacheopt, sarathi has on-demand"
    assert done.exit_code == 2 and said in " ".join(done.output.replace("│", " ").split())


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["compare", "--rate", "3", "--seeds", "4,5"], "3 requests/s; seeds 4, 5; lengths of"),
        (["sweep", "--rates", "3", "--seeds", "4"], "seed 4; lengths of"),
        (["capacity", "--seeds", "4", "--tolerance", "0.5"], "seed 4; lengths of"),
        pytest.param(
            ["oracle", "--rate", "3", "--seeds", "4", "--requests", "3"], "3 requests/s; seed 4; lengths of",
            marks=pytest.mark.slow,
        ),
        (["run", "--rate", "3", "--seeds", "4"], "vllm at 3 requests/s, seed 4; lengths of"),
    ],
)  # fmt: skip
def test_what_was_asked_for_stands_above_the_table(
    words: list[str], asked: str, tmp_path: Path
) -> None:
    verb, *more = words
    policy = ["--policy" if verb == "run" else "--policies", "vllm"]
    of = ["--scenario", "slos_summarizer", "--synthetic", "--requests", "10", "--quiet"]
    done = sim(verb, *of, *policy, *more, out=tmp_path)
    assert done.exit_code == 0, done.output
    line = done.stdout.splitlines()[1]
    assert line.startswith(asked), line
    assert line.partition("lengths of ")[2] == (
        "a synthetic stand-in for lengths_arxiv_summarization_llama2;"
        " trace arrivals of a synthetic stand-in for azure2023_conv"
    )


def test_whose_lengths_and_arrivals_are_said() -> None:
    scenario = find_scenario("accelgen")
    one, other = [part.source for part in scenario.parts]
    assert requests_of(scenario, False) == f"lengths of {one}, {other}; poisson arrivals"
    made = f"lengths of synthetic stand-ins for {one}, {other}; poisson arrivals"
    assert requests_of(scenario, True) == made
    mine = msgspec.structs.replace(scenario.parts[0], source="my.csv")
    mixed = msgspec.structs.replace(scenario, parts=[mine, *scenario.parts[1:]], arrivals="gamma")
    assert requests_of(mixed, True) == (
        f"lengths of my.csv and a synthetic stand-in for {other}; gamma arrivals"
    )


@pytest.mark.parametrize("width", [80, 100, 150])
@pytest.mark.parametrize("with_rate", [False, True])
def test_tables_are_whole_in_narrow_terminals(
    width: int, with_rate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenario = Scale("x", True).scenario("azure2023_code", requests=6)
    policy: Policy = ("accelgen-no-chunking", {})
    done = run_setting(setting_of("x", scenario, policy, 12345.0, 0, stand_ins=True))
    rows = groups_of([done])
    console = Console(width=width, file=StringIO(), force_terminal=True, color_system=None)
    monkeypatch.setattr(sim_table, "wide_console", lambda: console)
    rule = Rule(scenario.rule)
    sim_table.print_groups(rows, rule, "title", with_rate)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line.rstrip()) <= width for line in said.splitlines())
    words = Counter(said.split())
    for column in sim_table.columns(rule):
        cell = column.form.format(column.read(done) or 0.0)
        needed = Counter([*column.head.split(), cell])
        assert needed <= words, column.head
        words -= needed


def test_compare_writes_table_figure_csv_and_json(tmp_path: Path) -> None:
    words = ["compare", *SMALL, "--policies", "sarathi,vllm", "--seeds", "0,1", "--jobs", "1"]
    done = sim(*words, out=tmp_path)
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if "sarathi" in line or "vllm" in line]
    assert len(lines) == 2
    [table], [whole], [figure] = (
        tmp_path.glob(f"compare-*.{kind}") for kind in ("csv", "json", "png")
    )
    rows = list(csv.DictReader(table.open()))
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("sarathi", "0"), ("sarathi", "1"), ("vllm", "0"), ("vllm", "1"),
    ]  # fmt: skip
    assert all(row["judged.sent"] == "20" for row in rows)
    assert len(json.loads(whole.read_text())) == 4 and figure.stat().st_size > 10_000
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(before) == 4
    sim(*words, out=tmp_path)  # nothing is run again
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}


def test_sweep_and_capacity(tmp_path: Path) -> None:
    words = [*SMALL, "--policies", "vllm", "--jobs", "1"]
    done = sim("sweep", *words, "--rates", "1,50", out=tmp_path)
    assert done.exit_code == 0, done.output
    assert len([line for line in done.output.splitlines() if "vllm" in line]) == 2
    out = tmp_path / "capacity"
    done = sim("capacity", *words, "--attainment", "0.9,0.5", "--tolerance", "0.3", out=out)
    assert done.exit_code == 0, done.output
    assert "capacity at 90%" in done.output and "capacity at 50%" in done.output
    [table], [figure] = out.glob("capacity-*.csv"), out.glob("capacity-*.png")
    rows = [{**row, **floats(row)} for row in csv.DictReader(table.open())]
    assert {row["attainment"] for row in rows} == {0.9, 0.5} and figure.stat().st_size > 10_000
    for row in rows:
        assert (row["attained"] >= row["attainment"]) == (row["rate"] <= row["capacity"])
    high, low = (next(row for row in rows if row["attainment"] == x) for x in (0.9, 0.5))
    assert low["capacity"] > high["capacity"]
    rates = {row["rate"] for row in rows}
    assert len(rates) == len([*(out / "runs").iterdir()]) < len(rows)  # shared


def floats(row: dict[str, str]) -> dict[str, float]:
    """Those columns that are numbers."""
    return {key: float(value) for key, value in row.items() if key not in ("policy", "rule")}


def test_oracle_is_above_every_policy_and_below_the_bound(tmp_path: Path) -> None:
    words = [
        *SMALL,
        "--requests",
        "12",
        "--rate",
        "40",
        "--max-tokens",
        "32",
        "--jobs",
        "1",
        "--evaluations",
        "8",
    ]
    words += ["--policies", "vllm,qoserve", "--seeds", "0,1"]
    done = sim("oracle", *words, out=tmp_path)
    assert done.exit_code == 0, done.output
    for said in ("oracle (searched)", "bound (relaxation)", "Seed 1: ", "requests can attain"):
        assert said in done.output
    assert "optimal" not in done.output
    [table], [bounds] = tmp_path.glob("oracle-*[0-9a-f].csv"), tmp_path.glob("*.bounds.csv")
    rows = list(csv.DictReader(table.open()))
    most = {row["seed"]: float(row["goodput"]) for row in csv.DictReader(bounds.open())}
    figure = "goodput.cumulative_deadline"
    for seed in "01":
        found = {row["policy"]: float(row[figure]) for row in rows if row["seed"] == seed}
        assert max(found.values()) == found["oracle (searched)"] <= most[seed]
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    again = sim("oracle", *words, out=tmp_path)  # nothing is run again
    assert again.output == done.output
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    compared = sim("compare", "--oracle", *words, out=tmp_path)
    assert compared.exit_code == 0, compared.output
    assert kept == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    heads = [line.strip().split("  ")[0] for line in compared.output.splitlines()]
    assert {"vllm", "qoserve", "oracle (searched)", "bound (relaxation)"} <= set(heads)


def test_who_has_no_terminal_is_told_how_far_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sim_bars, "LINE_S", 0.05)
    words = [word for word in SMALL if word != "--quiet"]
    words += ["--policies", "vllm", "--evaluations", "8", "--jobs", "1", "--requests", "8"]
    asked: list[str] = []

    def run(crew: Crew, setting: Setting, progress: Any) -> Any:
        asked.append(key_of(setting))
        return really_run(crew, setting, progress)

    really_run = Crew.run
    monkeypatch.setattr(Crew, "run", run)
    done = sim("oracle", *words, "--anew", out=tmp_path)
    assert done.exit_code == 0, done.output
    assert len(asked) == len({*asked}) == len(known_policies()) + len(VARIANTS) + CHAINS
    lines = done.stderr.splitlines()
    assert any("a search that tries 8 schedules. 1 at a time." in line for line in lines)
    assert re.search(r"The first took [\d.]+ s: roughly 0:\d\d:\d\d", done.stderr)
    count = len(known_policies()) + len(VARIANTS) + 8
    assert re.search(rf"^0:00:\d\d azure2023_code: \d+ of {count} simulations", done.stderr, re.M)
    assert lines[-1].startswith("Wrote ")
    again = sim("oracle", *words, "--quiet", out=tmp_path)
    assert again.stdout == done.stdout and len(again.stderr.splitlines()) == 1


def test_what_is_left_counts_what_was_really_run() -> None:
    with Progress(disable=True) as progress:
        shown = sim_bars.Bars(progress, quiet=True)
        shown.expect("all", 100)
        for _ in range(80):  # there already
            with shown.one("old"):
                pass
        assert shown.line() == "all: 80 of 100 simulations"
        with shown.one("search", worth=10) as tell:
            tell(3, 7)
            assert shown.line() == "all: 84 of 100 simulations, search (3 of 7)"
        shown._ran_s = 20.0
        assert shown.line() == "all: 90 of 100 simulations, about 0:00:20 left"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--policy", "saraty"], "there is no policy 'saraty'; did you mean sarathi?"),
        (["run", "--policy", "sarathi:chunk=3"], "sarathi has no parameter 'chunk'"),
        (["run", "--policy", "sarathi:chunk_size"], "'chunk_size' is not of the form key=value"),
        (["run", "--scenario", "acelgen"], "'acelgen'; did you mean accelgen"),
        (["run", "--scenario", "accelgen"], "ACCELGEN_TRACES can name a folder of traces (or: --synthetic)"),
        (["run", "--scenario", "accelgen", "--trace", "x"], "either --trace or --scenario"),
        (["run", "--slo", "ttft=1"], "--slo belongs to --trace"),
        (["run", "--trace", "synthetic:x"], "there is no 'synthetic:x'; there is azure2023_code"),
        (["run", *SMALL, "--hardware", "a10"], "no fit of 'llama-3-8b' on 'a10'; there is llama-3-8b on a100"),
        (["run", *SMALL, "--slo", "chat"], "'chat': state numbers"),
        (["run", *SMALL, "--cut-tokens", "999999"], "cut_tokens: requests of 999999 tokens"),
        (["run", *SMALL, "--acceptance", "1.5"], "1.5 is not in the range 0<=x<=1"),
        (["run", *SMALL, "--max-draft-tokens", "65"], "65 is not in the range 1<=x<=64"),
        (["run", *SMALL, "--acceptance", "0.5", "--policy", "distserve"], "acceptance: distserve has no drafter"),
        (["oracle", *SMALL, "--acceptance", "0.5"], "acceptance: neither search nor bound know drafts"),
        (["compare", *SMALL, "--policies", "sarathi,x"], "there is no policy 'x'"),
        (["oracle", *SMALL, "--evaluations", "1"], "1 is not in the range 4<="),
        (["run", *SMALL, "--policy", "oracle"], "there is no policy 'oracle'"),
        (["sweep", *SMALL, "--rates", "0"], "0.0 is not in the range 0<x"),
        (["run", *SMALL, "--profile-file", "none.json"], "profile none.json"),
    ],
)  # fmt: skip
def test_refusals_are_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    done = sim(*words, out=tmp_path)
    assert done.exit_code == 2 and said in done.output
    assert len(done.output.strip().splitlines()) == 1


def test_a_bad_trace_is_named_with_row_and_column(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrived_at,prompt_tokens,output_tokens\n0,5,5\n1,five,5\n")
    done = sim("run", "--trace", str(path), out=tmp_path)
    assert done.exit_code == 2
    assert done.output.strip() == (
        f"accelgen: {path}, row 3, column prompt_tokens: 'five' is not a number"
    )
