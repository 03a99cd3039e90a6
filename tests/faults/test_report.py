"""The page made from rows says what the rows say, failures above all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelgen.faults.contract import NOT_AT_STAKE, PROMISES, Verdict
from accelgen.faults.report import main, report
from accelgen.faults.rows import AnyRow, KilledRow, Row, SlowRow, Spread, SwapsRow, append, read

KEPT = {promise: Verdict(True, "fine") for promise in PROMISES}


def row(**changes: Any) -> Row:
    fields: dict[str, Any] = {
        "case": "sigkill/worker-0", "fault": "sigkill", "target": "worker-0", "moment": "load", "seed": 5,
        "when": "2026-11-21T10:00:00+00:00", "machine": "a processor, 2 cores", "shape": "vllm",
        "verified": "process 7 is gone", "control": "caught", "requests": 40, "recovery_s": 1.25, "contract": KEPT,
    }  # fmt: skip
    return Row(**{**fields, **changes})


def killed(name: str, failed: int) -> KilledRow:
    return KilledRow(
        when="2026-11-21", machine="a processor", killed=name, requests=800, clients=8, failed=failed,
        causes={}, different=0, recovery_s=0.5,
    )  # fmt: skip


SWAPS = SwapsRow(
    when="2026-11-21", machine="a processor", swaps=1000, refused=0, streams=32, outcomes={"same": 900},
    without=Spread(1, 2, 3, 4), over_a_swap=Spread(5, 6, 7, 8), handover=Spread(9, 10, 11, 12),
)  # fmt: skip


PAUSED = msgspec.structs.replace(
    SWAPS, pause_s=0.2, control=Spread(1, 2, 3, 5), over_a_swap=Spread(5, 6, 47, 60)
)
SLOW = SlowRow(
    when="2026-11-21", machine="a processor", what="prefill", took_s=12.0, longest_step_s=11.5, restarted=[],
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"verified": ""}, ["the fault did not take effect"]),
        ({"control": "not run"}, ["negative control: not run"]),
        ({"control": "took for evidence: x"}, ["negative control: took for evidence: x"]),
        ({"contract": {**KEPT, "C2": Verdict(False, "a token came twice")}}, ["C2: a token came"]),
        ({"contract": {**KEPT, "C2": NOT_AT_STAKE}}, []),
        ({"note": "the server does not end"}, ["the server does not end"]),
    ],
)
def test_what_makes_a_case_fail(changes: dict[str, Any], words: list[str]) -> None:
    assert row().passed
    found = row(**changes)
    assert found.passed is not words and len(found.broken) == len(words)
    assert all(a.startswith(b) for a, b in zip(found.broken, words, strict=True))
    page = report([row(), found])
    assert ("2 cases passed" in page) == (not words)
    assert all(word in page for word in words)


def test_rows_survive_a_file(tmp_path: Path) -> None:
    rows: list[AnyRow] = [row(), killed("worker", 0), SWAPS, PAUSED, SLOW]
    for one in rows:
        append(tmp_path / "rows.jsonl", one)
    assert read([tmp_path / "rows.jsonl"]) == rows
    (tmp_path / "other.jsonl").write_text('{"kind": "case"}\n')
    with pytest.raises(msgspec.ValidationError):
        read([tmp_path / "other.jsonl"])


def test_the_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failed = row(
        case="hang/worker-0", fault="hang", contract={**KEPT, "C4": Verdict(False, "hung")}
    )
    for one in (row(), row(recovery_s=2.0), failed, killed("worker", 3), SWAPS):
        append(tmp_path / "rows.jsonl", one)
    assert main([str(tmp_path / "rows.jsonl")]) == 0
    page = capsys.readouterr().out
    assert "| sigkill | not run | not run | not run | pass 2/2, 2.0 s | not run |  |" in page
    assert "**FAIL**, 1.2 s" in page and "| hang/worker-0 | 5 |" in page
    assert "| C4 |" in page and "**kept in 2 of 3 cases**" in page
    assert "| worker | 3 | 0 | 0.50 | 280, 38.0 |" in page
    assert "| longest gap of any stream over each swap | 5.0 | 6.0 | 7.0 | 8.0 |" in page
    assert all(len(line) <= 120 for line in page.splitlines() if not line.startswith("|"))


def test_what_a_swap_costs_is_set_beside_as_long_without_one() -> None:
    page = report([SWAPS, msgspec.structs.replace(PAUSED, refused=9), PAUSED])
    assert page.count("1,000 swaps") == 2 and "9 refused" not in page  # of each pause the last run
    assert "is 44 ms longer" in page.replace("\n", " ")
    assert (
        "| longest gap of any stream over as long without a swap | 1.0 | 2.0 | 3.0 | 5.0 |" in page
    )


def test_the_clients_of_a_killed_frontend_are_told_apart() -> None:
    lost = msgspec.structs.replace(killed("frontend", 8), connections=8)
    assert "| frontend | 8, its 8 connections | 0 | 0.50 | 144, 17.5 |" in report([lost])


def test_who_was_started_again_though_only_slow_is_named() -> None:
    assert "| prefill | 11.5 | nobody | 2026-11-21 |" in report([SLOW])
    other = msgspec.structs.replace(SLOW, restarted=["worker-0", "kvmanager-0"])
    assert "| prefill | 11.5 | worker-0, kvmanager-0 | 2026-11-21 |" in report([other])


def test_a_page_of_nothing_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "No rows" in report([]) and "not at stake" in report([])
    assert main([]) == 2 and "usage" in capsys.readouterr().err
