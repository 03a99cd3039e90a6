"""Wrapping moves words, never loses or changes them, and leaves code alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from accelgen.scripts.chat_wrap import Wrapper

SAID = st.text(st.sampled_from("ab  \n`|漢\té"), max_size=200)


def settled(shown: str) -> str:
    """What a terminal shows in the end: `CSI n D`, `CSI K` take back n columns."""
    while found := re.search("\x1b\\[(\\d+)D\x1b\\[K", shown):
        before = shown[: found.start()]
        while cell_len(shown[len(before) : found.start()]) < int(found[1]):
            before = before[:-1]
        shown = before.rstrip(" ") + shown[found.end() :]
    return shown


def wrapped(text: str, width: int, cuts: list[int] | None = None) -> str:
    wrapper = Wrapper(width)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts or []), len(text)]
    pieces = [text[start:end] for start, end in zip(borders, borders[1:], strict=False)]
    return settled("".join(wrapper.feed(piece) for piece in pieces))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("one two three", "one two\nthree"),
        ("one two\nthree four", "one two\nthree\nfour"),
        ("exactly9 x", "exactly9\nx"),
        ("an abcdefghijklmnop b", "an abcdefghijklmnop\nb"),  # longer than a line
        ("    indented code stays", "    indented code stays"),
        ("| a | long | row |", "| a | long | row |"),
        ("```py\nx = a_long_call(y, z)\n```\none two three", "```py\nx = a_long_call(y, z)\n```\none two\nthree"),
        ("漢字漢字漢字", "漢字漢字漢字"),  # one word: the terminal's to break
        ("ends with spaces   \n", "ends with\nspaces\n"),
    ],
)  # fmt: skip
def test_examples(text: str, shown: str) -> None:
    assert wrapped(text, 10) == shown


def test_borders_do_not_matter_to_words() -> None:
    text = "Streams come in pieces\nof any length; `words` stay whole."
    assert wrapped(text, 12, list(range(len(text)))) == wrapped(text, 12)


@given(SAID, st.integers(2, 40), st.lists(st.integers(0, 200), max_size=9))
def test_nothing_is_lost(text: str, width: int, cuts: list[int]) -> None:
    shown = wrapped(text, width, cuts)
    assert "".join(shown.split()) == "".join(text.split())


@given(st.lists(st.text("abc,.", min_size=1, max_size=8), max_size=30), st.integers(10, 40))
def test_plain_words_never_reach_the_edge(words: list[str], width: int) -> None:
    shown = wrapped(" ".join(words), width)
    assert all(cell_len(line) < width for line in shown.split("\n"))
    assert shown.split() == words


def test_code_is_as_it_came() -> None:
    code = "```\nfor number in range(10):   \n    print(number, end='')\n\n```\n"
    for cuts in ([], list(range(len(code)))):
        assert wrapped(code, 8, cuts) == code


def test_a_word_is_shown_as_it_comes_and_moved_if_it_crosses_the_edge() -> None:
    wrapper = Wrapper(10)
    shown = [wrapper.feed(piece) for piece in ("Hel", "lo", " wo", "rl", "ds\n")]
    assert shown == ["Hel", "lo", " wo", "\x1b[2D\x1b[K\nworl", "ds\n"]
