"""The reliability contract (C1 to C13), checked on what clients and probes saw of one case.

Each check is a pure function from observations to a verdict: kept, broken, or not at stake, and why. C1 and C2 are
about single requests and hold under every fault; what a case may cost beyond that is stated by its `Allowance`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from msgspec import Struct

from accelgen.faults.client import SLO_CLASS
from accelgen.faults.history import OUTCOMES, History, Kind
from accelgen.proto.config import default_classes

PROMISES = {
    "C1": "every accepted request has exactly one outcome; none is lost, none is stuck",
    "C2": "no stream is cut silently or spliced: no token skipped, repeated or changed",
    "C3": "a crash is detected within 100 ms, the restart begun within 250 ms",
    "C4": "a hang is detected within the bound that the process announced and three heartbeats",
    "C5": "scheduler lost: running requests go on, new ones wait as long as their class allows",
    "C6": "scheduler replaced: no request fails",
    "C7": "worker or KV manager lost: their requests are computed again",
    "C8": "nothing is left over: no process, no socket file",
    "C9": "exit status 0 only if the operator wished it",
    "C10": "/live and /ready tell the truth",
    "C11": "no KV block is lost: free + cached + used = all, and none is used when nothing runs",
    "C12": "what is refused is told why, and when to come back",
    "C13": "metrics are never negative and never missing after a restart",
}


QUEUE_LIMIT_S = default_classes()[SLO_CLASS].max_queue_ms / 1000


class Verdict(Struct, frozen=True):
    """`ok` is None where the case says nothing about the promise."""

    ok: bool | None
    why: str = ""


NOT_AT_STAKE = Verdict(None)


@dataclass(frozen=True)
class Allowance:
    """What this case may cost its clients. `ports`: the connections that may end, by the client's port; `left`: those
    of clients that misbehave. `refusals`: statuses of refusals. `errors`: codes of error events."""

    ports: frozenset[int] = frozenset()
    any_port: bool = False  # the whole server goes: every connection may end
    unanswered: bool = False  # connections that got no answer at all may end
    left: frozenset[int] = frozenset()  # ids of histories
    refusals: frozenset[int] = frozenset()
    errors: frozenset[str] = frozenset()

    def and_also(self, other: Allowance) -> Allowance:
        """What either allows."""
        return Allowance(
            self.ports | other.ports,
            self.any_port or other.any_port,
            self.unanswered or other.unanswered,
            self.left | other.left,
            self.refusals | other.refusals,
            self.errors | other.errors,
        )

    def covers(self, history: History) -> bool:
        """Whether this request may end without all its tokens in the way it did."""
        outcome = history.outcome
        assert outcome is not None
        ended = outcome.kind in (Kind.CUT, Kind.ERROR) or outcome.count == 500
        if history.port in self.ports and ended:
            return True
        expired = outcome.detail in ("ttl_expired", "no_workers")
        if expired and outcome.at_s - history.sent_s >= QUEUE_LIMIT_S:
            return True  # it has waited as long as its class allows, and was told so
        match outcome.kind:
            case Kind.CUT:
                unanswered = self.unanswered and history.first(Kind.ADMIT) is None
                return self.any_port or unanswered or history.id in self.left
            case Kind.LEFT:
                return history.id in self.left
            case Kind.REFUSED:
                return outcome.count in self.refusals
            case Kind.ERROR:
                return outcome.detail in self.errors
            case _:
                return False


@dataclass(frozen=True)
class Reference:
    """The texts of undisturbed requests: the whole, and how much of it there is after so many tokens."""

    whole: dict[int, str] = field(default_factory=dict)
    after: dict[tuple[int, int], str] = field(default_factory=dict)

    @classmethod
    def of(cls, histories: Iterable[History]) -> Reference:
        """From a run of every request without faults. Raises AssertionError if that was not flawless."""
        found = cls()
        for history in histories:
            outcome = history.outcome
            assert history.complete, f"request {history.request.key} undisturbed: {outcome}"
            text = ""
            for event in history.events:
                text += event.text
                if event.kind is Kind.TOKENS:
                    found.after[history.request.key, event.count] = text
            found.whole[history.request.key] = text
        return found


# --- C1, C2: single requests -------------------------------------------------------------------------------------


def outcome_fault(history: History, allowed: Allowance) -> str:
    """C1 for one request: what is wrong, "" for nothing."""
    outcomes = [event for event in history.events if event.kind in OUTCOMES]
    if not outcomes:
        return "came to nothing"
    if len(outcomes) > 1:
        return f"{len(outcomes)} outcomes: {', '.join(event.kind for event in outcomes)}"
    outcome = outcomes[0]
    later = {event.kind for event in history.events[history.events.index(outcome) + 1 :]}
    if later & {Kind.TOKENS, Kind.ADMIT}:
        return f"went on after its outcome {outcome.kind}"
    if outcome.kind is Kind.STUCK:
        return f"was stuck after {len(history.events) - 2} events"
    if outcome.kind is not Kind.FINISH and not allowed.covers(history):
        return f"{outcome.kind} {outcome.count or ''} {outcome.detail}".replace("  ", " ").strip()
    return ""


def text_fault(history: History, reference: Reference) -> str:
    """C2 for one request: what is wrong with its tokens, "" for nothing."""
    key, text, count = history.request.key, "", 0
    whole = reference.whole.get(key)
    if whole is None:
        return ""
    for event in history.events:
        text += event.text
        if event.kind is not Kind.TOKENS:
            continue
        if event.count <= count:
            return (
                f"token {event.count} came again" if event.count < count else "a token came twice"
            )
        count = event.count
        expected = reference.after.get((key, count))
        if text != expected if expected is not None else not whole.startswith(text):
            return f"differs at token {count}"
    return _end_fault(history, text, count, whole)


def _end_fault(history: History, text: str, count: int, whole: str) -> str:
    finish, usage = history.first(Kind.FINISH), history.first(Kind.USAGE)
    if finish is None:
        silent = history.first(Kind.CLOSED) and not history.first(Kind.ERROR, Kind.REFUSED)
        return f"ended without a word after {count} tokens" if silent else ""
    if history.first(Kind.DONE) is None:
        return "was finished and never done"
    if text != whole or count != history.request.max_tokens:
        return f"finished with {count} of {history.request.max_tokens} tokens"
    if usage is not None and usage.count != count:
        return f"{count} tokens came, {usage.count} were counted"
    return ""


def _of_all(histories: Sequence[History], fault_of: Callable[[History], str]) -> Verdict:
    faults = [(one, fault) for one in histories if (fault := fault_of(one))]
    if not faults:
        return Verdict(True, f"{len(histories)} requests")
    history, fault = faults[0]
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return Verdict(False, f"request {history.id} {fault}{more}")


def check_outcomes(histories: Sequence[History], allowed: Allowance) -> Verdict:
    """C1."""
    return _of_all(histories, lambda history: outcome_fault(history, allowed))


def check_texts(histories: Sequence[History], reference: Reference) -> Verdict:
    """C2."""
    return _of_all(histories, lambda history: text_fault(history, reference))


def check_refusals(histories: Sequence[History]) -> Verdict:
    """C12: every refusal has a reason, and a time to come back."""
    refused = [h for h in histories if (e := h.first(Kind.REFUSED)) and e.count in (429, 503)]
    if not refused:
        return NOT_AT_STAKE
    return _of_all(
        refused,
        lambda h: "" if h.retry_after else "was refused without a time to come back",
    )


# --- what probes saw ---------------------------------------------------------------------------------------------


def total(gauges: Mapping[str, float], name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(v for key, v in gauges.items() if key.partition("{")[0] == f"accelgen:{name}")


def check_blocks(gauges: Mapping[str, float]) -> Verdict:
    """C11, of a server at rest: `gauges` are its metrics."""
    whole, free, cached, used = (
        total(gauges, f"kv_blocks{part}") for part in ("", "_free", "_cached", "_used")
    )
    running, parts = total(gauges, "num_requests_running"), free + cached + used
    if not gauges:
        return Verdict(False, "the server does not say how many blocks are used")
    if used or running:
        return Verdict(False, f"{used:g} blocks used and {running:g} requests running at rest")
    if parts != whole:
        return Verdict(False, f"{parts:g} blocks accounted for of {whole:g}")
    broken = [k for k, v in gauges.items() if k.startswith("accelgen:kv_invariant_ok") and not v]
    if broken:
        return Verdict(False, f"{broken[0]} is 0")
    return Verdict(True, f"{parts:g} blocks")
