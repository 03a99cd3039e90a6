"""structlog for every process: JSON lines in a file, pretty on a terminal; never a prompt, a completion or a key."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


def configure_logs(process: str, level: str = "info", stream: TextIO | None = None) -> None:
    """Sets structlog up for this process: `process` goes into every line, lines go to `stream` (None: stderr).
    Foreign loggers come along as lines, too."""
    stream = stream or sys.stderr
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
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)


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
