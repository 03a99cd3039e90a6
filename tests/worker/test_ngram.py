"""Prompt lookup beside its definition, whatever the tokens, and however they come."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.messages import Prompt
from accelgen.worker.drafting.ngram import LONGEST, SHORTEST, NgramDrafter, PairIndex
from accelgen.worker.drafting.proposal import NOTHING
from accelgen.worker.request import Request


def looked_up(tokens: list[int], most: int) -> tuple[int, ...]:
    """The definition: the longest ending that came before, at its latest place, and what followed there; where tokens
    end, it goes on with what has been proposed."""
    for length in range(min(LONGEST, len(tokens) - 1), SHORTEST - 1, -1):
        for end in range(len(tokens) - 1, length - 1, -1):  # exclusive, so not the ending itself
            if tokens[end - length : end] == tokens[-length:]:
                line = list(tokens)
                for i in range(most):
                    line.append(line[end + i])
                return tuple(line[len(tokens) :])
    return ()


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.integers(0, n), min_size=1, max_size=28)),
    st.integers(1, 8),
    st.lists(st.integers(0, 28), max_size=3),
)
def test_it_finds_what_the_definition_says(tokens: list[int], most: int, cuts: list[int]) -> None:
    """At most 28 tokens: the places of a pair are then never more than are looked at."""
    index = PairIndex()
    for cut in sorted(cuts):  # entered in portions
        index.extend(tokens[:cut])
    index.extend(tokens)
    assert index.find(tokens, most) == looked_up(tokens, most)


def test_longest_match_first_then_the_latest() -> None:
    one = [1, 2, 3, 4, 9, 9, 2, 3, 5, 9, 1, 2, 3]
    index = PairIndex()
    index.extend(one)
    assert index.find(one, 3) == (4, 9, 9)  # 1 2 3 came once, 2 3 twice
    two = [7, 2, 3, 4, 9, 8, 2, 3, 5, 6, 1, 2, 3]
    index = PairIndex()
    index.extend(two)
    assert index.find(two, 2) == (5, 6)


def test_a_repetition_goes_on() -> None:
    tokens = [5, 1, 2, 3, 1, 2, 3]
    index = PairIndex()
    index.extend(tokens)
    assert index.find(tokens, 7) == (1, 2, 3, 1, 2, 3, 1)
    assert index.find([5, 1, 2, 3, 1, 2, 3], 1) == (1,)


def test_nothing_to_go_by() -> None:
    for tokens in ([4], [4, 5], [1, 2, 3, 4, 5], [1, 2, 9, 2, 1]):
        index = PairIndex()
        index.extend(tokens)
        assert index.find(tokens, 4) == ()


def test_each_request_has_its_own_and_is_forgotten() -> None:
    drafter = NgramDrafter()
    requests = [Request(Prompt(1, [1, 2, 3, 1, 2]), 97), Request(Prompt(2, [1, 2, 4, 1, 2]), 97)]
    found = drafter.propose(requests, [1, 2])
    assert [one.tokens for one in found] == [(3,), (4, 1)]
    requests[0].extend([7, 1, 2], 0)
    assert drafter.propose(requests[:1], [2])[0].tokens == (7, 1)
    drafter.forget(1)
    drafter.forget(77)
    told_anew = Request(Prompt(1, [8, 9]), 97)
    assert drafter.propose([told_anew], [2]) == [NOTHING]
