"""Where a thinking ends: by its mark or by its number of tokens, however the tokens come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from accelgen.proto.messages import Thinking
from accelgen.proto.stages import thought

THINKINGS = st.builds(
    Thinking,
    end_ids=st.lists(st.integers(0, 5), max_size=2),
    max_tokens=st.integers(0, 12),
)


def one_by_one(thinking: Thinking, tokens: list[int]) -> int:
    """The definition: the first token that is a mark, or that makes it too many."""
    for number, token in enumerate(tokens, 1):
        if token in thinking.end_ids or number == thinking.max_tokens:
            return number
    return 0


@given(THINKINGS, st.lists(st.integers(0, 9), max_size=20))
def test_all_at_once(thinking: Thinking, tokens: list[int]) -> None:
    assert thought(thinking, tokens) == one_by_one(thinking, tokens)


@given(THINKINGS, st.lists(st.lists(st.integers(0, 9), max_size=4), max_size=8))
def test_in_portions(thinking: Thinking, portions: list[list[int]]) -> None:
    """Asked after each portion until it is over, about the new tokens only: the same number."""
    tokens: list[int] = []
    found = 0
    for portion in portions:
        begin = len(tokens)
        tokens += portion
        found = found or thought(thinking, tokens, begin)
        assert found == one_by_one(thinking, tokens)
