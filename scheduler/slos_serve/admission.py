"""Which new requests to admit so that every admitted one keeps its objective: the problem, the walk along its
deadlines, and the greedy answer (arXiv 2504.08784, admission and planning).

Prompts are done in the order of their deadlines. From one deadline to the next the planner says how many prompt tokens
fit beside the decodes that have been promised until then; what is left over is spare for the next prompt. From its
deadline on, a request is one decode more.

Requests that were admitted before are never given up. Reconstructed: in the authors' code one of them that is late
makes the whole plan infeasible. Here its deadline becomes the earliest that can be kept (`relaxed`).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from accelgen.scheduler.slos_serve.slices import Planner
from accelgen.scheduler.slos_serve.tiers import Counts, joined


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request whose prompt is to be processed. `due_s` from now, `tokens` left of its prompt, `tier` of its decode,
    `blocks` that it needs to its end, `profit` of keeping its objective, `decodes`: how many it will be (choices)."""

    key: int
    is_new: bool
    due_s: float
    tokens: int
    tier: int
    blocks: int = 0
    profit: float = 1.0
    decodes: int = 1


class Place(NamedTuple):
    """Where a walk has arrived: prompt tokens to spare, the end of the batches planned so far, the decodes promised,
    and the same at the pace that they will need in the long run."""

    spare: int
    finish_s: float
    counts: Counts
    steady: Counts


@dataclass(frozen=True, slots=True)
class Problem:
    """`candidates` in the order of their deadlines, old ones first where these are equal. `counts` decodes run already,
    at their present pace; in the long run they are `steady`. New requests may have `blocks` and `seats` together."""

    planner: Planner
    candidates: tuple[Candidate, ...]
    counts: Counts
    steady: Counts
    blocks: int
    seats: int

    @classmethod
    def of(
        cls, planner: Planner, candidates: Iterable[Candidate], counts: Counts, steady: Counts,
        blocks: int, seats: int,
    ) -> Problem:  # fmt: skip
        """With the candidates put in order."""
        return cls(planner, in_order(candidates), counts, steady, blocks, seats)

    @property
    def start(self) -> Place:
        return Place(0, 0.0, self.counts, self.steady)

    def step(self, place: Place, candidate: Candidate, due_s: float | None = None) -> Place | None:
        """The walk goes on to the deadline of a further candidate (or, of this one, `due_s`); None if it cannot be
        kept, or if all these decodes together cannot go on."""
        due_s = candidate.due_s if due_s is None else due_s
        found = self.planner.plan(due_s - place.finish_s, place.counts)
        if found is None:
            return None
        gain, elapsed_s = found
        spare = place.spare + gain - candidate.tokens
        if spare < 0:
            return None
        steady = joined(place.steady, candidate.tier, candidate.decodes)
        if not self.planner.is_steady(steady):
            return None
        counts = joined(place.counts, candidate.tier, candidate.decodes)
        return Place(spare, place.finish_s + elapsed_s, counts, steady)

    def promising(self, keys: Set[int]) -> Problem:
        """The problem without a choice: these new requests are old ones, the other new ones are gone."""
        kept = [one for one in self.candidates if not one.is_new or one.key in keys]
        return replace(self, candidates=tuple(replace(one, is_new=False) for one in kept))

    def walk(self, candidates: Iterable[Candidate], place: Place | None = None) -> Place | None:
        """Along all of these; None if that cannot be done."""
        at = place or self.start
        for candidate in candidates:
            after = self.step(at, candidate)
            if after is None:
                return None
            at = after
        return at


def in_order(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """By deadline, old ones first where these are equal, and otherwise as they come."""
    return tuple(sorted(candidates, key=lambda one: (one.due_s, one.is_new)))


def relaxed(problem: Problem) -> Problem | None:
    """With deadlines of old requests that can all be kept, each as early as possible where the stated one cannot; None
    if the decodes alone are too many to go on."""
    place, last_s, later = problem.start, 0.0, []
    steady = problem.steady
    for candidate in problem.candidates:
        if not candidate.is_new:
            steady = joined(steady, candidate.tier, candidate.decodes)
    if not problem.planner.is_steady(steady):
        return None
    for candidate in problem.candidates:
        if candidate.is_new:
            later.append(candidate)
            continue
        due_s = max(candidate.due_s, last_s)
        after = problem.step(place, candidate, due_s)
        if after is None:
            needed = candidate.tokens - place.spare
            due_s = max(due_s, place.finish_s + problem.planner.reach(needed, place.counts))
            after = problem.step(place, candidate, due_s) if due_s < inf else None
        if after is None:
            return None
        place, last_s = after, due_s
        later.append(candidate if due_s == candidate.due_s else replace(candidate, due_s=due_s))
    return replace(problem, candidates=in_order(later))


def greedy(problem: Problem) -> list[Candidate]:
    """Old requests, and each new one in the order of deadlines that can be added to those taken before it. The old ones
    alone must be feasible."""
    taken: list[Candidate] = []
    place, blocks, seats = problem.start, problem.blocks, problem.seats
    for i, candidate in enumerate(problem.candidates):
        after = problem.step(place, candidate)
        if candidate.is_new:
            if after is None or candidate.blocks > blocks or candidate.decodes > seats:
                continue
            rest = [one for one in problem.candidates[i + 1 :] if not one.is_new]
            if problem.walk(rest, after) is None:
                continue
            blocks, seats = blocks - candidate.blocks, seats - candidate.decodes
        assert after is not None, "old requests are feasible"
        place = after
        taken.append(candidate)
    return taken
