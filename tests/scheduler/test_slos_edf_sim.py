"""`edf_sim`: events, the bank and its epochs, both rejections, by hand; and what holds for all drawn demands."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from accelgen.scheduler.slos_serve.edf_sim import Demand, Rejection, Simulation, admit
from accelgen.scheduler.slos_serve.roofline import Piece, Roofline

MS = Roofline((Piece(0.001, 0.0, 0.01),))  # 10 ms and 1 ms per token: 40 tokens in 50 ms
ROOM = 100_000
CMP, MEM = Rejection.CMP, Rejection.MEM


def decode(key: int = 9, tpot_s: float = 0.05, output: int = 100, held: int = 0) -> Demand:
    return Demand(key, False, 0.0, 0, tpot_s, output, held=held)


def prompt(
    tokens: int, due_s: float, key: int = 1, ready_s: float = 0.0, tpot_s: float = 0.05,
    output: int = 8, is_new: bool = True,
) -> Demand:  # fmt: skip
    return Demand(key, is_new, due_s, tokens, tpot_s, output, ready_s)


def judged(*demands: Demand, room: int = ROOM) -> Rejection | None:
    return Simulation(demands, MS, room).run()


def test_without_decodes_there_is_one_batch_until_the_deadline() -> None:
    assert judged(prompt(90, 0.1)) is None and judged(prompt(91, 0.1)) is CMP


def test_steps_of_the_tightest_pace_bank_what_they_leave() -> None:
    """Two steps of 40 tokens, a decode in each; then a last batch of 10 tokens in 20 ms, with the decode in it."""
    assert judged(decode(), prompt(78, 0.1)) is None and judged(decode(), prompt(79, 0.1)) is CMP
    assert judged(decode(), prompt(87, 0.12)) is None and judged(decode(), prompt(88, 0.12)) is CMP


def test_loose_paces_take_their_share() -> None:
    """In two steps the loose decode has one token, the tight one two."""
    both = decode(8), decode(9, tpot_s=0.1)
    assert judged(*both, prompt(77, 0.1)) is None and judged(*both, prompt(78, 0.1)) is CMP


def test_a_prompt_uses_only_what_was_left_after_it_came() -> None:
    assert judged(decode(), prompt(78, 0.2, ready_s=0.1)) is None
    assert judged(decode(), prompt(79, 0.2, ready_s=0.1)) is CMP
    assert judged(decode(), prompt(79, 0.2)) is None


def test_who_came_first_uses_what_was_left_first() -> None:
    """78 tokens from before 0.1 s, 78 after: the first one takes the former, so that the second has all the latter."""
    first, second = prompt(78, 0.2, key=1, output=100), prompt(78, 0.2, key=2, ready_s=0.1)
    assert judged(decode(), first, second) is None
    assert judged(decode(), second, first) is None
    assert judged(decode(), structs.replace(first, tokens=79), second) is CMP


def test_time_without_a_step_is_banked_when_a_prompt_comes() -> None:
    """At 0.12 s: 78 tokens and 9 in a batch of 20 ms, which the later one cannot use. Afterwards steps begin anew."""
    late = prompt(38, 0.17, key=2, ready_s=0.12)  # two decodes run then
    assert judged(decode(), prompt(87, 0.13, key=1, output=1), late) is None
    assert judged(decode(), prompt(88, 0.13, key=1, output=1), late) is CMP
    assert judged(decode(), structs.replace(late, tokens=40)) is CMP


def test_decodes_that_cannot_go_on() -> None:
    many = [decode(key) for key in range(40)]
    assert judged(*many) is None
    assert judged(*many, decode(41)) is CMP
    assert judged(*many, decode(41), *[decode(key, output=0) for key in range(50, 60)]) is CMP


def test_memory_until_everybody_has_finished() -> None:
    """The decode has 50 tokens of KV and gets 10, the prompt has 78 at 0.1 s and gets 8: at 0.5 s, when both end, that
    is 146."""
    pair = decode(output=10, held=50), prompt(78, 0.1)
    assert judged(*pair, room=146) is None and judged(*pair, room=145) is MEM
    assert judged(*pair, room=129) is MEM  # when it is loaded: 52 + 78


def test_what_a_request_held_is_free_when_it_ends() -> None:
    """The first ends at 0.1 s, when the second is loaded."""
    assert judged(decode(output=2, held=90), prompt(70, 0.1), room=92) is None


def test_new_requests_by_deadline_as_long_as_all_can_be_kept() -> None:
    old = decode(9)
    first, second, third = prompt(70, 0.1, 1), prompt(20, 0.1, 2), prompt(5, 0.1, 3)
    admitted, rejected = admit([third, second, first, old], MS, ROOM)
    assert admitted == [3, 2] and rejected == {1: CMP}
    tight = structs.replace(first, due_s=0.09)
    admitted, rejected = admit([tight, second, third, old], MS, ROOM)
    assert admitted == [2, 3] and rejected == {1: CMP}  # 39 and, in 40 ms, 29 tokens
    tight = structs.replace(tight, tokens=68)
    assert admit([tight, second, third, old], MS, ROOM) == ([1], {2: CMP, 3: CMP})
    assert admit([prompt(20, 0.1, 1), old], MS, 30) == ([], {1: MEM})


def test_old_requests_that_are_late_have_what_they_need_first() -> None:
    """200 tokens at 39 in 50 ms are there at 0.3 s; the 34 that are left then are the new one's."""
    late = prompt(200, 0.0, key=5, is_new=False)
    for tokens, expected in ((34, [1]), (35, [])):
        assert admit([decode(), late, prompt(tokens, 0.3, 1)], MS, ROOM)[0] == expected
    assert admit([*[decode(key) for key in range(50, 91)], prompt(1, 9.0, 1)], MS, ROOM)[1] == {
        1: CMP
    }


