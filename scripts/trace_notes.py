"""What messages say about one request: notes that become its history.

A message is noted by its sender and by its receiver: both notes become one happening, by what it was about. Whatever
has been lost of one process's notes (it died, its ring is short) may still be in another's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from accelgen.proto.messages import Reason
from accelgen.proto.recording import Message


@dataclass
class Happening:
    """Something that happened to a request, or around it."""

    moment_s: float
    what: str
    epoch: int = 0
    values: dict[str, Any] = field(default_factory=dict)


@dataclass
class Step(Happening):
    """An iteration that processed `count` tokens of the request from position `start` on. `moment_s` is when the
    worker began it, as far as that is known; `delivered_s` when the frontend had what it brought."""

    step: int = -1
    replica: int = 0
    start: int = -1
    count: int = 0
    batch: int = 0  # requests in it
    batch_tokens: int = 0
    planned_s: float | None = None
    began_s: float | None = None
    run_s: float | None = None
    delivered_s: float | None = None
    tokens: int = 0
    dropped: bool = False
    cause: str = ""  # why it failed
    resumed: bool = False


@dataclass
class History:
    """All that is known of one choice, in order of time. `prompt_tokens` None: its Submit is not known."""

    id: int
    happenings: list[Happening]
    prompt_tokens: int | None = None

    @property
    def steps(self) -> list[Step]:
        return [one for one in self.happenings if isinstance(one, Step)]

    def delivered(self, until_s: float = float("inf")) -> int:
        """Tokens that the frontend had by then."""
        return sum(
            step.tokens
            for step in self.steps
            if step.delivered_s is not None and step.delivered_s <= until_s
        )


class Notes:
    """What has been found about one request so far, by what it was about."""

    def __init__(self, id: int) -> None:
        self.id = id
        self.found: dict[tuple[Any, ...], Happening] = {}
        self.prompt_tokens: int | None = None

    def add(self, message: Message, what: str, *more: Any, **values: Any) -> None:
        """A happening; `more` tells it from others of the same kind and epoch."""
        key = (what, message.header.epoch, *more)
        known = self.found.get(key)
        if known is None:
            self.found[key] = Happening(message.moment_s, what, message.header.epoch, values)
        else:
            known.moment_s = min(known.moment_s, message.moment_s)

    def step(self, message: Message) -> Step:
        """The iteration that a message is about."""
        epoch, number = message.header.epoch, message.field("step")
        known = self.found.get(("step", epoch, number))
        if known is None:
            known = Step(message.moment_s, "step", epoch, step=number)
            self.found["step", epoch, number] = known
        assert isinstance(known, Step)
        return known

    def take(self, message: Message, replica: int) -> None:
        """What a message of this replica, if of one, says about the request, if anything."""
        taker = _TAKERS.get(message.kind)
        if taker is not None:
            taker(self, message, replica)

    def history(self) -> History:
        for one in self.found.values():
            if isinstance(one, Step):
                moments = (one.began_s, one.planned_s, one.delivered_s)
                one.moment_s = next((m for m in moments if m is not None), one.moment_s)
        happenings = sorted(self.found.values(), key=lambda one: one.moment_s)
        _mark_resumed(happenings)
        _mark_repeated(happenings)
        return History(self.id, happenings, self.prompt_tokens)


def _mark_resumed(happenings: Iterable[Happening]) -> None:
    away = False
    for one in happenings:
        if one.what in ("preempted", "swapped out"):
            away = True
        elif isinstance(one, Step) and away and not one.dropped:
            one.resumed, away = True, False


def _mark_repeated(happenings: Iterable[Happening]) -> None:
    seen = False
    for one in happenings:
        if one.what == "submitted":
            one.values["again"], seen = seen, True


# --- what each message says about a request ------------------------------------------------------------------------


def _take_submit(notes: Notes, message: Message, _: int) -> None:
    prompt, siblings = message.field("prompt"), message.field("siblings", [])
    id, tokens, generated = prompt[0], len(prompt[1]), prompt[3]
    if notes.id == id or notes.id in siblings:
        notes.prompt_tokens = tokens - generated
        values = {} if notes.id == id else {"sibling_of": str(id)}
        notes.add(message, "submitted", generated=generated, **values)


def _take_lookup(notes: Notes, message: Message, replica: int) -> None:
    for prompt in message.field("prompts"):
        if prompt[0] == notes.id:
            adopt = message.field("adopt", False)
            notes.add(message, "looked up", message.header.seq, replica=replica, adopt=adopt)


def _take_report(notes: Notes, message: Message, replica: int) -> None:
    if notes.id in message.field("dropped"):
        notes.step(message).dropped = True
    if notes.id in message.field("unpinned"):
        notes.add(message, "unpinned", message.header.seq, replica=replica)
    if notes.id in message.field("unswapped", []):
        notes.add(message, "not swapped out", message.header.seq, replica=replica)
    for id, tokens in zip(message.field("hit_ids"), message.field("hit_tokens"), strict=True):
        if id == notes.id:
            notes.add(message, "cached", message.header.seq, tokens=tokens, replica=replica)


def _take_admitted(notes: Notes, message: Message, _: int) -> None:
    if message.field("id") == notes.id:
        notes.add(
            message,
            "admitted",
            replica=message.field("replica"),
            predicted_ttft_s=message.field("predicted_ttft_s"),
            cached_tokens=message.field("cached_tokens"),
        )


def _take_plan(notes: Notes, message: Message, replica: int) -> None:
    if notes.id in message.field("preempt"):
        notes.add(message, "preempted", message.field("step"), step=message.field("step"))
    for name, what in (("swap_out", "swapped out"), ("swap_in", "swapped in")):
        if notes.id in message.field(name, []):
            notes.add(message, what, message.field("step"), step=message.field("step"))
    for child, parent, computed in message.field("forks"):
        if child == notes.id:
            notes.add(message, "forked", parent=str(parent), computed=computed)
    for place, id in enumerate(message.field("ids")):
        if id == notes.id:
            step = notes.step(message)
            step.planned_s = min(message.moment_s, step.planned_s or message.moment_s)
            _fill(step, message, place, replica)


def _take_batch(notes: Notes, message: Message, replica: int) -> None:
    for place, id in enumerate(message.field("ids")):
        if id == notes.id:
            step = notes.step(message)
            step.began_s = max(message.moment_s, step.began_s or 0.0)
            _fill(step, message, place, replica)


def _fill(step: Step, message: Message, place: int, replica: int) -> None:
    """Plan and Batch name the same work."""
    counts = message.field("counts")
    step.start, step.count = message.field("starts")[place], counts[place]
    step.batch, step.batch_tokens, step.replica = len(counts), sum(counts), replica


def _take_result(notes: Notes, message: Message, _: int) -> None:
    for id, count in zip(message.field("ids"), message.field("counts"), strict=True):
        if id == notes.id:
            step = notes.step(message)
            step.run_s, step.tokens = message.field("run_s"), count
    for id, cause in zip(message.field("failed"), message.field("causes"), strict=True):
        if id == notes.id:
            notes.step(message).cause = cause


def _take_tokens(notes: Notes, message: Message, _: int) -> None:
    for id, count in zip(message.field("ids"), message.field("counts"), strict=True):
        if id == notes.id:
            step = notes.step(message)
            step.delivered_s = max(message.moment_s, step.delivered_s or 0.0)
            step.tokens = count


def _take_finished(notes: Notes, message: Message, _: int) -> None:
    for end in message.field("ends"):
        if end[0] == notes.id:
            names = ("detail", "retry_after_s", "queue_s", "cached_tokens", "preemptions")
            values = dict(zip(names, end[2:], strict=False))
            reason = Reason(end[1]).name.lower()
            notes.add(message, "ended", reason=reason, **values)


def _take_abort(notes: Notes, message: Message, _: int) -> None:
    if notes.id in message.field("ids"):
        notes.add(message, "aborted")


_TAKERS = {
    "Submit": _take_submit,
    "Lookup": _take_lookup,
    "KvReport": _take_report,
    "Admitted": _take_admitted,
    "Plan": _take_plan,
    "Batch": _take_batch,
    "StepResult": _take_result,
    "Tokens": _take_tokens,
    "Finished": _take_finished,
    "Abort": _take_abort,
}
