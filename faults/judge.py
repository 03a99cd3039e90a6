"""From what a trial has seen to its row: the figures, and the promises that were at stake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

from accelgen.faults import checks
from accelgen.faults.agent_faults import Hang, Slow, SlowStart
from accelgen.faults.cases import Moment
from accelgen.faults.contract import (
    NOT_AT_STAKE,
    Allowance,
    Verdict,
    check_blocks,
    check_outcomes,
    check_refusals,
    check_texts,
    text_fault,
    total,
)
from accelgen.faults.fault import Fault
from accelgen.faults.history import History, Kind
from accelgen.faults.machine import machine
from accelgen.faults.process_faults import ENDING, Freeze
from accelgen.faults.rows import Attainment, Row
from accelgen.faults.server import GONE_S, name_of
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.restarts import PERIOD_S

if TYPE_CHECKING:
    from accelgen.faults.run import Trial

DRAINING = Allowance(unanswered=True, refusals=frozenset({0, 503}), errors=frozenset({"draining"}))
"""A server that shuts down takes nothing new, and tells those who are not finished in time."""


@dataclass
class Judge:
    """`gauges` of its processes and `metrics` of the server at rest; none if it has ended."""

    trial: Trial
    gauges: Mapping[str, float]
    metrics: Mapping[str, float]
    _orphans: Sequence[object] = field(default=())

    def row(self) -> Row:
        """The whole of it."""
        trial, seen = self.trial, self.trial.seen
        verdicts = self.verdicts()
        faulty = [h for h in self.histories if not h.complete and not self._left(h)]
        return Row(
            case=trial.case.name,
            fault=trial.case.fault,
            target=trial.case.target,
            moment=trial.case.moment,
            seed=trial.seed,
            when=datetime.now(UTC).isoformat(timespec="seconds"),
            machine=machine(),
            shape=str(trial.server.shape),
            verified=seen.verified,
            control=seen.control,
            slack=trial.pace.slack,
            requests=len(self.histories),
            failed=len(faulty),
            allowed=sum(h.outcome is not None and self.allowance.covers(h) for h in faulty),
            different=sum(bool(text_fault(h, trial.reference)) for h in self.histories),
            recovery_s=longest_silence_s(self.histories, seen.struck_s),
            back_s=seen.back_s if self._restarts else None,
            max_gap_ms=1000 * self._longest_gap_s(),
            leaked_blocks=int(total(self.gauges, "kv_blocks_used")),
            orphans=len(self._orphans),
            exit_status=trial.server.exit_status,
            restarts=self._restarts,
            attainment=self._attainment(),
            contract=verdicts,
            note=seen.note or next(filter(None, (fault.harm() for fault in trial.faults)), ""),
        )

    @property
    def histories(self) -> list[History]:
        return self.trial.load.histories

    @property
    def _fault(self) -> Fault | None:
        """The one that the case is about; None if it did not come to that."""
        return self.trial.faults[-1] if self.trial.faults else None

    @cached_property
    def allowance(self) -> Allowance:
        """What all that was done may cost."""
        case, found = self.trial.case, Allowance()
        if case.moment is Moment.DRAIN:
            found = DRAINING
        elif case.moment is Moment.END:
            found = DRAINING if case.fault == "sigterm" else ENDING
        for fault in self.trial.faults:
            found = found.and_also(fault.allowance())
        return found

    # --- promises ----------------------------------------------------------------------------------------------

    def verdicts(self) -> dict[str, Verdict]:
        """C1 to C13."""
        case, looks = self.trial.case, self.trial.probe.looks
        outcomes = check_outcomes(self.histories, self.allowance)
        roles = {target.split("-")[0] for target in (case.target, *(case.first or ())[1:])}
        ended = self.trial.server.exit_status is not None
        return {
            "C1": outcomes,
            "C2": check_texts(self.histories, self.trial.reference),
            "C3": self._death(),
            "C4": self._hang(),
            "C5": outcomes if "scheduler" in roles and not ended else NOT_AT_STAKE,
            "C6": outcomes if case.moment is Moment.SWAP else NOT_AT_STAKE,
            "C7": outcomes if roles & {"worker", "kvmanager"} and not ended else NOT_AT_STAKE,
            "C8": self._remains(),
            "C9": checks.check_exit(self.trial.server.exit_status, self._expected_status()),
            "C10": checks.check_truth(looks, self.trial.pace.slack) if not ended else NOT_AT_STAKE,
            "C11": check_blocks(self.gauges) if self.metrics else NOT_AT_STAKE,
            "C12": check_refusals(self.histories),
            "C13": checks.check_metrics(looks, self.metrics),
        }

    @cached_property
    def _events(self) -> list[dict[str, object]]:
        """The supervisor's log, and before that what it did in the minute before: it counts deaths."""
        return self.trial.server.events(self.trial.seen.began_at - PERIOD_S)

    def _is_new(self, event: Mapping[str, object]) -> bool:
        at_s = event["at_s"]
        assert isinstance(at_s, float)
        return at_s >= self.trial.seen.struck_at

    def _death(self) -> Verdict:
        seen, fault = self.trial.seen, self._fault
        ended_by_it = isinstance(fault, Hang | Freeze)
        ended = self.trial.server.exit_status is not None
        if not seen.gone_at or ended_by_it or ended or self.trial.case.target == "spare":
            return NOT_AT_STAKE  # the server can do without a spare: another one comes when it is quiet
        times = checks.Times(seen.gone_at, self.trial.pace.slack)
        return checks.check_death(self._events, seen.pid, times)

    def _hang(self) -> Verdict:
        fault = self._fault
        times = checks.Times(self.trial.seen.struck_at, self.trial.pace.slack)
        if not isinstance(fault, Hang | Freeze | Slow | SlowStart) or self.trial.case.ends_server:
            return NOT_AT_STAKE
        if self.trial.case.target.startswith("supervisor"):
            return NOT_AT_STAKE  # nobody watches it but the operator
        names = [e["child"] for e in self._events if e.get("pid") == self.trial.seen.pid]
        name = str(names[0]) if names else self.trial.case.target
        if fault.ends_target:
            return checks.check_hang(self._events, name, times)
        return checks.check_not_killed(self._events, name, times)

    def _remains(self) -> Verdict:
        server = self.trial.server
        if server.exit_status is not None:
            self._orphans = server.wait_gone(GONE_S)
            killed = (
                server.exit_status == -9
            )  # nobody was there to remove files; the next start does
            strays = [] if killed else [path.name for path in server.run_dir.glob("*.sock")]
            return checks.check_remains(self._orphans, strays)
        with suppress(StartError):
            self._orphans = server.orphans()
            known = {f"{name_of(member)}.sock" for member in server.see().members}
            known.add("supervisor.sock")
            strays = [p.name for p in server.run_dir.glob("*.sock") if p.name not in known]
            return checks.check_remains(self._orphans, strays)
        return Verdict(False, "the supervisor does not answer")

    def _expected_status(self) -> frozenset[int] | None:
        case = self.trial.case
        if case.moment is Moment.END:
            return frozenset({{"sigkill": -9, "sigterm": 0}.get(case.fault, 1)})
        if case.moment is Moment.START and self.trial.server.exit_status is not None:
            return frozenset(
                {1}
            )  # what dies before it has served ends the start, with one clear line
        return frozenset({0}) if case.moment is Moment.DRAIN else None

    # --- figures -----------------------------------------------------------------------------------------------

    def _left(self, history: History) -> bool:
        return history.id in self.allowance.left

    @property
    def _restarts(self) -> int:
        return sum(e["event"] == "start" for e in self._events if self._is_new(e))

    def _longest_gap_s(self) -> float:
        struck_s = self.trial.seen.struck_s
        gaps = [gap for one in self.histories for at_s, gap in one.gaps() if at_s >= struck_s]
        return max(gaps, default=0.0)

    def _attainment(self) -> Attainment:
        struck_s = self.trial.seen.struck_s
        back_s = struck_s + (self.trial.seen.back_s or 0.0)
        return Attainment(
            self._kept(0.0, struck_s), self._kept(struck_s, back_s), self._kept(back_s, 1e12)
        )

    def _kept(self, from_s: float, to_s: float) -> float | None:
        """Of the requests sent in that time, the part that is complete and kept its objectives."""
        sent = [h for h in self.histories if from_s <= h.sent_s < to_s and not self._left(h)]
        if not sent:
            return None
        return sum(h.complete and h.kept is not False for h in sent) / len(sent)


def longest_silence_s(histories: Sequence[History], from_s: float) -> float:
    """The longest time from then on in which requests were open and none of them heard anything."""
    arrivals = sorted(
        event.at_s
        for history in histories
        for event in history.events
        if event.kind in (Kind.TOKENS, Kind.FINISH) and event.at_s >= from_s
    )
    longest_s = 0.0
    for earlier_s, later_s in pairwise([from_s, *arrivals]):
        if later_s - earlier_s <= longest_s:
            continue
        waiting = [h.sent_s for h in histories if h.sent_s < later_s and _open_at(h, later_s)]
        if waiting:
            longest_s = max(longest_s, later_s - max(earlier_s, min(waiting)))
    return longest_s


def _open_at(history: History, at_s: float) -> bool:
    outcome = history.outcome
    return outcome is None or outcome.at_s >= at_s
