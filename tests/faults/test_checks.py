"""The checks of the whole server find what is wrong in forged logs and looks, and nothing wrong in good ones."""

from __future__ import annotations

from typing import Any

import pytest

from accelgen.faults.checks import (
    Times,
    check_death,
    check_exit,
    check_hang,
    check_metrics,
    check_not_killed,
    check_remains,
    check_truth,
    own_deaths,
)
from accelgen.faults.history import History, Kind, Request
from accelgen.faults.judge import longest_silence_s
from accelgen.faults.probe import Look


def event(at_s: float, name: str, child: str = "worker-0", pid: int = 7) -> dict[str, Any]:
    return {"at_s": at_s, "event": name, "child": child, "pid": pid}


def office(*more: dict[str, Any]) -> list[dict[str, Any]]:
    """The log of a scheduler's death."""
    died = event(100.05, "exit", "scheduler-0")
    return sorted([died, *more], key=lambda one: one["at_s"])


@pytest.mark.parametrize(
    ("events", "words"),
    [
        ([event(100.05, "exit"), event(100.2, "start", pid=8)], ""),
        ([event(100.05, "exit", pid=9), event(100.2, "start")], "never seen"),
        ([event(100.3, "exit"), event(100.4, "start")], "detected after 300 ms"),
        ([event(100.05, "exit")], "not started again"),
        ([event(100.05, "exit"), event(100.06, "start", "worker-1")], "not started again"),
        ([event(100.05, "exit"), event(100.5, "start")], "came 450 ms after"),
        # the second death within a minute may be answered 0.25 s later, the third 0.5 s
        ([event(60, "exit", pid=3), event(100.05, "exit"), event(100.5, "start")], ""),
        ([event(30, "exit", pid=3), event(100.05, "exit"), event(100.5, "start")], "450 ms after"),
        # a scheduler is followed by whoever takes office, or is about to
        (office(event(100.2, "takes office", "scheduler-1", 8)), ""),
        (office(event(101.2, "start", "scheduler-1", 8)), "came 1150 ms after"),
        (office(event(99.0, "start", "scheduler-1", 8)), ""),
        (
            office(event(90.0, "start", "scheduler-1", 8), event(95.0, "exit", "scheduler-1", 8)),
            "not started",
        ),
        # the seat of the dead may be the free one: its next process is a successor, too
        (
            office(
                event(99.0, "takes office", "scheduler-0", 7),
                event(100.2, "start", "scheduler-0", 8),
                event(102.0, "start", "scheduler-1", 9),
            ),
            "",
        ),
    ],
)
def test_deaths(events: list[dict[str, Any]], words: str) -> None:
    verdict = check_death(events, 7, Times(100.0))
    assert verdict.ok is (not words) and words in verdict.why


def test_hangs() -> None:
    killed = [event(106.0, "kill")]
    assert check_hang(killed, "worker-0", Times(100.0)).ok
    assert check_hang(killed, "worker-1", Times(100.0)).why == "worker-1 hung and was never ended"
    assert check_hang([event(108.0, "kill")], "worker-0", Times(100.0)).ok is False
    assert check_not_killed(killed, "worker-0", Times(100.0)).ok is False
    assert check_not_killed(killed, "scheduler-0", Times(100.0)).ok
    assert check_not_killed(killed, "worker-0", Times(107.0)).ok  # that was before


def test_exits() -> None:
    assert check_exit(None, None).ok and check_exit(1, None).ok is False
    assert check_exit(1, frozenset({1})).ok and check_exit(0, frozenset({1})).ok is False
    assert check_exit(None, frozenset({0})).ok is False


def test_remains() -> None:
    assert check_remains([], []).ok
    assert check_remains(["pid 5"], []).ok is False and check_remains([], ["x.sock"]).ok is False


def looks(*seen: tuple[float, bool | None, int]) -> list[Look]:
    return [Look(at_s, ready, 200, status) for at_s, ready, status in seen]


def test_truth() -> None:
    assert check_truth(looks((0, True, 200), (1, False, 503), (3, False, 503), (4, True, 200))).ok
    assert check_truth(looks((0, True, 200), (1, False, 200), (1.5, False, 503), (4, True, 200))).ok
    late = check_truth(looks((0, True, 200), (1, False, 200), (3, False, 200)))
    assert late.why == "/ready said 200 of a server that was not ready"
    cautious = [(float(t), True, 503) for t in range(9)]
    assert "503 of a ready server for 8.0 s" in check_truth(looks(*cautious)).why
    assert check_truth(looks(*cautious[:5], (5, True, 200))).ok
    assert check_truth(looks((0, True, 200), (1, True, 503))).ok is False  # at the end
    assert check_truth([]).ok is None


def test_ghosts() -> None:
    ghost = frozenset({("worker-0", 7)})
    for times in ((0.0, 0.6), (0.0, 0.2, 0.4, 0.6)):
        seen = [Look(t, True, 200, 200, ghost) for t in times]
        assert "worker-0 (pid 7) was called alive" in check_truth(seen).why
    seen = [Look(0.0, True, 200, 200, ghost), Look(0.6, True, 200, 200)]
    assert check_truth(seen).ok


def test_metrics() -> None:
    def scrape(**values: float) -> Look:
        return Look(0.0, True, 200, 200, metrics=dict(values))

    assert check_metrics([scrape(a=1, b=2)], {"a": 0.0, "b": 3.0}).ok
    assert check_metrics([scrape(a=1), scrape(a=-1)], {"a": 1.0}).why == "a was -1"
    assert check_metrics([scrape(a=1, b=2)], {"a": 1.0}).why == "b is missing at the end"
    assert check_metrics([scrape(x_slo_met=1, b=2)], {"b": 1.0}).ok  # appears with what it counts
    assert check_metrics([scrape(a=1, b=2)], {}).ok  # it has ended
    assert check_metrics([], {}).ok is None


def test_deaths_that_were_the_supervisors_do_not_count() -> None:
    events = [
        *(event(1, "exit"), event(2, "kill"), event(3, "exit"), event(4, "exit")),
        *(event(5, "kill", "scheduler-0"), event(6, "exit", "scheduler-0")),
    ]
    assert +own_deaths(events) == {"worker-0": 2}


def heard(sent_s: float, *times: float, ended_s: float | None = None) -> History:
    history = History(0, Request(0, (1,), 9, 0))
    history.note(sent_s, Kind.SUBMIT)
    for number, at_s in enumerate(times, 1):
        history.note(at_s, Kind.TOKENS, number)
    if ended_s is not None:
        history.note(ended_s, Kind.FINISH)
    return history


def test_silence_counts_while_somebody_waits() -> None:
    first, second = heard(0.0, 1.0, 2.0, ended_s=2.0), heard(8.0, 9.0, 9.1, ended_s=9.1)
    assert longest_silence_s([first, second], 0.5) == pytest.approx(1.0)
    assert longest_silence_s([first, second, heard(2.5, 9.2, ended_s=9.2)], 0.5) == pytest.approx(
        6.5
    )
    assert longest_silence_s([first], 3.0) == 0.0
