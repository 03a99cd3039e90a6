"""Reads dumps of the flight recorder (`accelgen.proto.dumps` writes them)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from msgpack import Unpacker
from msgpack.exceptions import UnpackException

from accelgen.proto.dumps import END, KIND, VERSION
from accelgen.proto.frame import PROTOCOL_VERSION, Header
from accelgen.proto.messages import MESSAGES, Body
from accelgen.proto.recorder import FACT, RECV, SEND, STANDING

_KINDS = {kind.__name__: kind for kind in MESSAGES}
_HEAD = {"process": str, "pid": int, "incarnation": int, "wall_s": float, "monotonic_s": float}


class RecordingError(ValueError):
    """A file that is no dump, or not a whole one; the text is one line with its name."""


@dataclass(frozen=True, slots=True)
class Message:
    """A message that was sent or received, still as the lists that travelled; `body` makes a message of them."""

    moment_s: float
    direction: str  # SEND or RECV
    peer: str  # an identity ("kvmanager-0:123"), or the name of an endpoint ("kvmanager-0")
    header: Header
    kind: str  # name of the type
    fields: list[Any]

    def field(self, name: str, default: Any = None) -> Any:
        """One field, as a list or plain value; `default` if the sender has left it out."""
        place = _KINDS[self.kind].__struct_fields__.index(name)
        return self.fields[place] if place < len(self.fields) else default

    @property
    def body(self) -> Body:
        """The message. Token ids are zeros."""
        return msgspec.convert(self.fields, _KINDS[self.kind])


@dataclass(frozen=True, slots=True)
class Fact:
    """What a process has noted. `standing`: before the recording begins, and still true there."""

    moment_s: float
    name: str
    values: dict[str, Any]
    standing: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """One process's dump. `damage`: why the file ends before its end, "" if it does not."""

    path: Path
    process: str
    pid: int
    incarnation: int
    wall_s: float  # both clocks at the moment of the dump
    monotonic_s: float
    events: Sequence[Message | Fact]
    damage: str = ""

    @property
    def begins_s(self) -> float:
        """The moment from which on everything is there."""
        inside = (e for e in self.events if isinstance(e, Message) or not e.standing)
        return next((e.moment_s for e in inside), self.monotonic_s)


def read_recording(path: Path, whole: bool = True) -> Recording:
    """The dump in `path`. A damaged one is read up to the damage, or refused if it has to be `whole`.

    Raises RecordingError."""
    try:
        with path.open("rb") as stream:
            records = Unpacker(stream, unicode_errors="replace")
            try:
                head = records.unpack()
            except (UnpackException, ValueError):
                head = None
            _check_head(path, head)
            events, damage = _events(records, head["messages"])
    except OSError as error:
        raise RecordingError(f"{path}: {error.strerror}") from error
    if damage and whole:
        raise RecordingError(f"{path}: {damage}")
    named = {name: head[name] for name in _HEAD}
    return Recording(path, events=events, damage=damage, **named)


def _check_head(path: Path, head: Any) -> None:
    if not (isinstance(head, dict) and KIND in head):
        raise RecordingError(f"{path}: not a dump of the flight recorder")
    if head[KIND] != VERSION:
        raise RecordingError(
            f"{path}: a dump of version {head[KIND]}, this accelgen reads version {VERSION}"
        )
    if head.get("protocol") != PROTOCOL_VERSION:
        raise RecordingError(
            f"{path}: its messages are of protocol version {head.get('protocol')},"
            f" this accelgen reads version {PROTOCOL_VERSION}"
        )
    sound = all(isinstance(head.get(name), kind) for name, kind in _HEAD.items())
    if not sound or not isinstance(head.get("messages"), list):
        raise RecordingError(f"{path}: its first record is damaged")


def _events(records: Unpacker, names: list[str]) -> tuple[list[Message | Fact], str]:
    """All events up to the end or the damage, and what that is."""
    events: list[Message | Fact] = []
    seen = 0
    try:
        for seen, record in enumerate(records, 1):
            match record:
                case [float(moment_s), str(direction), str(peer), [*header], [*fields]] if (
                    direction in (SEND, RECV)
                ):
                    found = msgspec.convert(header, Header)
                    kind = names[found.tag]
                    if kind in _KINDS:  # of a later version there may be more
                        events.append(Message(moment_s, direction, peer, found, kind, fields))
                case [float(moment_s), "fact" | "standing" as kind, str(name), dict(values)]:
                    events.append(Fact(moment_s, name, values, kind == STANDING))
                case [float(), "end", int(count)]:
                    return events, "" if count == seen - 1 else "some of its records are missing"
                case _:
                    return events, f"record {seen} is none of a dump"
    except (UnpackException, ValueError, IndexError):
        return events, f"damaged after {seen} records"
    return events, f"cut off after {seen} records"


assert (FACT, STANDING, END) == ("fact", "standing", "end")  # as matched above
