"""FastServe's multi-level feedback queue as a value (arXiv 2305.05920): who stands where, and how that changes."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.table import WAITING, Bools, Ints, RequestTable

LOWEST = 40  # level; its quantum is centuries
SPAN = 1e12  # between the keys of two levels; within one, those that ran have ranks below 0, the others their arrival

Place = tuple[float, float, int]  # key, order among promoted ones, slot


class Job(Struct, frozen=True):
    """A request that has run: its level, the processing time it had there in seconds, its place in the level."""

    level: int
    used_s: float
    rank: int

    @property
    def key(self) -> float:
        return self.level * SPAN + self.rank


class Queues(Struct, frozen=True):
    """What the rule remembers: jobs by request id, the foremost rank, how many iterations have run, the one in flight
    included, and the last promotion: waiting requests whose newest token (or arrival) is from `starved_s` or before,
    and that have not run since, stand in the highest level at rank `promoted`."""

    jobs: dict[int, Job] = {}
    front: int = 0
    iterations: int = 0
    starved_s: float = -1.0
    promoted: int = 0


def charge(state: Queues, ids: Sequence[int], run_s: float, quantum_s: float) -> Queues:
    """An iteration has ended: its requests go to the front of their level, in this order; whoever has used up the
    quantum of its level, `quantum_s` * 2**level, goes to the one below."""
    jobs, front = dict(state.jobs), state.front
    for id in ids:
        job = jobs.get(id)
        if job is not None:
            front -= 1
            level, used_s = job.level, job.used_s + run_s
            if used_s > quantum_s * 2.0**level:
                level, used_s = min(level + 1, LOWEST), 0.0
            jobs[id] = Job(level, used_s, front)
    return structs.replace(state, jobs=jobs, front=front)


def promote(table: RequestTable, state: Queues, starved_s: float, batch: list[int]) -> Queues:
    """Who is not in the batch and has had no token since `starved_s` goes to the front of the highest level."""
    jobs, front = dict(state.jobs), state.front
    running = table.running[table.last_s[table.running] <= starved_s]
    for slot in running[~np.isin(running, batch)].tolist():
        front -= 1
        id = int(table.ids[slot])
        jobs[id] = structs.replace(jobs[id], level=0, rank=front)
    return Queues(jobs, front - 1, state.iterations, starved_s, front - 1)


def begun(table: RequestTable, state: Queues, waiting: list[int]) -> dict[int, Job]:
    """The jobs, by id, of waiting requests that now run: at the front of the level where each stood."""
    slots = np.array(waiting, dtype=np.int64)
    first_levels = (table.key[slots] // SPAN).astype(np.int64)
    columns = (table.ids[slots], first_levels, _starved(table, state, slots))
    found = {}
    for id, first_level, starved in zip(*(column.tolist() for column in columns), strict=True):
        old = state.jobs.get(id) or Job(first_level, 0.0, 0)
        found[id] = Job(0 if starved else old.level, old.used_s, state.front)
    return found


def _starved(table: RequestTable, state: Queues, slots: Ints) -> Bools:
    """Which waiting requests stand in the highest level since the last promotion, [n]."""
    keys = table.key[slots]
    ranks = keys - SPAN * np.round(keys / SPAN)
    starved: Bools = (table.last_s[slots] <= state.starved_s) & (ranks > state.promoted)
    return starved


def in_order(table: RequestTable, state: Queues, most: int) -> list[Place]:
    """Running requests with work, and the first `most` of those that wait, from the front of the queues."""
    ready = table.running[table.remaining(table.running) > 0]
    ids = table.ids[ready].tolist()
    places = [(state.jobs[id].key, 0.0, slot) for id, slot in zip(ids, ready.tolist(), strict=True)]
    starved = np.zeros(0, dtype=np.int64)
    if state.starved_s >= 0:
        starved = np.flatnonzero(table.state == WAITING)
        starved = starved[_starved(table, state, starved)]
        if len(starved) > most:  # the code pushes one after the other to the front: the last first
            starved = starved[np.argpartition(-table.key[starved], most)[:most]]
    places += [(float(state.promoted), -float(table.key[slot]), slot) for slot in starved.tolist()]
    promoted = set(starved.tolist())
    waiting = islice(table.waiting, most)
    places += [(key, 0.0, slot) for key, slot in waiting if slot not in promoted]
    return sorted(places)
