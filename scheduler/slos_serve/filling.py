"""A slice of the plan becomes an iteration: decodes that are due, then prompts in the order of their deadlines."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from accelgen.scheduler.policies.prompts import NOBODY, Place
from accelgen.scheduler.policies.shared import Batch
from accelgen.scheduler.slos_serve.best_effort import Evictions
from accelgen.scheduler.table import Ints


def take_prompts(
    batch: Batch, begun: list[Place], waiting: Iterator[Place], evictions: Evictions, starts: bool
) -> None:
    """As much of each admitted prompt as fits, by place; those that wait only if new ones may start. Best-effort
    requests give way to them. Once one cannot start, none behind it does."""
    begun = sorted(begun, reverse=True)
    head = next(waiting, NOBODY) if starts else NOBODY
    while batch.tokens > 0 and (begun or head is not NOBODY):
        if begun and begun[-1] <= head:
            _take_begun(batch, begun.pop()[1], evictions)
        elif _start(batch, head[1], evictions):
            head = next(waiting, NOBODY)
        else:
            head = NOBODY


def take_extra(batch: Batch, decodes: Ints) -> None:
    """Decodes that are not due, a token each while there is room, the longest without one first."""
    table = batch.view.table
    order = decodes[np.argsort(table.last_s[decodes], kind="stable")][: max(0, batch.tokens)]
    ones = np.ones(len(order), dtype=np.int64)
    demands = table.block_demand(order, ones)
    fits = (np.cumsum(demands) <= batch.blocks) | (demands == 0)
    batch.take_all(order[fits], ones[fits], demands[fits])


def _take_begun(batch: Batch, slot: int, evictions: Evictions) -> None:
    wanted = min(batch.pending(slot), batch.tokens)
    demand = batch.block_demand(slot, wanted)
    evictions.make_room(demand - batch.blocks, lambda: demand <= batch.blocks)
    chunk = batch.largest_chunk(slot, wanted)
    if chunk:
        batch.take(slot, chunk)


def _start(batch: Batch, slot: int, evictions: Evictions) -> bool:
    """Takes a prompt that waits, if there is a seat, and blocks for all its tokens."""
    demand = batch.block_demand(slot, batch.pending(slot))
    if not evictions.make_room(demand - batch.room, lambda: batch.admits(slot)):
        return False
    batch.take(slot, min(batch.pending(slot), batch.tokens))
    return True
