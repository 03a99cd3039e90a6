"""Wraps what a model says at words, as it streams, for a terminal of a given width.

A terminal breaks a long line wherever its edge is. Here a word that would cross the edge begins the next line instead.
What people copy, or what has a shape of its own, passes as it is: code blocks (between ``` or ~~~ fences), lines that
begin with four spaces or a tab, and rows of tables.
"""

from __future__ import annotations

import re

from rich.cells import cell_len

_PARTS = re.compile(r"\n|[^\S\n]+|\S+")
_FENCES = ("```", "~~~")


class Wrapper:
    """Wraps one answer. What comes is shown at once; the beginning of a word that turns out to cross the edge is taken
    back and the word shown on the next line. Only spaces wait for what follows them."""

    def __init__(self, width: int) -> None:
        self._width = max(1, width - 1)  # terminals differ in what they do after the last column
        self._column = 0
        self._space = ""  # after the last word, not shown yet
        self._word = ""  # the one under way, as far as shown
        self._first = True  # it is the first of its line
        self._shaped = False  # this line begins like code or a table
        self._in_code = False

    def feed(self, piece: str) -> str:
        """What to print now."""
        return "".join(self._take(part) for part in _PARTS.findall(piece))

    def _take(self, part: str) -> str:
        if part == "\n":
            self._end_word()
            space = self._space if self._as_is else ""
            self._column, self._space, self._first, self._shaped = 0, "", True, False
            return space + "\n"
        if part.isspace():
            self._end_word()
            self._space += part
            return ""
        return self._grow(part)

    def _grow(self, part: str) -> str:
        """The next part of a word, with the space before it."""
        word, space, self._space = self._word + part, self._space, ""
        if self._first:
            indented = "\t" in space or len(space) >= 4
            self._shaped |= indented or word.startswith(("|", *_FENCES))
        begun, whole = cell_len(self._word), cell_len(word)
        end = self._column + cell_len(space) + cell_len(part)
        wide = (
            cell_len(part[-1]) > 1
        )  # a script without spaces: the next character may begin a line
        self._word = "" if wide else word
        if self._as_is or end <= self._width or whole > self._width or self._column == begun:
            self._column = end % (self._width + 1)  # the terminal breaks what is longer than a line
            return space + part
        self._column = whole
        return (f"\x1b[{begun}D\x1b[K" if begun else "") + "\n" + word

    def _end_word(self) -> None:
        if self._first and self._word:
            self._in_code ^= self._word.startswith(_FENCES)
            self._first = False
        self._word = ""

    @property
    def _as_is(self) -> bool:
        return self._in_code or self._shaped
