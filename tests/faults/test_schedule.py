"""The same seed draws the same cases; every case is drawn; names can be chosen by."""

from __future__ import annotations

from itertools import islice

import pytest

from accelgen.faults.cases import FAULTS, MATRIX, Moment, chosen
from accelgen.faults.schedule import PER_SERVER, draw


def test_the_matrix_is_complete_and_unambiguous() -> None:
    names = [case.name for case in MATRIX]
    assert len(set(names)) == len(names)
    assert {case.fault for case in MATRIX} == set(FAULTS)  # no fault without a case
    assert {case.moment for case in MATRIX} == set(Moment)


def test_the_same_seed_repeats_a_schedule() -> None:
    assert list(islice(draw(5, MATRIX), 400)) == list(islice(draw(5, MATRIX), 400))
    assert list(islice(draw(5, MATRIX), 20)) != list(islice(draw(6, MATRIX), 20))


def test_all_cases_come_before_one_comes_again() -> None:
    steps = list(islice(draw(5, MATRIX), 2 * len(MATRIX)))
    first, second = steps[: len(MATRIX)], steps[len(MATRIX) :]
    assert {step.case for step in first} == {step.case for step in second} == set(MATRIX)
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))


def test_a_server_serves_some_cases_and_none_after_its_end() -> None:
    served = 0
    ended = True
    for step in islice(draw(9, MATRIX), 500):
        assert step.fresh or not ended
        assert step.fresh or step.case.moment is not Moment.START
        served = 1 if step.fresh else served + 1
        assert served <= PER_SERVER
        ended = step.case.ends_server or step.case.moment is Moment.START


@pytest.mark.parametrize(
    ("pattern", "some"),
    [
        ("sigkill/*", "sigkill/worker-0"),
        ("*@swap", "link-drop/scheduler-worker-0@swap"),
        ("link-*/scheduler-*", "link-cut/scheduler-frontend-0"),
        ("*+*", "sigkill/worker-0+sigkill/scheduler"),
    ],
)
def test_cases_are_chosen_by_name(pattern: str, some: str) -> None:
    names = [case.name for case in chosen(pattern)]
    assert some in names and len(names) < len(MATRIX)
