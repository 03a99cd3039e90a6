"""The sections on CacheOPT and SLOs-Serve: figures beside the papers', read from results whose outcome is known."""

from __future__ import annotations

from typing import Any

import pytest
from findings import SMALL, found_by, measured, result, row_of, section
from msgspec import structs

from accelgen.scheduler.cost_model import Work
from accelgen.simulator import study_admission
from accelgen.simulator.capacity import Capacity
from accelgen.simulator.device import Iteration
from accelgen.simulator.experiment import Result, Setting, run_setting
from accelgen.simulator.groups import Group
from accelgen.simulator.metrics import Latencies, Spread
from accelgen.simulator.scenarios import find_scenario
from accelgen.simulator.study import Arm, Found, Search
from accelgen.simulator.study_admission import (
    FEW,
    PAIRS,
    ROUND_ROBIN,
    ROUTED,
    WANTED,
    WORKLOADS,
    per_replica,
)
from accelgen.simulator.study_tails import ARMS, PARTS
from accelgen.simulator.times import Rule

TOP = find_scenario("cacheopt").rates[-1]


def latencies(ttft_s: float, gap_s: float) -> Latencies:
    nothing = Spread()
    return Latencies(
        ttft_s=Spread(ttft_s, ttft_s, ttft_s, ttft_s, ttft_s), tpot_s=nothing,
        itl_s=Spread(gap_s, gap_s, gap_s, gap_s, gap_s), jct_s=nothing, normalised_s=nothing,
    )  # fmt: skip


def tails() -> Found:
    """vllm has three times cacheopt's P95 TTFT and four times its gaps, sarathi the same as cacheopt."""
    found = found_by(section("cacheopt"))
    times = {"vllm": (3.0, 4.0)}
    for (workload, arm, rate), group in [*found.runs.items()]:
        ttft, gap = times.get(arm, (1.0, 1.0))
        each = [result(r.setting, latency=latencies(ttft, gap)) for r in group.results]
        found.runs[workload, arm, rate] = Group(arm, rate, each)
    return found


def table_of(found: Found, name: str, which: str) -> Any:
    return next(table for table in section(name).tabulate(found) if table.name == which)


def test_tails_beside_the_paper() -> None:
    found = tails()
    table = table_of(found, "cacheopt", "cacheopt-ratios")
    row = row_of(table, "P95 TTFT, most over the rates")
    assert row["vllm"].value == pytest.approx(3.0) and row["vllm"].mark == ""
    assert row["sarathi"].value == pytest.approx(1.0) and row["sarathi"].mark == "short"
    assert row["paper, up to"].text == "2.83 [S]"
    gaps = row_of(table, f"P95 TBT at {TOP:g} req/s")
    assert gaps["vllm"].value == pytest.approx(4.0)
    said = section("cacheopt").say(found)[0]
    assert "P95 TTFT: 3.00× against vllm" in said and "the paper's highest 2.83" in said


def test_the_highest_rate_is_cacheopts_to_others() -> None:
    found = found_by(section("cacheopt"))
    for key in [*found.searches]:
        rate = {"vllm": 1.0, "sarathi": 1.5}.get(key[1], 2.0)
        found.searches[key] = Capacity(rate, 2.2, [(rate, 1.0), (2.2, 0.5)]), []
    table = table_of(found, "cacheopt", "cacheopt-rates")
    vllm, sarathi = row_of(table, "vllm"), row_of(table, "sarathi")
    assert (vllm["cacheopt's of it"].text, vllm["cacheopt's of it"].mark) == ("2.00×", "")
    assert (sarathi["cacheopt's of it"].text, sarathi["cacheopt's of it"].mark) == (
        "1.33×",
        "short",
    )
    assert row_of(table, "qoserve")["paper, up to"].text == "–"


def test_each_part_is_switched_off_and_compared_with_the_whole() -> None:
    found = found_by(section("cacheopt"), goodput=2.0)
    for (workload, arm, rate), group in [*found.runs.items()]:
        if arm == "without embedding":
            worse = [result(r.setting, goodput=1.0) for r in group.results]
            found.runs[workload, arm, rate] = Group(arm, rate, worse)
    table = table_of(found, "cacheopt", "cacheopt-parts")
    changes = {row[0].text: row[table.heads.index("goodput")].value for row in table.rows}
    assert changes.pop("without embedding") == pytest.approx(-50)
    assert {*changes.values()} == {0.0} and len(changes) == len(PARTS) - 1
    assert any(
        "goodput falls without embedding -50.0%" in one for one in section("cacheopt").say(found)
    )
    settings = {ask.arm: ask.settings[0] for ask in section("cacheopt").asks(SMALL)}
    assert settings["without the pad"].scenario.memory_params == {"pad": False}
    assert settings["always recomputing"].scenario.preemption == "recompute"
    assert len({str(one.changes) + one.policy for one in ARMS}) == len(ARMS)  # no two are the same


