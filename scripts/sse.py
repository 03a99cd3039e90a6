"""Server-sent events: bytes as they arrive from a socket in, complete events out.

Written from the event-stream grammar of the HTML standard: lines end with LF, CRLF or CR; `data` lines of one event
are joined with LF; a line that begins with a colon is a comment; a blank line ends the event. An event that the
stream breaks off in the middle of is never delivered. `event`, `id` and `retry` fields are read over: the OpenAI API
uses none of them.
"""

from __future__ import annotations

import re

DONE = b"[DONE]"
"""The data of the last event of an OpenAI stream."""

MAX_EVENT_BYTES = 16 * 1024 * 1024

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class SseError(ValueError):
    """The stream is not one that we can read; the text says why."""


class SseReader:
    """Reads one stream. Feed it every piece of the body, whatever its borders."""

    def __init__(self) -> None:
        self._pending: list[bytes] = []  # parts of the unfinished line
        self._data: list[bytes] = []  # data lines of the unfinished event
        self._size = 0  # bytes that came since the last blank line was seen
        self._after_cr = False  # the last piece ended with CR: a LF that follows belongs to it
        self._begun = False

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of the events that `piece` completes, in order. Raises SseError for an endless event."""
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
        if not piece:
            return []
        self._after_cr = piece.endswith(b"\r")
        self._size += len(piece)
        events = []
        for line in self._lines(piece):
            if line:
                self._take(line)
                continue
            self._size = 0
            if self._data:
                events.append(b"\n".join(self._data))
                self._data = []
        if self._size > MAX_EVENT_BYTES:
            raise SseError(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return events

    def _lines(self, piece: bytes) -> list[bytes]:
        """The lines that `piece` completes; the beginning of the next one is kept."""
        lines = _LINE_END.split(piece)
        if len(lines) == 1:
            self._pending.append(piece)
            return []
        lines[0] = b"".join([*self._pending, lines[0]])
        self._pending = [lines.pop()]
        if not self._begun:
            self._begun = True
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
        return lines

    def _take(self, line: bytes) -> None:
        field, _, value = line.partition(b":")  # a comment has an empty field name
        if field == b"data":
            self._data.append(value.removeprefix(b" "))
