"""Terminal escapes and control characters of a model never reach the terminal, wherever the pieces are cut."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scripts.chat_clean import MAX_CONTROL_STRING, Cleaner, clean, clean_line

HOSTILE = st.text(
    st.sampled_from("ab;0?[]PX^_\\m1 \n\t\r\x1b\x07\x00\x7f\x9b\x9c\x9d\x90é漢\u202e\ud800")
)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("plain\ttext\nof two lines", "plain\ttext\nof two lines"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b]0;title\x07shown", "shown"),
        ("\x1b]52;c;aGFjaw==\x1b\\shown", "shown"),
        ("\x9d0;title\x9cshown", "shown"),
        ("\x1bP1$q\x1b\\\x1b_app\x1b\\\x1b^pm\x1b\\\x1bXsos\x1b\\shown", "shown"),
        ("\x1bcreset\x1b(0\x1b#8", "reset"),
        ("back\b\b\rspace\x00\x7f\x0b\x0c", "backspace"),
        ("\x1b[31\nm", "\nm"),  # a line end is no part of a sequence
        ("\x1b]0;never ends\nshown", "\nshown"),  # nothing hides more than the line
        ("\x1b\x1b[1mx", "x"),
        ("\x1b]a\x1b[1mx", "x"),  # another sequence begins in a control string
        ("user\u202eexe.txt\u2066", "userexe.txt"),
        ("half \ud83d done", "half \ufffd done"),
        ("👩‍💻 漢字 é", "👩‍💻 漢字 é"),
    ],
)
def test_examples(text: str, kept: str) -> None:
    assert clean(text) == kept


@given(HOSTILE, st.lists(st.integers(0, 40), max_size=4))
def test_borders_do_not_matter(text: str, cuts: list[int]) -> None:
    cleaner = Cleaner()
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in zip(borders, borders[1:], strict=False)]
    assert "".join(cleaner.feed(piece) for piece in pieces) == clean(text)


@given(st.one_of(HOSTILE, st.text()))
def test_what_is_left_is_harmless_and_in_order(text: str) -> None:
    kept = clean(text)
    assert all(char in "\n\t" or unicodedata.category(char) not in ("Cc", "Cs") for char in kept)
    assert clean(kept) == kept
    rest = iter("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    assert all(char in rest for char in kept)  # a subsequence of what came
    kept.encode()


def test_an_endless_control_string_hides_little() -> None:
    assert clean("\x1b]" + "x" * (MAX_CONTROL_STRING + 1) + "shown") == "shown"


def test_one_line() -> None:
    assert clean_line("a\n\n b\x1b[2J\tc") == "a b c"
    assert clean_line("x" * 100, 10) == "x" * 9 + "…"
