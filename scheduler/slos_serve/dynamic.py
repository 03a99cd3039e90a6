"""The dynamic program that chooses what to admit (arXiv 2504.08784; the authors' `PromaxSpecSchedulerDP`).

Cell (n, v) has the walks whose last admitted request is n, after which v decodes of each tier have been promised. Of
these only the Pareto-optimal ones are kept: more profit, fewer blocks, more spare prompt tokens, an earlier end. A walk
goes on to any later request as long as it passes over no old one. (The shipped code prefers fewer spare tokens, ignores
the end, and hands back the last state of a list instead of the best one; this is the rule that it must have meant.)

Bounds: at most `MOST_NEW` new requests are considered at once, a cell has at most `MOST_STATES` states, and the whole
round may cost at most so many units of work: transitions, questions to the planner and simulated batches, which are
counted, not timed, so that the same situation always has the same answer. Beyond that the greedy answer stands.

It is the optimum where a longer window never has room for less: so it is with one tier, or where deadlines and paces
have a common measure. Otherwise a batch that ends just after a loose token was due before must carry that token, too,
and may leave less than one that ends earlier: then somebody may be declined who could have been kept. Whoever is
admitted is kept in any case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from accelgen.scheduler.slos_serve.admission import Candidate, Place, Problem, greedy
from accelgen.scheduler.slos_serve.tiers import Counts

MOST_NEW, MOST_STATES = 10, 32
MOST_WORK = 400  # units of about 15 microseconds


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A walk: where it is, what it has gained and used up, and the state that it came from by admitting `candidate`."""

    profit: float
    blocks: int
    seats: int
    place: Place
    candidate: Candidate | None = None
    before: State | None = None

    def dominates(self, other: State) -> bool:
        """Whether nothing speaks for `other`; both are of one cell."""
        mine, its = self.place, other.place
        return (
            self.profit >= other.profit
            and self.blocks <= other.blocks
            and mine.spare >= its.spare
            and mine.finish_s <= its.finish_s
        )

    @property
    def rank(self) -> tuple[float, int, int, float]:
        """Larger is better, where one has to be chosen."""
        return self.profit, -self.blocks, self.place.spare, -self.place.finish_s

    def admitted(self) -> list[Candidate]:
        """All candidates of the walk, in order."""
        found: list[Candidate] = []
        at: State | None = self
        while at is not None and at.candidate is not None:
            found.append(at.candidate)
            at = at.before
        return found[::-1]


class Front:
    """Pareto-optimal states of a cell, at most `width` of them."""

    def __init__(self, width: int = MOST_STATES) -> None:
        self.states: list[State] = []
        self._width = width

    def add(self, state: State) -> bool:
        """False if a state that is there is as good in every respect; of too many the worst by rank goes."""
        if any(one.dominates(state) for one in self.states):
            return False
        self.states = [one for one in self.states if not state.dominates(one)]
        self.states.append(state)
        if len(self.states) > self._width:
            self.states.remove(min(self.states, key=lambda one: one.rank))
        return True


Cell = dict[Counts, Front]


def choose(problem: Problem, most_work: int = MOST_WORK) -> list[Candidate]:
    """Who is admitted, in the order of deadlines: all old requests, which must be feasible, and those new ones that
    together have the most profit; or those that the greedy rule takes, if they have as much, or if finding out would be
    too much work."""
    taken = greedy(problem)
    if len(taken) == len(problem.candidates):
        return taken
    solved = _solve(problem, most_work)
    return solved if solved is not None and _profit(solved) > _profit(taken) else taken


def _solve(problem: Problem, most_work: int) -> list[Candidate] | None:
    """The optimum, or None beyond that much work."""
    candidates, spent = problem.candidates, 0
    nobody = Front()
    nobody.add(State(0.0, 0, 0, problem.start))
    cells: list[Cell] = [{(): nobody}]  # cell i: candidate i - 1 is the last one
    first = 0  # of the cells that may be left: those since the last old request
    for n, candidate in enumerate(candidates):
        cell: Cell = {}
        for state in _states(cells[first:]):
            spent += 1
            if spent + problem.planner.work > most_work:
                return None
            after = _admit(problem, state, candidate)
            if after is not None:
                cell.setdefault(after.place.counts, Front()).add(after)
        cells.append(cell)
        if not candidate.is_new:
            first = n + 1
    best = max(_states(cells[first:]), key=lambda state: state.rank, default=None)
    return None if best is None else best.admitted()


def _profit(taken: list[Candidate]) -> float:
    return sum(one.profit for one in taken)


def _states(cells: list[Cell]) -> Iterator[State]:
    return (state for cell in cells for front in cell.values() for state in front.states)


def _admit(problem: Problem, state: State, candidate: Candidate) -> State | None:
    blocks, seats = state.blocks, state.seats
    if candidate.is_new:
        blocks, seats = blocks + candidate.blocks, seats + candidate.decodes
        if blocks > problem.blocks or seats > problem.seats:
            return None
    place = problem.step(state.place, candidate)
    if place is None:
        return None
    return State(state.profit + candidate.profit, blocks, seats, place, candidate, state)
