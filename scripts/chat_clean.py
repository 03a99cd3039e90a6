"""What a model says, made safe to print: terminal escape sequences and control characters are taken out.

A model may have been told, by whatever text it was given, to write sequences that retitle the window, fill the
clipboard, answer in the user's name or hide text. Of the control characters only line feed and tab survive. Sequences
are followed across the borders of the pieces in which an answer arrives (ECMA-48 for their grammar).
"""

from __future__ import annotations

import re
from enum import Enum, auto

_SUSPECT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BIDI = re.compile("[\u202a-\u202e\u2066-\u2069]")  # they show text in another order than it has

_ESCAPE = "\x1b"
_CSI, _STRING_TERMINATOR, _BELL = "\x9b", "\x9c", "\x07"
_CONTROL_STRINGS = "]PX^_"  # after ESC: OSC, DCS, SOS, PM, APC
_CONTROL_STRINGS_C1 = "\x9d\x90\x98\x9e\x9f"
MAX_CONTROL_STRING = 4096  # characters; what an unfinished control string may swallow


class _State(Enum):
    TEXT = auto()
    ESCAPE = auto()  # ESC seen
    CSI = auto()  # in a control sequence, up to its final character
    STRING = auto()  # in a control string, up to its terminator
    STRING_ESCAPE = auto()  # ESC seen in a control string


class Cleaner:
    """Cleans one stream of text. `feed` every piece in order."""

    def __init__(self) -> None:
        self._state = _State.TEXT
        self._swallowed = 0

    def feed(self, piece: str) -> str:
        """`piece` without escape sequences and control characters; lone surrogates become U+FFFD."""
        if self._state is _State.TEXT and _SUSPECT.search(piece) is None:
            return piece
        return "".join(kept for char in piece if (kept := self._step(char)))

    def _step(self, char: str) -> str:
        """What is printed for `char`: itself, its replacement, or nothing."""
        match self._state:
            case _State.TEXT:
                return self._text(char)
            case _State.ESCAPE:
                return self._after_escape(char)
            case _State.CSI:
                if " " <= char <= "?":  # parameters and intermediates
                    return ""
                self._state = _State.TEXT
                return "" if "@" <= char <= "~" else self._text(char)
            case _State.STRING | _State.STRING_ESCAPE:
                return self._in_string(char)

    def _text(self, char: str) -> str:
        if char == _ESCAPE:
            self._state = _State.ESCAPE
        elif char == _CSI:
            self._state = _State.CSI
        elif char in _CONTROL_STRINGS_C1:
            self._state, self._swallowed = _State.STRING, 0
        elif "\ud800" <= char <= "\udfff":
            return "\ufffd"
        elif char in "\n\t" or not (char < " " or "\x7f" <= char <= "\x9f" or _BIDI.match(char)):
            return char
        return ""

    def _after_escape(self, char: str) -> str:
        if char == "[":
            self._state = _State.CSI
        elif char in _CONTROL_STRINGS:
            self._state, self._swallowed = _State.STRING, 0
        elif " " <= char <= "/":  # an intermediate: the final character follows
            pass
        else:
            self._state = _State.TEXT
            return "" if "0" <= char <= "~" else self._text(char)
        return ""

    def _in_string(self, char: str) -> str:
        """A line end or too many characters also end it: the terminal never saw its beginning, and a model must not
        be able to hide the rest of its answer."""
        self._swallowed += 1
        escaped = self._state is _State.STRING_ESCAPE
        if char == _ESCAPE:
            self._state = _State.STRING_ESCAPE
        elif escaped and char != "\\":  # not a terminator: another sequence has begun
            self._state = _State.ESCAPE
            return self._after_escape(char)
        elif char == "\n":
            self._state = _State.TEXT
            return char
        elif escaped or char in (_BELL, _STRING_TERMINATOR) or self._swallowed > MAX_CONTROL_STRING:
            self._state = _State.TEXT
        return ""


def clean(text: str) -> str:
    """`text`, whole, made safe to print."""
    return Cleaner().feed(text)


def clean_line(text: str, limit: int = 500) -> str:
    """`text` as one line of at most `limit` characters, for a message out of a server's answer."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