def test_the_stages_of_a_request_are_admitted_together() -> None:
    """The second prompt, which comes 50 ms after the first answer, needs more than fits before its deadline."""
    first = prompt(50, 0.1, key=1, output=2)  # until 0.2 s
    second = prompt(60, 0.3, key=1, ready_s=0.25)
    assert admit([first], MS, ROOM)[0] == [1]
    assert admit([first, second], MS, ROOM) == ([], {1: CMP})
    assert admit([first, structs.replace(second, tokens=40)], MS, ROOM)[0] == [1]


demands = st.lists(
    st.builds(
        Demand,
        st.integers(1, 6),
        st.booleans(),
        st.floats(0, 1),
        st.integers(0, 120),
        st.sampled_from([0.05, 0.1, 0.33]),
        st.integers(0, 40),
        ready_s=st.sampled_from([0.0, 0.0, 0.3]),
        held=st.integers(0, 60),
    ),
    max_size=10,
)


@settings(max_examples=300, deadline=None)
@given(drawn=demands, room=st.sampled_from([100, 300, 100_000]))
def test_what_is_admitted_has_been_found_feasible(drawn: list[Demand], room: int) -> None:
    """All new keys are answered; those admitted pass together with the old ones; each other one does not, if it is
    the next."""
    drawn = [structs.replace(one, due_s=one.due_s + one.ready_s) for one in drawn]
    drawn = [structs.replace(one, key=one.key + 10 * one.is_new) for one in drawn]
    admitted, rejected = admit(drawn, MS, room)
    assert {one.key for one in drawn if one.is_new} == {*admitted, *rejected}
    assert not {*admitted} & {*rejected}
    old = [one for one in drawn if not one.is_new]
    lenient = Simulation(old, MS, room, lenient=True)
    assert lenient.run() is None
    kept = [structs.replace(one, due_s=s) for one, s in zip(old, lenient.due_s, strict=True)]
    assert all(s >= one.due_s for one, s in zip(old, lenient.due_s, strict=True))
    if admitted:
        assert judged(*kept, room=room) is None
        assert (
            judged(*kept, *[d for key in admitted for d in drawn if d.key == key], room=room)
            is None
        )
