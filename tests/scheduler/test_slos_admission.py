"""SLOs-Serve's admission: the dynamic program against every subset and every order, its parts, and what it promises."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, cycle

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference_slos import best_profit, supply

from accelgen.scheduler.slos_serve.admission import Candidate, Place, Problem, greedy, relaxed
from accelgen.scheduler.slos_serve.dynamic import MOST_STATES, Front, State, choose
from accelgen.scheduler.slos_serve.plan import Plan, make_plan, overloaded_plan
from accelgen.scheduler.slos_serve.planner_ar import ArPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner
from accelgen.scheduler.slos_serve.roofline import PUBLISHED, Piece, Roofline

MS = Roofline((Piece(0.001, 0.0, 0.01),))  # 10 ms and 1 ms per token
TIERS = (0.05, 0.1)
PLENTY = 1 << 40


def problem(
    *candidates: Candidate, counts: tuple[int, ...] = (0, 0), blocks: int = 1000, seats: int = 100
) -> Problem:
    return Problem.of(ArPlanner(MS, TIERS), candidates, counts, counts, blocks, seats)


def new(key: int, due_s: float, tokens: int, **more: float) -> Candidate:
    return Candidate(key, True, due_s, tokens, **{"tier": 0, **more})  # type: ignore[arg-type]


def old(key: int, due_s: float, tokens: int) -> Candidate:
    return Candidate(key, False, due_s, tokens, 0)


def keys(taken: list[Candidate]) -> list[int]:
    return [one.key for one in taken]


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_one_request_more_where_two_small_ones_fit() -> None:
    """In 0.36 s there is room for 350 tokens: the first by deadline needs 300 of them, the two others 150 each."""
    three = problem(new(1, 0.35, 300), new(2, 0.36, 150), new(3, 0.37, 150))
    assert keys(greedy(three)) == [1]
    assert keys(choose(three)) == [2, 3]


def test_a_request_is_one_decode_more_from_its_deadline_on() -> None:
    """0.1 s for 90 tokens; then batches of 50 ms with 40 tokens, one of them a decode: 78 in 0.1 s."""
    assert keys(choose(problem(new(1, 0.1, 90), new(2, 0.2, 78)))) == [1, 2]
    assert len(choose(problem(new(1, 0.1, 90), new(2, 0.2, 79)))) == 1


def test_profit_decides() -> None:
    two = problem(new(1, 0.1, 80), new(2, 0.1, 80, profit=2.5))
    assert keys(greedy(two)) == [1] and keys(choose(two)) == [2]


def test_old_requests_are_kept_whatever_new_ones_are_worth() -> None:
    assert keys(choose(problem(old(1, 0.1, 60), new(2, 0.1, 31, profit=99.0)))) == [1]
    assert keys(choose(problem(old(1, 0.1, 60), new(2, 0.1, 30)))) == [1, 2]
    assert keys(choose(problem(old(1, 0.2, 120), new(2, 0.1, 60, profit=99.0)))) == [1]


def test_memory_and_seats_are_limits_of_all_new_ones_together() -> None:
    few = [new(1, 1.0, 10, blocks=6), new(2, 1.0, 10, blocks=5), new(3, 1.0, 10, blocks=4)]
    assert keys(choose(problem(*few, blocks=9))) == [2, 3]
    assert keys(choose(problem(*few, blocks=6))) == [
        1
    ]  # of equals those that the greedy rule takes
    assert len(choose(problem(*few, seats=2))) == 2
    assert keys(choose(problem(replace(few[0], decodes=3), *few[1:], seats=2))) == [2, 3]


def test_decodes_must_be_able_to_go_on() -> None:
    """38 decodes run; 40 tokens fit into 50 ms: two more can join, with nothing left for a fourth prompt."""
    three = [new(key, 1.0, 1) for key in (1, 2, 3)]
    assert len(choose(problem(*three, counts=(38, 0)))) == 2
    loose = [replace(one, tier=1) for one in three]
    assert len(choose(problem(*loose, counts=(38, 0)))) == 2  # in some batch all are due
    assert len(choose(problem(*loose, counts=(30, 8)))) == 2


def test_late_old_requests_are_due_as_early_as_can_be() -> None:
    """200 tokens beside 10 decodes of 50 ms: six batches with 30 each, then 20 and the 10 decodes in 40 ms."""
    late = relaxed(problem(old(1, 0.0, 200), old(2, 0.1, 15), new(3, 9.0, 10), counts=(10, 0)))
    assert late is not None
    assert [one.key for one in late.candidates] == [1, 2, 3]
    assert [one.due_s for one in late.candidates] == pytest.approx([0.34, 0.34 + 0.01 + 0.026, 9.0])
    assert keys(choose(late)) == [1, 2, 3]
    fine = problem(old(1, 5.0, 200), new(2, 0.1, 15), counts=(10, 0))
    assert relaxed(fine) == fine
    assert relaxed(problem(old(1, 0.0, 200), counts=(41, 0))) is None
    assert relaxed(problem(old(1, 9.0, 2), counts=(40, 0))) is None


def test_nothing_to_choose() -> None:
    assert choose(problem()) == [] and greedy(problem()) == []
    assert choose(problem(new(1, 0.0, 5))) == []


def test_beyond_the_work_allowed_the_greedy_answer_stands() -> None:
    three = problem(new(1, 0.35, 300), new(2, 0.36, 150), new(3, 0.37, 150))
    assert keys(choose(three, most_work=3)) == [1]
    assert keys(choose(three, most_work=200)) == [2, 3]


# --- Pareto states ---------------------------------------------------------------------------------------------------


def state(profit: float, blocks: int, spare: int, finish_s: float) -> State:
    return State(profit, blocks, 0, Place(spare, finish_s, (), ()))


@pytest.mark.parametrize(
    ("better", "worse"),
    [((2, 5, 7, 1.0), (1, 5, 7, 1.0)), ((1, 4, 7, 1.0), (1, 5, 7, 1.0)),
     ((1, 5, 8, 1.0), (1, 5, 7, 1.0)), ((1, 5, 7, 0.9), (1, 5, 7, 1.0))],
)  # fmt: skip
def test_each_of_the_four_counts(better: tuple, worse: tuple) -> None:
    assert state(*better).dominates(state(*worse)) and not state(*worse).dominates(state(*better))
    for first, second in ((better, worse), (worse, better)):
        front = Front()
        front.add(state(*first)), front.add(state(*second))
        assert [(one.profit, one.blocks, one.place.spare) for one in front.states] == [better[:3]]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3)),
        max_size=30,
    )
)
def test_a_front_is_what_nothing_dominates(drawn: list[tuple[int, int, int, int]]) -> None:
    front = Front()
    states = [state(*one) for one in drawn]
    for one in states:
        front.add(one)
    found = {(s.profit, s.blocks, s.place.spare, s.place.finish_s) for s in front.states}
    best = {
        one
        for one, at in zip(drawn, states, strict=True)
        if not any(o.dominates(at) and not at.dominates(o) for o in states)
    }
    assert found == best and len(front.states) == len(best)


def test_a_front_has_a_width() -> None:
    front = Front()
    for i in range(2 * MOST_STATES):
        front.add(state(i, i, 0, 0.0))
    assert sorted(one.profit for one in front.states) == [*range(MOST_STATES, 2 * MOST_STATES)]


# --- against every subset and every order ----------------------------------------------------------------------------

on_the_grid = st.lists(
    st.builds(
        lambda is_new, steps, tokens, tier, blocks, profit, decodes: Candidate(
            0, is_new, 0.05 * steps, tokens, tier, blocks, profit, decodes
        ),
        st.sampled_from([True, True, True, False]),
        st.integers(1, 6),
        st.integers(1, 150),
        st.integers(0, 1),
        st.integers(0, 5),
        st.sampled_from([1.0, 1.0, 2.0]),
        st.integers(1, 2),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(
    drawn=on_the_grid,
    counts=st.tuples(st.integers(0, 18), st.integers(0, 18)),
    blocks=st.sampled_from([3, 7, 100]),
    seats=st.sampled_from([2, 100]),
)
def test_the_optimum_of_all_subsets_and_orders(
    drawn: list[Candidate], counts: tuple[int, int], blocks: int, seats: int
) -> None:
    """Deadlines are multiples of 50 ms and batches exactly as long, so that plans end at deadlines: then what the
    states leave out cannot be better."""
    drawn = [replace(one, key=i) for i, one in enumerate(drawn, 1)]
    posed = problem(*drawn, counts=counts, blocks=blocks, seats=seats)
    best = best_profit(MS.seconds, MS.most, TIERS, counts, 1.0, drawn, blocks, seats)
    if posed.walk(one for one in posed.candidates if not one.is_new) is None:
        assert best is None
        return
    taken = choose(posed, PLENTY)
    assert sum(one.profit for one in taken) == best
    assert sum(one.profit for one in greedy(posed)) <= sum(one.profit for one in taken)


anywhere = st.lists(
    st.builds(
        lambda is_new, due_s, tokens, tier: Candidate(0, is_new, due_s, tokens, tier),
        st.sampled_from([True, True, False]),
        st.floats(0.0, 1.0),
        st.integers(1, 300),
        st.integers(0, 1),
    ),
    min_size=1,
    max_size=7,
)


@settings(max_examples=250, deadline=None)
@given(drawn=anywhere, counts=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_whatever_is_admitted_can_be_kept(drawn: list[Candidate], counts: tuple[int, int]) -> None:
    """By a simulation that knows nothing of the program; and it is never worse than the greedy answer."""
    drawn = [replace(one, key=i) for i, one in enumerate(drawn, 1)]
    posed = relaxed(problem(*drawn, counts=counts))
    if posed is None:
        return
    taken, simply = choose(posed), greedy(posed)
    assert {one.key for one in drawn if not one.is_new} <= {*keys(taken)}
    assert sum(one.profit for one in taken) >= sum(one.profit for one in simply)
    for chosen in (taken, simply):
        made = supply(MS.seconds, MS.most, TIERS, counts, 1.0, chosen)
        assert made is not None
        for one in chosen:
            needed = sum(other.tokens for other in chosen if other.due_s <= one.due_s)
            assert sum(n for end_s, n in made if end_s <= one.due_s + 1e-6) >= needed


# --- batches of the admitted -----------------------------------------------------------------------------------------


def carried_out(
    plan: Plan, chosen: list[Candidate], counts: tuple[int, ...], until_s: float
) -> tuple[dict[int, float], dict[int, list[tuple[int, float]]]]:
    """Step by step, prompts in the order of deadlines: when each is complete; by which deadline (as a decode of which
    tier, since when) every decode had its tokens, as lists of (token, time)."""
    left = {one.key: one.tokens for one in chosen}
    complete: dict[int, float] = {}
    tokens: dict[int, list[tuple[int, float]]] = {one.key: [] for one in chosen}
    tokens |= {-1 - k: [] for k, n in enumerate(counts) if n}
    tier = {one.key: one.tier for one in chosen} | {-1 - k: k for k in range(len(counts))}
    clock_s = 0.0
    for position, one in enumerate(chain(plan.slices, cycle(plan.tail))):
        assert one == plan.at(position)
        begun_s, clock_s = clock_s, clock_s + one.seconds
        room = one.prefill
        for candidate in sorted(chosen, key=lambda c: c.due_s):
            taken = min(room, left[candidate.key])
            left[candidate.key] -= taken
            room -= taken
            if taken and not left[candidate.key]:
                complete[candidate.key] = clock_s
        for key, had in tokens.items():
            if one.lengths[tier[key]] and plan.joins.get(key, 0) <= position:
                assert key < 0 or complete.get(key, clock_s) <= begun_s + 1e-9, (
                    "it decodes too early"
                )
                had.append((len(had) + 1, clock_s))
        if clock_s > until_s:
            return complete, tokens
    raise AssertionError("no end")


@settings(max_examples=150, deadline=None)
@given(drawn=anywhere, counts=st.tuples(st.integers(0, 20), st.integers(0, 20)))
def test_the_batches_keep_every_deadline(drawn: list[Candidate], counts: tuple[int, int]) -> None:
    """Each prompt is complete in time; then token m comes by deadline + m paces, as those who decode already have
    theirs by m paces."""
    drawn = [replace(one, key=i) for i, one in enumerate(drawn, 1)]
    posed = relaxed(problem(*drawn, counts=counts))
    if posed is None:
        return
    taken = choose(posed)
    plan = make_plan(posed, taken)
    complete, tokens = carried_out(plan, taken, counts, until_s=3.0)
    due = {one.key: one.due_s for one in taken}
    pace = {one.key: TIERS[one.tier] for one in taken} | {-1 - k: TIERS[k] for k in range(2)}
    for key, due_s in due.items():
        if due_s < 2.0:
            assert complete[key] <= due_s + 1e-6
    for key, had in tokens.items():
        begin_s = due.get(key, 0.0)
        for number, at_s in had:
            assert at_s <= begin_s + number * pace[key] + 1e-6
        assert begin_s > 2.0 or len(had) >= (3.0 - begin_s) / pace[key] - 1


def test_a_plan_with_drafts_has_room_for_the_prompts() -> None:
    """The same program over the other planner."""
    planner = SdPlanner(PUBLISHED["opt-13b-tp2"], TIERS)
    both = [new(1, 0.2, 1300, profit=2.0), new(2, 0.2, 200)]
    posed = Problem.of(planner, both, (20, 0), (20, 0), 99, 99)
    taken = choose(posed)
    assert keys(taken) == [1]  # 2 * 681 tokens in 0.2 s
    plan = make_plan(posed, taken)
    assert [one.prefill for one in plan.slices] == [681, 681] and plan.joins == {1: 2}
    assert all(one.lengths == (4, 0) for one in [*plan.slices, *plan.tail])


def test_who_has_nothing_to_do_has_a_plan_too() -> None:
    plan = make_plan(problem(), [])
    assert plan.slices == () and plan.at(0).size == plan.at(7).prefill == MS.time_to_batch(1.0)
    slow = Problem.of(
        ArPlanner(Roofline((Piece(0.01, 0.0, 1.0),)), TIERS), [], (0, 0), (0, 0), 9, 9
    )
    assert make_plan(slow, []).at(3).size == 16384  # not even one token takes less than a second


def test_too_many_decodes_get_a_token_each() -> None:
    plan = overloaded_plan((30, 20), 40, 128)
    assert plan.at(0) == plan.at(5)
    assert (plan.at(0).size, plan.at(0).lengths, plan.at(0).prefill) == (178, (1, 1), 128)
    assert overloaded_plan((30, 20), 400, 128).at(0).prefill == 350


def test_a_tail_at_the_pace_of_the_long_run() -> None:
    """As in test_slos_drafts.py: 307 decodes at 49 ms are possible, with one of them at 149 ms they are not."""
    roofline = Roofline((Piece(1e-4, 0.001, 0.025),))
    planner = SdPlanner(roofline, (0.049, 0.099, 0.149), 0.9, 5)
    assert planner.is_steady((308, 0, 0)) and not planner.is_steady((307, 0, 1))
    posed = Problem.of(planner, [], (307, 0, 1), (308, 0, 0), 99, 99)
    assert relaxed(posed) is not None
    [one, *_] = make_plan(posed, []).tail
    assert one.lengths[0] == one.lengths[2] > 1
    assert roofline.seconds(one.size, one.lengths[0]) <= one.seconds + 1e-9
    assert one.size - one.prefill == 308 * one.lengths[0]
