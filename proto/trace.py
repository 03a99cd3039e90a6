"""A record of every message of a process: when it was begun, sent or received. Off unless `trace_dir` is configured.

Written when the process ends, one msgpack record for each moment of a message: [time_s, "begin" (the scheduler starts
to think of a plan), "send" (just before) or "recv", message type, step].
Times are of the one clock (accelgen.proto.clocks), so the files of all processes of a host can be laid side by side.
"""

from __future__ import annotations

import atexit
from collections import deque
from pathlib import Path

from msgspec.msgpack import Encoder

from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Body

LIMIT = 1_000_000  # records kept, the newest ones

_records: deque[tuple[float, str, str, int]] | None = None
_path = Path()


def start_trace(folder: Path, process: str) -> None:
    """Begins to record; at exit the records go to `folder/process.msgpack`."""
    global _records, _path
    _records, _path = deque(maxlen=LIMIT), folder / f"{process}.msgpack"
    folder.mkdir(parents=True, exist_ok=True)
    atexit.register(write_trace)


def note(direction: str, body: Body, moment_s: float | None = None) -> None:
    """Records one message, now or as of `moment_s`, if recording is on."""
    if _records is not None:
        _records.append(
            (moment_s or now_s(), direction, type(body).__name__, getattr(body, "step", -1))
        )


def write_trace() -> None:
    """Writes what was recorded; called at exit, and by whoever leaves without the usual farewell."""
    if _records is not None:
        encode = Encoder().encode
        with _path.open("wb") as stream:
            for record in _records:
                stream.write(encode(record))
