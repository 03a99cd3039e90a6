"""The batches of those who have been admitted, as a value that can be stored and followed (arXiv 2504.08784).

From deadline to deadline the planner's batches, until there is room for all prompts; then batches of decodes only,
which repeat. Prompts fill the batches in the order of their deadlines, at the time of the batch: who has had more, or
less, than was planned needs no correction.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from msgspec import Struct, structs

from accelgen.scheduler.slos_serve.admission import Candidate, Place, Problem
from accelgen.scheduler.slos_serve.slices import Planner, Slice
from accelgen.scheduler.slos_serve.tiers import Counts

MOST_SLICES, MOST_TAIL = 256, 64
IDLE_S = 3600.0  # a batch that nobody waits for may take


class Plan(Struct, frozen=True):
    """`slices`, then `tail` again and again. A prompt is in the plan as a decode from slice `joins[key]` on: until then
    what it generates is ahead of its demand."""

    slices: tuple[Slice, ...] = ()
    tail: tuple[Slice, ...] = ()
    joins: dict[int, int] = {}  # msgspec copies it

    def at(self, position: int) -> Slice:
        """The slice at a position from 0 on. There is a tail."""
        if position < len(self.slices):
            return self.slices[position]
        return self.tail[(position - len(self.slices)) % len(self.tail)]


def make_plan(problem: Problem, admitted: Iterable[Candidate]) -> Plan:
    """Of candidates of a feasible walk, in order."""
    admitted = list(admitted)
    planner, place = problem.planner, problem.start
    left = sum(one.tokens for one in admitted)
    slices: list[Slice] = []
    joins: dict[int, int] = {}
    for candidate in admitted:
        for one in planner.slices(candidate.due_s - place.finish_s, place.counts):
            if left <= 0 or len(slices) == MOST_SLICES:
                break
            slices.append(one)
            left -= one.prefill
        joins[candidate.key] = len(slices)
        after = problem.step(place, candidate)
        assert after is not None, "the walk is feasible"
        place = after
    return Plan(tuple(slices), _tail(planner, place), joins)


def _tail(planner: Planner, place: Place) -> tuple[Slice, ...]:
    """Batches of the decodes at `place` that can repeat, at least one. Without decodes they are as large as may be.

    With drafts a looser pace of some can be impossible where the tighter one that they have in the long run is not:
    floor(acc(s)) is 1 for the short drafts that it asks for. Then all keep that."""
    found = _repeating(planner, place.counts)
    if found:
        return found
    return tuple(_for_all(one, place) for one in _repeating(planner, place.steady))


def _repeating(planner: Planner, counts: Counts) -> tuple[Slice, ...]:
    found = tuple(islice(planner.lasting(counts), MOST_TAIL))
    return found or tuple(islice(planner.slices(IDLE_S, counts), 1))


def _for_all(one: Slice, place: Place) -> Slice:
    """A batch for `place.steady`, with the tokens of the next tighter tier for each that nobody is in there."""
    lengths, tighter = [], 0
    for length, count in zip(one.lengths, place.steady, strict=True):
        tighter = length if count else tighter
        lengths.append(tighter)
    return structs.replace(one, lengths=tuple(lengths))


def overloaded_plan(counts: Counts, size: int, least: int) -> Plan:
    """More decodes than can keep their pace: each batch has a token of all of them, and `size` tokens in all, or so
    many more that at least `least` are for prompts."""
    decodes = sum(counts)
    prefill = max(size - decodes, least)
    return Plan((), (Slice(decodes + prefill, (1,) * len(counts), prefill, 0.0),))
