"""The history of one request, put together from the flight recorders of all processes.

A message is noted by its sender and by its receiver: both notes become one happening, by what it was about. Whatever
has been lost of one process's notes (it died, its ring is short) may still be in another's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from accelgen.proto.messages import Reason
from accelgen.proto.recorder import RECV
from accelgen.proto.recording import Fact, Message, Recording

CALL_FACTS = ("call opened", "call refused")


@dataclass(frozen=True)
class Call:
    """What a client asked for with one HTTP request. `ids`: the request ids of its choices, none if it was refused at
    the door. `answer` "": nothing is known but the ids."""

    answer: str
    request: str
    process: str
    received_s: float
    ids: list[int]
    values: dict[str, Any]


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


def find_calls(recordings: Iterable[Recording], name: str) -> list[Call]:
    """The calls that a client knows by `name` (the id of the answer, x-request-id), or to which the request with that
    number belongs; in order of time."""
    number = int(name) if name.isdecimal() else -1
    found = []
    for recording in recordings:
        for event in recording.events:
            if isinstance(event, Fact) and event.name in CALL_FACTS:
                call = _call_of(event, recording)
                if name in (call.answer, call.request):
                    found.append(call)
                elif number in call.ids:
                    found.append(Call(**{**vars(call), "ids": [number]}))
    if not found and number >= 0 and history_of(recordings, number).happenings:
        found = [Call("", "", "", 0.0, [number], {})]
    return sorted(found, key=lambda call: call.received_s)


def _call_of(event: Fact, recording: Recording) -> Call:
    values = dict(event.values)
    answer, request = values.pop("answer", ""), values.pop("request", "")
    received_s, ids = values.pop("received_s", event.moment_s), values.pop("ids", [])
    if event.name == "call refused":
        values["refused_s"] = event.moment_s
    return Call(answer, request, recording.process, received_s, ids, values)


def history_of(recordings: Iterable[Recording], id: int) -> History:
    """What happened to request `id`."""
    notes = _Notes(id)
    for recording in recordings:
        for event in recording.events:
            if isinstance(event, Message) and (take := _TAKERS.get(event.kind)) is not None:
                take(notes, event, _replica_of(recording, event))
    return notes.history()


def surroundings(
    recordings: Iterable[Recording], begin_s: float, end_s: float, answer: str
) -> list[Happening]:
    """What happened to the server meanwhile, as far as it bears on a request, and to the call `answer` itself."""
    found: dict[tuple[Any, ...], Happening] = {}
    for recording in recordings:
        for event in recording.events:
            if begin_s <= event.moment_s <= end_s and (one := _around(event, recording, answer)):
                key = (one.what, one.epoch, *sorted(one.values.items()))
                if key not in found or one.moment_s < found[key].moment_s:
                    found[key] = one
    return list(found.values())


def _around(event: Message | Fact, recording: Recording, answer: str) -> Happening | None:
    if isinstance(event, Message):
        if event.kind == "Activate":
            return Happening(event.moment_s, "epoch", event.header.epoch)
        to_scheduler = recording.process.startswith(
            "scheduler"
        )  # a KV manager's to its worker is routine
        if event.kind == "Resync" and event.direction == RECV and to_scheduler:
            values = {"sender": event.peer.partition(":")[0], "cause": event.field("cause")}
            return Happening(event.moment_s, "resync", event.header.epoch, values)
        return None
    if event.name in ("exit", "start", "kill"):
        return Happening(event.moment_s, event.name, 0, dict(event.values))
    if event.name in ("client gone", "call failed") and event.values.get("answer") == answer:
        values = {name: value for name, value in event.values.items() if name != "answer"}
        return Happening(event.moment_s, event.name, 0, values)
    if event.name == "not sent":
        return Happening(
            event.moment_s, event.name, 0, {"process": recording.process, **event.values}
        )
    return None


def _replica_of(recording: Recording, message: Message) -> int:
    """The replica whose KV manager or worker has sent or received a message; 0 for others."""
    for name in (message.peer.partition(":")[0], recording.process):
        role, _, index = name.rpartition("-")
        if role in ("kvmanager", "worker"):
            return int(index)
    return 0


class _Notes:
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
        if one.what == "preempted":
            away = True
        elif isinstance(one, Step) and away and not one.dropped:
            one.resumed, away = True, False


def _mark_repeated(happenings: Iterable[Happening]) -> None:
    seen = False
    for one in happenings:
        if one.what == "submitted":
            one.values["again"], seen = seen, True


# --- what each message says about a request ------------------------------------------------------------------------


def _take_submit(notes: _Notes, message: Message, _: int) -> None:
    prompt, siblings = message.field("prompt"), message.field("siblings", [])
    id, tokens, generated = prompt[0], len(prompt[1]), prompt[3]
    if notes.id == id or notes.id in siblings:
        notes.prompt_tokens = tokens - generated
        values = {} if notes.id == id else {"sibling_of": str(id)}
        notes.add(message, "submitted", generated=generated, **values)


def _take_lookup(notes: _Notes, message: Message, replica: int) -> None:
    for prompt in message.field("prompts"):
        if prompt[0] == notes.id:
            adopt = message.field("adopt", False)
            notes.add(message, "looked up", message.header.seq, replica=replica, adopt=adopt)


def _take_report(notes: _Notes, message: Message, replica: int) -> None:
    if notes.id in message.field("dropped"):
        notes.step(message).dropped = True
    if notes.id in message.field("unpinned"):
        notes.add(message, "unpinned", message.header.seq, replica=replica)
    for id, tokens in zip(message.field("hit_ids"), message.field("hit_tokens"), strict=True):
        if id == notes.id:
            notes.add(message, "cached", message.header.seq, tokens=tokens, replica=replica)


def _take_admitted(notes: _Notes, message: Message, _: int) -> None:
    if message.field("id") == notes.id:
        notes.add(
            message,
            "admitted",
            replica=message.field("replica"),
            predicted_ttft_s=message.field("predicted_ttft_s"),
            cached_tokens=message.field("cached_tokens"),
        )


def _take_plan(notes: _Notes, message: Message, replica: int) -> None:
    if notes.id in message.field("preempt"):
        notes.add(message, "preempted", message.field("step"), step=message.field("step"))
    for child, parent, computed in message.field("forks"):
        if child == notes.id:
            notes.add(message, "forked", parent=str(parent), computed=computed)
    for place, id in enumerate(message.field("ids")):
        if id == notes.id:
            step = notes.step(message)
            step.planned_s = min(message.moment_s, step.planned_s or message.moment_s)
            _fill(step, message, place, replica)


def _take_batch(notes: _Notes, message: Message, replica: int) -> None:
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


def _take_result(notes: _Notes, message: Message, _: int) -> None:
    for id, count in zip(message.field("ids"), message.field("counts"), strict=True):
        if id == notes.id:
            step = notes.step(message)
            step.run_s, step.tokens = message.field("run_s"), count
    for id, cause in zip(message.field("failed"), message.field("causes"), strict=True):
        if id == notes.id:
            notes.step(message).cause = cause


def _take_tokens(notes: _Notes, message: Message, _: int) -> None:
    for id, count in zip(message.field("ids"), message.field("counts"), strict=True):
        if id == notes.id:
            step = notes.step(message)
            step.delivered_s = max(message.moment_s, step.delivered_s or 0.0)
            step.tokens = count


def _take_finished(notes: _Notes, message: Message, _: int) -> None:
    for end in message.field("ends"):
        if end[0] == notes.id:
            names = ("detail", "retry_after_s", "queue_s", "cached_tokens", "preemptions")
            values = dict(zip(names, end[2:], strict=False))
            reason = Reason(end[1]).name.lower()
            notes.add(message, "ended", reason=reason, **values)


def _take_abort(notes: _Notes, message: Message, _: int) -> None:
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


def reach(recordings: Sequence[Recording]) -> list[tuple[str, float]]:
    """How far back the newest recording of each process reaches, in seconds before it was made."""
    newest: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda one: one.monotonic_s):
        newest[recording.process] = recording
    return [(name, one.monotonic_s - one.begins_s) for name, one in sorted(newest.items())]
