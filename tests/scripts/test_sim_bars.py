"""Simulations side by side, without any."""

from __future__ import annotations

from threading import Event

import pytest

from accelgen.scripts.sim_bars import side_by_side
from accelgen.simulator.crew import Crew, CrewDied, CrewError


class Closing(Crew):
    """Says when it is closed."""

    def __init__(self) -> None:
        super().__init__(1)
        self.closed = Event()

    def close(self) -> None:
        self.closed.set()


def test_the_error_that_ended_all_is_the_one_that_is_told() -> None:
    """The first item waits for a seat while the second dies; that it is interrupted then is not the reason."""
    crew = Closing()

    def do(item: int) -> int:
        if item == 1:
            raise CrewDied("the policy raised")
        crew.closed.wait(10)
        raise CrewError("interrupted")

    with pytest.raises(CrewDied, match="the policy raised"):
        side_by_side(crew, do, [0, 1, 2], 3)
    assert crew.closed.is_set()


def test_results_come_in_the_order_of_the_items() -> None:
    assert side_by_side(Closing(), lambda item: 2 * item, [3, 1, 2], 2) == [6, 2, 4]
