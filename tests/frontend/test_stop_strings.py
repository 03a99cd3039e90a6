"""Stop strings: the same cut, however the text is split."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from accelgen.frontend.detokenize import StopStrings

ALPHABET = "ab\n"
TEXTS = st.text(ALPHABET, max_size=40)
STOPS = st.lists(st.text(ALPHABET, min_size=1, max_size=6), max_size=4)


def cut(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """By definition: before the match that is complete first, of those the longest."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(edge for edge in cuts if edge < len(text))})
    return [text[start:end] for start, end in zip(edges, edges[1:], strict=False)]


@given(TEXTS, STOPS, st.lists(st.integers(0, 40)))
def test_cut_is_independent_of_the_split(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher, shown, found = StopStrings(stops), "", False
    for piece in pieces_of(text, cuts):
        out, found = matcher.feed(piece)
        shown += out
        # Whatever has been shown can never be taken back: it must be part of the right answer.
        assert cut(text, stops)[0].startswith(shown)
        if found:
            break
    else:
        shown += matcher.flush()
    assert (shown, found) == cut(text, stops)


@given(TEXTS, STOPS)
def test_nothing_is_held_back_without_need(text: str, stops: list[str]) -> None:
    shown, found = StopStrings(stops).feed(text)
    if not found:
        held = text[len(shown) :]
        assert not held or any(stop.startswith(held) for stop in stops)


def test_long_repetitive_stop() -> None:
    matcher = StopStrings(["a" * 255 + "b"])
    assert matcher.feed("a" * 1000) == ("a" * 745, False)
    assert matcher.feed("b") == ("", True)
