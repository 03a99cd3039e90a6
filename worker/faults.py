"""The two ways a worker gives up: before it serves (LoadError) and for good while serving (FatalError)."""

from __future__ import annotations


class LoadError(Exception):
    """The model cannot be served. The text is one line for people: the cause, with the numbers."""


class FatalError(Exception):
    """The device or the process is beyond repair: the worker says this line and ends."""


MIB = 1 << 20


def mib(count: float) -> str:
    """Bytes as whole MiB, for messages."""
    return f"{count / MIB:,.0f} MiB"


def one_line(error: BaseException, limit: int = 300) -> str:
    """An exception's type and text in one line; long texts are cut."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:limit]