# --- slos-serve ------------------------------------------------------------------------------------------------------


def capacities(**rates: float) -> Found:
    """As if each arm's capacity were the same in every scenario."""
    found = found_by(section("slos"))
    for (workload, arm, wanted), (_, results) in [*found.searches.items()]:
        rate = rates.get(arm.replace("-", "_").replace(" ", "_").replace(":", "_"), 1.0)
        capacity = Capacity(rate, 2 * rate, [(rate, 1.0), (2 * rate, 0.5)])
        found.searches[workload, arm, wanted] = capacity, results
    return found


def test_capacity_is_per_replica_and_beside_the_paper() -> None:
    found = capacities(slos_serve=4.0, vllm=2.0, sarathi=4.0, distserve_1_1=2.0, distserve_2_1=6.0)
    assert per_replica(found, "slos_coder", "distserve") == 2.0  # the best: 6 of three devices
    table = table_of(found, "slos", "slos-capacity")
    row = row_of(table, "slos_mixed")
    assert row["slos-serve, req/s"].value == 4.0 and row["distserve, req/s"].value == 2.0
    mean = row_of(table, "geometric mean")
    assert (
        mean["slos-serve to vllm"].value == pytest.approx(2.0)
        and mean["slos-serve to vllm"].mark == ""
    )
    assert (
        mean["slos-serve to sarathi"].mark == "short"
        and mean["slos-serve to distserve"].mark == "short"
    )
    assert row_of(table, "the paper's")["slos-serve to vllm"].text == "1.76 [N]"
    assert "of the three together 1.59" in section("slos").say(found)[0]


def test_a_capacity_of_nothing_is_left_out_of_means_and_said() -> None:
    found = capacities(slos_serve=4.0, vllm=2.0)
    results = found.searches["slos_coder", "vllm", WANTED][1]
    found.searches["slos_coder", "vllm", WANTED] = Capacity(0.0, 0.1, [(0.1, 0.2)]), results
    said = section("slos").say(found)[0]
    assert "2.00 times that of vllm" in said
    assert "Left out of means, for a capacity of nothing: vllm in slos_coder." in said


def test_four_replicas_beside_one_and_routing_beside_turns() -> None:
    found = capacities(**{"slos_serve": 2.0, "4_replicas": 10.0, "4_replicas,_round_robin": 8.0})
    row = row_of(table_of(found, "slos", "slos-replicas"), "slos_chatbot")
    assert row["4 to 1"].value == pytest.approx(5.0) and row["4 to 1"].mark == ""
    assert row["routing to round robin"].value == pytest.approx(1.25)
    assert row_of(table_of(found, "slos", "slos-replicas"), "slos_coder")["4 to 1"].mark == "short"
    asked = {ask.arm: ask.settings[0] for ask in section("slos").asks(SMALL)}
    assert asked[ROUTED.name].scenario.replicas == 4 and asked[ROUTED.name].params == {}
    assert asked[ROUND_ROBIN.name].params == {"routing": False}
    assert [asked[pair.name].scenario.replicas for pair in PAIRS] == [2, 3, 3]


def test_parts_are_with_to_without() -> None:
    found = capacities(slos_serve=3.0, edf_sim=2.0, refusing=1.0, planning_at_arrivals=6.0)
    row = row_of(table_of(found, "slos", "slos-parts"), "geometric mean")
    assert row["dp to edf_sim"].value == pytest.approx(1.5)
    assert row["best effort to refusing"].value == pytest.approx(3.0)
    assert row["planning at arrivals to rounds"].value == pytest.approx(2.0)


def test_a_drafter_is_worth_the_capacity_with_it_to_that_without() -> None:
    found = found_by(section("speculation"))
    rates = {
        "slos-serve, here": 2.0, "slos-serve, drafting, here": 1.0,
        "slos-serve, the authors' times": 1.0, "slos-serve, drafting, the authors' times, 0.8": 1.8,
        "vllm, the authors' times": 0.5, "vllm, drafting, the authors' times, 0.8": 0.9,
    }  # fmt: skip
    for (workload, arm, wanted), (_, results) in [*found.searches.items()]:
        capacity = Capacity(rates.get(arm, 1.0), 4.0, [])
        found.searches[workload, arm, wanted] = capacity, results
    [table] = section("speculation").tabulate(found)
    here = row_of(table, "here", "slos_coder")
    assert here["slos-serve: drafting to not"].value == pytest.approx(0.5)
    assert here["slos-serve: drafting to not"].mark == "short"
    theirs = row_of(table, "the authors' times, 0.8", "slos_mixed")
    assert theirs["slos-serve: drafting to not"].value == pytest.approx(1.8)
    assert theirs["slos-serve: drafting to not"].mark == ""
    assert theirs["vllm: drafting to not"].value == pytest.approx(1.8)
    assert theirs["drafting: slos-serve to vllm"].value == pytest.approx(2.0)
    said = section("speculation").say(found)[0]
    assert "0.50 (vllm: 1.00) here" in said and "1.80 (vllm: 1.80) the authors' times, 0.8" in said


