"""structlog for every process: JSON lines in a file, pretty on a terminal; never a prompt, a completion or a key."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import Counter
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Sets structlog up for this process: `process` goes into every line, lines go to `stream` (None: stderr).
    Foreign loggers come along as lines, too."""
    stream = stream or sys.stderr
    lines = _Lines(stream)
    pretty = stream.isatty()
    renderer: Any = (
        structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


class _Lines:
    """Writes lines to a stream and never raises: on a full disk, or with nobody at the other end of the pipe, lines are
    lost and counted, and the process goes on. The first one that can be written again is followed by their number."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()  # the frontend logs from two threads
        self._lost = 0
        self._torn = False  # a line was written in part: the next one needs a beginning of its own

    def msg(self, line: str) -> None:
        """One line, without its end."""
        with self._lock:
            if not self._put(("\n" if self._torn else "") + line + "\n"):
                self._lost += 1
            elif self._lost:
                lost, self._lost = self._lost, 0
                structlog.get_logger().warning("lines were lost", lost=lost)

    debug = info = warning = error = critical = msg

    def _put(self, text: str) -> bool:
        """Writes at once, past all buffers, which would keep what cannot be written."""
        try:
            fd = self._stream.fileno()
        except OSError:  # it is none of the system's
            self._stream.write(text)
            return True
        data, begun = memoryview(text.encode(errors="replace")), False
        try:
            while data:
                data = data[os.write(fd, data) :]
                begun, self._torn = True, bool(data)
        except OSError:
            self._torn = self._torn or begun
            return False
        return True


_told: Counter[str] = Counter()


def warn_seldom(event: str, **facts: object) -> None:
    """A warning that a flood of messages can cause: of each kind the first ten are logged, then every 1000th."""
    _told[event] += 1
    if _told[event] <= 10 or _told[event] % 1000 == 0:
        structlog.get_logger().warning(event, count=_told[event], **facts)


class _Forward(logging.Handler):
    """Hands the standard library's log records (uvicorn, transformers) to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(record.levelno, record.getMessage(), logger=record.name)
