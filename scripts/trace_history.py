"""The history of one request, and of the server around it, found in the flight recorders of all processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from accelgen.proto.recorder import RECV
from accelgen.proto.recording import Fact, Message, Recording
from accelgen.scripts.trace_notes import Happening, History, Notes

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
    notes = Notes(id)
    for recording in recordings:
        for event in recording.events:
            if isinstance(event, Message):
                notes.take(event, _replica_of(recording, event))
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
        # A KV manager's to its worker is routine.
        to_scheduler = event.direction == RECV and recording.process.startswith("scheduler")
        if event.kind == "Resync" and to_scheduler:
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


def reach(recordings: Sequence[Recording]) -> list[tuple[str, float]]:
    """How far back the newest recording of each process reaches, in seconds before it was made."""
    newest: dict[str, Recording] = {}
    for recording in sorted(recordings, key=lambda one: one.monotonic_s):
        newest[recording.process] = recording
    return [(name, one.monotonic_s - one.begins_s) for name, one in sorted(newest.items())]
