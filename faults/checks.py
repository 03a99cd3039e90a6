"""The promises of the contract that are about the server as a whole, checked on its log and on what probes saw."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from accelgen.faults.contract import NOT_AT_STAKE, Verdict
from accelgen.faults.probe import Look
from accelgen.supervisor.restarts import BACK_OFF_S, PERIOD_S

DETECTED_S, RESTARTED_S = 0.1, 0.25  # C3
SILENT_BOUND_S = 5.0  # C4: what a process at work announces
SILENCE_MARGIN_S = 1.5  # and three heartbeats
STALE_S = 1.5  # C10: how old a "ready" of /ready may be
CAUTIOUS_S = 6.0  # and how long it may say "not ready" by itself: a frontend that waits for the scheduler knows better
GHOST_S = 0.5  # C10: how long the Directory may list a dead process as alive


@dataclass(frozen=True)
class Times:
    """When things happened, as `time.time()`. `struck_s`: the fault took effect. `slack`: the bounds are multiplied by
    it, on machines that have other things to do."""

    struck_s: float
    slack: float = 1.0


Events = Sequence[Mapping[str, Any]]


def check_death(events: Events, pid: int, times: Times) -> Verdict:
    """C3, of a process that died: `events` are the supervisor's log of the last minutes, `pid` who died."""
    exits = [event for event in events if event["event"] == "exit" and event["pid"] == pid]
    if not exits:
        return Verdict(False, f"the exit of process {pid} was never seen")
    seen = exits[0]
    detected_s = max(0.0, seen["at_s"] - times.struck_s)
    if detected_s > DETECTED_S * times.slack:
        return Verdict(False, f"detected after {1000 * detected_s:.0f} ms")
    words = f"detected in {1000 * detected_s:.0f} ms"
    began_s = _succession_s(events, seen)
    if began_s is None:
        return Verdict(False, f"{seen['child']} was not started again")
    if began_s > RESTARTED_S * times.slack + _back_off_s(events, seen):
        return Verdict(False, f"a successor came {1000 * began_s:.0f} ms after it was seen")
    return Verdict(True, f"{words}, a successor came {1000 * began_s:.0f} ms later")


def _succession_s(events: Events, seen: Mapping[str, Any]) -> float | None:
    """How long after an exit was seen somebody else was started, or put in office, instead. 0 for a scheduler whose
    successor is on its way already; None for nobody."""
    if _post(seen) != "scheduler":
        later = [e for e in events if e["event"] == "start" and e["child"] == seen["child"]]
    else:
        later = [e for e in events if e["event"] in ("start", "takes office")]
        later = [e for e in later if _post(e) == "scheduler"]
        if _is_on_its_way(events, seen, later):
            return 0.0
    return next((e["at_s"] - seen["at_s"] for e in later if e["at_s"] >= seen["at_s"]), None)


def _is_on_its_way(events: Events, seen: Mapping[str, Any], steps: Events) -> bool:
    """Whether the last step to an office (`steps`) before this death was another's, who lives."""
    before = [e for e in steps if e["at_s"] < seen["at_s"]]
    if not before or before[-1]["child"] == seen["child"]:
        return False
    return not any(e["event"] == "exit" and e["pid"] == before[-1]["pid"] for e in events)


def _post(event: Mapping[str, Any]) -> str:
    """A seat, but both seats of schedulers are one: they stand in for each other."""
    child = str(event["child"])
    return "scheduler" if child.startswith("scheduler") else child


def own_deaths(events: Events) -> Counter[str]:
    """How often each seat has died by itself, that is: not because the supervisor took it along."""
    deaths: Counter[str] = Counter()
    ended: set[str] = set()
    for event in events:
        if event["event"] == "kill":
            ended.add(event["child"])
        elif event["event"] == "exit":
            deaths[_post(event)] += event["child"] not in ended
            ended.discard(event["child"])
    return deaths


def _back_off_s(events: Events, seen: Mapping[str, Any]) -> float:
    """What the supervisor waits because this seat has died before, see supervisor/restarts.py."""
    before = [
        event
        for event in events
        if event["event"] == "exit"
        and _post(event) == _post(seen)
        and seen["at_s"] - PERIOD_S <= event["at_s"] < seen["at_s"]
    ]
    return BACK_OFF_S * 2.0 ** (len(before) - 1) if before else 0.0


