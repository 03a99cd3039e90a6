"""Dumps of the flight recorder: the ring of a process as a file of concatenated msgpack records.

    {"accelgen recorder": 1, "process": .., "pid": .., "incarnation": .., "wall_s": .., "monotonic_s": .., ...}
    [moment_s, "send" | "recv", peer, [version, tag, epoch, incarnation, seq], [fields of the body ...]]
    [moment_s, "fact", name, {values}]       "standing" for one from before the ring begins, which is still true
    [moment_s, "end", number of records between the first and this one]

`wall_s` and `monotonic_s` are the same moment on both clocks; `messages` names the tags. What people have written is
left out (`accelgen.proto.scrub`). Files have mode 0600, in a 0700 folder of the run directory; of each process name the
last lives are kept. A dump never fails its process, and does not hold it up: it is written on a thread of its own, in
small parts with pauses, because a thread at work holds the interpreter.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import structlog
from msgspec import Raw
from msgspec.msgpack import Decoder, Encoder
from msgspec.structs import replace

from accelgen.proto.clocks import now_s
from accelgen.proto.frame import PROTOCOL_VERSION, Header, unsealed
from accelgen.proto.messages import MESSAGES, Dumped
from accelgen.proto.recorder import FACT, STANDING, Event, Ring, current_ring
from accelgen.proto.scrub import scrubbed

FOLDER = "recorder"  # in the run directory
KIND, VERSION = "accelgen recorder", 1
END = "end"
KEPT = 3  # files of earlier lives of the same process name
PART_EVENTS, PAUSE_S = 100, 0.002  # about 0.3 ms of work, then a pause
LAST_WAIT_S = 2.0  # for a dump that is on its way when the process fails

_encode = Encoder().encode
_header = Decoder(Header)

log = structlog.get_logger()


class Dumps:
    """Writes what this process has recorded into `folder`, for those who asked. Use it from the main thread."""

    def __init__(self, folder: Path, process: str, incarnation: int) -> None:
        self._folder, self._process, self._incarnation = folder, process, incarnation
        self._clients: dict[bytes, None] = {}  # wait for the dump that is being written
        self._thread: threading.Thread | None = None
        self._result = Dumped(b"", process, fault="not written")

    def ask(self, client: bytes) -> None:
        """`client` wants a dump: one begins, unless one is on its way."""
        self._clients[client] = None
        if self._thread is None:
            arguments = (*self._snapshot(), PAUSE_S)
            self._thread = threading.Thread(target=self._write, args=arguments, daemon=True)
            self._thread.start()

    @property
    def busy(self) -> bool:
        """A dump is being written; `answers` will have something to say."""
        return self._thread is not None

    def answers(self) -> list[Dumped]:
        """What to tell those who asked, as soon as their dump is there. Call it in every round."""
        if self._thread is None or self._thread.is_alive():
            return []
        self._thread = None
        clients, self._clients = self._clients, {}
        return [replace(self._result, client=client) for client in clients]

    def write_last(self) -> None:
        """The process ends by a fault of its own: what it has recorded is written at once."""
        if self._thread is not None:
            self._thread.join(LAST_WAIT_S)
        elif current_ring() is not None:
            self._write(*self._snapshot(), 0.0)

    def on_exception(
        self, kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        """A `sys.excepthook`: the usual words, then the dump."""
        sys.__excepthook__(kind, error, trace)
        self.write_last()

    def _snapshot(self) -> tuple[dict[str, Any], list[Event]]:
        """Head and events of a dump as of now. Both are empty if nothing is recorded."""
        ring = current_ring()
        if ring is None:
            return {}, []
        return head_of(self._process, self._incarnation, ring), events_of(ring)

    def _write(self, head: dict[str, Any], events: list[Event], pause_s: float) -> None:
        path = self._folder / f"{self._process}-{os.getpid()}.msgpack"
        if not head:
            self._result = Dumped(b"", self._process, fault="the flight recorder is off")
            return
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            _remove_old(self._folder, self._process, path)
            write_dump(path, head, events, pause_s)
            self._result = Dumped(b"", self._process, path.name, len(events))
        except Exception as error:  # a full disk, no memory: whatever it is, the process goes on
            fault = f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'not written'}"
            log.warning("the flight recorder could not be written", cause=fault, file=str(path))
            self._result = Dumped(b"", self._process, fault=fault)


def write_dump(
    path: Path, head: dict[str, Any], events: Sequence[Event], pause_s: float = 0.0
) -> None:
    """Writes a dump: whole, or not at all. Raises OSError."""
    part = path.with_name(f".{path.stem}.part")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    try:
        with open(os.open(part, flags, 0o600), "wb") as stream:
            stream.write(_encode(head))
            for begin in range(0, len(events), PART_EVENTS):
                stream.write(b"".join(map(_record, events[begin : begin + PART_EVENTS])))
                time.sleep(pause_s)
            stream.write(_encode((now_s(), END, len(events))))
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def head_of(process: str, incarnation: int, ring: Ring) -> dict[str, Any]:
    """The first record of a dump."""
    return {
        KIND: VERSION,
        "process": process,
        "pid": os.getpid(),
        "incarnation": incarnation,
        "wall_s": time.time(),
        "monotonic_s": now_s(),
        "protocol": PROTOCOL_VERSION,
        "messages": [kind.__name__ for kind in MESSAGES],
        "most_events": ring.most_events,
        "most_bytes": ring.most_bytes,
    }


def events_of(ring: Ring) -> list[Event]:
    """All that is to be written, standing facts first."""
    standing, events = ring.snapshot()
    marked: list[Event] = [(e[0], STANDING, e[2], e[3], e[4]) for e in standing]
    return marked + events


def _record(event: Event) -> bytes:
    moment_s, direction, name, header, body = event
    text = name.decode("utf-8", "backslashreplace")
    if direction in (FACT, STANDING):
        return _encode((moment_s, direction, text, Raw(body)))
    plain = unsealed(header)
    tag = _header.decode(plain).tag
    return _encode((moment_s, direction, text, Raw(plain), Raw(scrubbed(tag, body))))


def _remove_old(folder: Path, process: str, own: Path) -> None:
    """Leaves the files of the last lives of `process`, so that many deaths do not fill the disk."""
    for part in folder.glob(f".{process}-*.part"):
        part.unlink(missing_ok=True)
    others = [path for path in folder.glob(f"{process}-*.msgpack") if path != own]
    others.sort(key=lambda path: path.stat().st_mtime)
    for path in others[: max(0, len(others) - KEPT)]:
        path.unlink(missing_ok=True)
