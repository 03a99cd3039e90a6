"""What `slos-serve` remembers from one iteration to the next."""

from __future__ import annotations

from msgspec import Struct

from accelgen.scheduler.memory.arrival_rate import ArrivalRate
from accelgen.scheduler.slos_serve.plan import Plan

RATE_S = 10.0  # over which arrivals are counted


class Memory(Struct, frozen=True):
    """Who was admitted and who was not, by id; the plan, made at `made_s` (-1: none), and where in it the next batch
    stands; tiers of decodes by id; the most tokens of a batch with best-effort requests in it; how many requests have
    finished since; and whether there were more new ones than a round judges. `missed`: whom of those judged the table
    does not have, and since when. `rate`: of arrivals, where there is a drafter."""

    admitted: frozenset[int] = frozenset()
    best_effort: frozenset[int] = frozenset()
    plan: Plan = Plan()
    position: int = 0
    tiers: dict[int, int] = {}
    calm: int = 0
    made_s: float = -1.0
    finished: int = 0
    has_more: bool = False
    missed: dict[int, float] = {}
    rate: ArrivalRate = ArrivalRate(RATE_S)