def check_hang(events: Events, name: str, times: Times) -> Verdict:
    """C4, of a process that hung: it was killed in time."""
    kills = [
        event["at_s"] - times.struck_s
        for event in events
        if event["event"] == "kill" and event["child"] == name and event["at_s"] >= times.struck_s
    ]
    limit_s = SILENT_BOUND_S + SILENCE_MARGIN_S + 0.5 * times.slack  # its last heartbeat, a look
    if not kills:
        return Verdict(False, f"{name} hung and was never ended")
    return Verdict(kills[0] <= limit_s, f"ended after {kills[0]:.1f} s of at most {limit_s:.1f} s")


def check_not_killed(events: Events, name: str, times: Times) -> Verdict:
    """C4, of a process that was only slow: it lives."""
    for event in events:
        if event["event"] == "kill" and event["child"] == name and event["at_s"] >= times.struck_s:
            return Verdict(False, f"{name} was slow and was killed for it")
    return Verdict(True, f"{name} was slow and lives")


def check_truth(looks: Sequence[Look], slack: float = 1.0) -> Verdict:
    """C10: /ready follows the Directory, and the Directory the processes. `slack` as in Times."""
    ghost_s, stale_s, cautious_limit_s = GHOST_S * slack, STALE_S * slack, CAUTIOUS_S * slack
    for name, pid in sorted({ghost for one in looks for ghost in one.ghosts}):
        if longest_s(looks, [(name, pid) in one.ghosts for one in looks]) >= ghost_s:
            return Verdict(
                False, f"{name} (pid {pid}) was called alive {ghost_s:g} s after its death"
            )
    since_s, said = 0.0, None
    for one in looks:
        if one.ready != said:
            since_s, said = one.at_s, one.ready
        if one.ready_status == 200 and said is False and one.at_s - since_s >= stale_s:
            return Verdict(False, "/ready said 200 of a server that was not ready")
    cautious_s = longest_s(looks, [bool(one.ready) and one.ready_status == 503 for one in looks])
    if cautious_s > cautious_limit_s:
        return Verdict(False, f"/ready said 503 of a ready server for {cautious_s:.1f} s")
    if not any(one.ready_status for one in looks):
        return NOT_AT_STAKE
    last = looks[-1]
    if last.ready and (last.live_status, last.ready_status) != (200, 200):
        return Verdict(
            False, f"at the end /live said {last.live_status}, /ready {last.ready_status}"
        )
    return Verdict(True, f"{len(looks)} looks")


def longest_s(looks: Sequence[Look], held: Sequence[bool]) -> float:
    """The longest time in which something held at every look; `held`: at which it did."""
    longest_s, since_s = 0.0, None
    for one, holds in zip(looks, held, strict=True):
        since_s = (one.at_s if since_s is None else since_s) if holds else None
        longest_s = max(longest_s, one.at_s - since_s if since_s is not None else 0.0)
    return longest_s


def families(scrape: Mapping[str, float]) -> set[str]:
    """The names of metrics, without those that appear with the first event that they count."""
    names = {name.partition("{")[0] for name in scrape}
    return {name for name in names if not re.search(r"_slo_|_success_|http_requests", name)}


def check_metrics(looks: Sequence[Look], at_rest: Mapping[str, float]) -> Verdict:
    """C13. `at_rest`: the metrics in the end, none if the server has gone."""
    scrapes = [metrics for metrics in (*(one.metrics for one in looks), at_rest) if metrics]
    if not scrapes:
        return NOT_AT_STAKE
    for scrape in scrapes:
        for name, value in scrape.items():
            if value < 0:
                return Verdict(False, f"{name} was {value:g}")
    lost = families(scrapes[0]) - families(at_rest) if at_rest else set()
    if lost:
        return Verdict(False, f"{min(lost)} is missing at the end")
    return Verdict(True, f"{len(scrapes)} scrapes")


def check_remains(orphans: Sequence[Any], strays: Sequence[str]) -> Verdict:
    """C8."""
    if orphans:
        return Verdict(False, f"{len(orphans)} processes are left: {orphans[0]}")
    if strays:
        return Verdict(False, f"files are left: {', '.join(sorted(strays))}")
    return Verdict(True)


def check_exit(status: int | None, expected: frozenset[int] | None) -> Verdict:
    """C9. `expected` None: the server must live."""
    if expected is None:
        alive = status is None
        return Verdict(alive, "lives" if alive else f"the server ended with status {status}")
    if status is None:
        return Verdict(False, "the server did not end")
    words = f"status {status}, expected {' or '.join(map(str, sorted(expected)))}"
    return Verdict(status in expected, words)
