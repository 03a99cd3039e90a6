"""`accelgen chaos`: what it refuses, lists and repeats. (Its cases are run in tests/faults.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from accelgen.faults.campaign import Campaign
from accelgen.faults.cases import MATRIX
from accelgen.faults.contract import PROMISES, Verdict
from accelgen.faults.history import History, Request
from accelgen.faults.rows import Row, read
from accelgen.faults.schedule import Step
from accelgen.scripts.chaos import command

KEPT = {promise: Verdict(True) for promise in PROMISES}


def call(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, standalone_mode=False)


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Step]]:
    """No server is started: cases of workers fail, all others pass at once."""
    steps: list[Step] = []

    def run(campaign: Campaign, step: Step) -> Row:
        steps.append(step)
        campaign.histories = [History(0, Request(0, (1,), 2, 3))]
        return Row(
            case=step.case.name, fault=step.case.fault, target=step.case.target, moment=step.case.moment,
            seed=step.seed, when="", machine="", shape="", verified="seen", control="caught", contract=KEPT,
            note="made to fail" if "worker" in step.case.target else "",
        )  # fmt: skip

    monkeypatch.setattr(Campaign, "run", run)
    yield steps


def test_listing_runs_nothing(ran: list[Any]) -> None:
    done = call("--list")
    assert done.return_value == 0 and not ran
    assert f"{len(MATRIX)} of {len(MATRIX)} cases" in done.output
    assert all(case.fault in done.output for case in MATRIX)
    assert "3 of" in call("--list", "--cases", "old-epoch/*").output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cases", "nothing/*"], "no case matches 'nothing/*'; see --list"),
        (["--minutes", "0"], "0.0 is not in the range x>0"),
        (["--seed", "-1"], "-1 is not in the range"),
        (["--slack", "0.5"], "0.5 is not in the range x>=1.0"),
        (["--rows", "/nowhere/rows.jsonl"], "/nowhere is not a folder"),
    ],
)
def test_bad_options(ran: list[Any], arguments: list[str], words: str) -> None:
    done = call(*arguments)
    assert done.exception is not None and words in str(done.exception)
    assert not ran


def test_the_seed_repeats_the_schedule(ran: list[Any]) -> None:
    done = call("--once", "--cases", "*/scheduler")
    assert done.return_value == 0
    seed = done.output.partition("seed ")[2].partition(":")[0]
    first, again = list(ran), call("--once", "--cases", "*/scheduler", "--seed", seed)
    assert again.return_value == 0 and ran[len(first) :] == first
    assert f"repeat it with --seed {seed}" in again.output


def test_one_case_is_named(ran: list[Any]) -> None:
    said = call("--once", "--cases", "exit-0/worker-0", "--seed", "1").output.splitlines()[0]
    assert said == "seed 1: exit-0/worker-0, once"


def test_failures_are_shown_kept_and_told_by_the_exit_status(
    ran: list[Any], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    done = call("--once", "--cases", "exit-0/[kw]*-0", "--seed", "1", "--rows", str(rows))
    assert done.return_value == 1
    assert "FAIL exit-0/worker-0" in done.output and "made to fail" in done.output
    assert "pass exit-0/kvmanager-0" in done.output
    assert {row.case for row in read([rows])} == {"exit-0/worker-0", "exit-0/kvmanager-0"}  # type: ignore[union-attr]
    [kept] = (tmp_path / "rows.failed").iterdir()
    assert kept.name.startswith("exit-0-worker-0.") and '"max_tokens": 2' in kept.read_text()


def test_no_time_left_ends_it(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 25))
    monkeypatch.setattr("accelgen.scripts.chaos.now_s", lambda: float(next(clock)))
    assert call("--minutes", "1", "--cases", "*/scheduler").return_value == 0
    assert len(ran) == 1


def test_interrupted(ran: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Campaign, "run", interrupt)
    done = call("--once")
    assert done.return_value == 130 and "no case was run" in done.output