def test_the_drafter_is_asked_where_the_paper_has_one_and_by_the_authors_times() -> None:
    asked = section("speculation").asks(SMALL)
    assert {ask.workload for ask in asked} == {*study_admission.SPECULATED}
    assert len({(ask.workload, ask.arm) for ask in asked}) == len(asked)
    settings = {ask.arm: ask.settings[0] for ask in asked}
    chances = {name: one.scenario.acceptance for name, one in settings.items()}
    assert {chances[name] for name in chances if ", drafting" in name} == {0.6, 0.8}
    assert {chances[name] for name in chances if ", drafting" not in name} == {None}
    theirs = settings["slos-serve, the authors' times"]
    assert theirs.scenario.rule is Rule.MEAN
    device = theirs.scenario.device()
    assert device.seconds(Iteration(Work(100, 20))) == pytest.approx(0.03173 + 120 * 7.213e-5)
    assert device.kv_bytes == 2 * settings["slos-serve, here"].scenario.device().kv_bytes


def test_waves_are_told() -> None:
    found = capacities()
    results = found.searches["slos_mixed", "vllm", WANTED][1]
    odd = Capacity(2.0, 2.2, [(1.0, 0.5), (2.0, 0.95), (2.2, 0.1)])
    found.searches["slos_mixed", "vllm", WANTED] = odd, results
    assert any("one of several: vllm in slos_mixed." in said for said in section("slos").say(found))


def test_planning_is_read_from_all_runs_of_a_search() -> None:
    found = found_by(section("slos"))
    summary = measured().summary
    assert summary is not None
    longest = structs.replace(summary.decisions, longest_s=0.025)
    capacity, results = found.searches["slos_coder", "slos-serve", WANTED]
    slow = result(results[0].setting, decisions=longest)
    found.searches["slos_coder", "slos-serve", WANTED] = capacity, [*results, slow]
    row = row_of(table_of(found, "slos", "slos-planning"), "slos_coder", "dp")
    assert row["longest ms"].value == pytest.approx(25) and row["longest ms"].mark == "short"
    other = row_of(table_of(found, "slos", "slos-planning"), "slos_coder", "sarathi")
    assert other["longest ms"].mark == ""


# --- searches --------------------------------------------------------------------------------------------------------


def test_tool_loops_are_judged_by_session_and_never_given_up() -> None:
    asks = [ask for ask in section("slos").asks(SMALL) if isinstance(ask, Search)]
    assert {ask.workload for ask in asks if ask.sessions} == {"slos_toolllm"}
    for ask in asks:
        gives_up = ask.settings[0].enough > 0
        assert gives_up == (not ask.sessions), ask.workload
    assert {ask.workload for ask in asks} == {*WORKLOADS}
    assert {ask.workload for ask in asks if ask.wanted == FEW} == {"slos_chatbot"}


def test_a_session_counts_if_all_its_calls_attain() -> None:
    scenario = SMALL.scenario("slos_toolllm", requests=12)
    setting = Setting(
        name="x", scenario=scenario, policy="sarathi", rate=1.5, requests=12, stand_ins=True
    )
    found: Result = run_setting(setting)
    assert found.summary is not None
    search = SMALL.search("x", scenario, Arm.of("sarathi"), WANTED, sessions=True)
    share = search.attained(found)
    assert share == found.summary.sessions[Rule.CUMULATIVE]
    assert (
        share != found.summary.judged.attainment[Rule.CUMULATIVE]
    )  # a call that misses costs the session
    by_request = SMALL.search("x", scenario, Arm.of("sarathi"), WANTED)
    assert by_request.attained(found) == found.summary.judged.attainment[Rule.CUMULATIVE]


def test_what_an_arm_changes_is_what_is_run() -> None:
    scenario = SMALL.scenario("cacheopt", requests=5)
    arm = Arm(
        "a",
        "sarathi",
        changes={"memory": "cacheopt", "memory_params": {"reserve": 0}, "preemption": "swap"},
    )
    [setting] = SMALL.run("w", scenario, arm, 2.0).settings
    assert setting.scenario.memory == "cacheopt" and setting.scenario.preemption == "swap"
    assert scenario.memory == "" and run_setting(setting).fault == ""
