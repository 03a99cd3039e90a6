"""Which cases are run in which order on which servers: drawn from a seed, the same for the same seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random

from accelgen.faults.cases import Case, Moment
from accelgen.faults.run import POLICIES
from accelgen.faults.server import Shape

PER_SERVER = 12  # cases before another server takes over


@dataclass(frozen=True)
class Step:
    """One case. `fresh`: on a server started for it, of this shape; otherwise on the one that is there."""

    number: int
    case: Case
    seed: int
    shape: Shape
    fresh: bool


def draw(seed: int, cases: Sequence[Case]) -> Iterator[Step]:
    """Without end: all cases in random order, then all of them again in another."""
    assert cases
    chance, number, left = Random(seed), 0, 0
    shape = Shape()
    while True:
        for case in chance.sample(list(cases), len(cases)):
            number += 1
            fresh = left == 0 or case.moment is Moment.START
            if fresh:
                shape, left = draw_shape(chance), PER_SERVER
            yield Step(number, case, chance.randrange(2**31), shape, fresh)
            left = 0 if case.ends_server or case.moment is Moment.START else left - 1


def draw_shape(chance: Random) -> Shape:
    """Two frontends more often than one; two replicas now and then."""
    return Shape(
        frontends=chance.choice((1, 2, 2)),
        replicas=chance.choice((1, 1, 1, 2)),
        policy=chance.choice(POLICIES),
    )
