"""Prompts that have begun and prompts that wait, in one order: the prefill queue of QoServe's code.

A prompt that has begun can be overtaken by a new one at the end of any chunk; it keeps its KV meanwhile."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np

from accelgen.scheduler.policies.shared import (
    Batch,
    Memoryless,
    latest_first,
    make_room,
    take_decodes,
)
from accelgen.scheduler.policy import Decision, View, is_decode
from accelgen.scheduler.table import Floats, Ints, RequestTable

Place = tuple[float, int]  # key and slot
NOBODY: Place = (float("inf"), -1)


def take_prompts(batch: Batch, begun: Ints, keys: Floats, waiting: Iterator[Place]) -> None:
    """Takes as much of each prompt as fits, in ascending order of their keys, until the tokens are used up.

    `keys` are those of the `begun` prompts, `waiting` yields the others in order. A new prompt needs blocks for all of
    it; once one cannot start, none behind it does. After a preemption memory is short, and none starts at all."""
    places = sorted(zip(keys.tolist(), begun.tolist(), strict=True), reverse=True)
    head = NOBODY if batch.preempted else next(waiting, NOBODY)
    gone = set(batch.preempted)
    while batch.tokens > 0 and (places or head is not NOBODY):
        if places and places[-1] <= head:
            slot = places.pop()[1]
            chunk = batch.largest_chunk(slot, batch.pending(slot))
            if chunk and slot not in gone:
                batch.take(slot, chunk)
        elif batch.admits(head[1]):
            batch.take(head[1], min(batch.pending(head[1]), batch.tokens))
            head = next(waiting, NOBODY)
        else:
            head = NOBODY


def keep_known(ids: frozenset[int], more: list[int], table: RequestTable) -> frozenset[int]:
    """`ids` and `more`, without most of those that have ended."""
    ids = ids | set(more) if more else ids
    if len(ids) > 2 * len(table) + 64:
        ids = frozenset(id for id in ids if id in table.slot_of)
    return ids


class FixedChunk(Memoryless, ABC):
    """Sarathi-Serve's batches (OSDI'24) with the prompts in an order of their own."""

    name: str
    chunk_size: int

    @abstractmethod
    def keys(self, table: RequestTable, slots: Ints) -> Floats:
        """Places of prompts, ascending, [n]: asked on arrival for those that wait, at every plan for those begun."""

    def order_key(self, view: View, slot: int, state: None) -> float:
        return float(self.keys(view.table, np.array([slot]))[0])

    def plan(self, view: View, state: None, start_s: float) -> tuple[Decision, None]:
        table = view.table
        ready = table.running[table.remaining(table.running) > 0]
        decode = is_decode(table, ready)
        budget = min(self.chunk_size, view.limits.max_num_batched_tokens)
        batch = Batch(view, max(budget, int(decode.sum())))  # decodes never wait
        take_decodes(batch, ready[decode], latest_first)
        begun = ready[~decode]
        take_prompts(batch, begun, self.keys(table, begun), iter(table.waiting))
        make_room(batch, ready, latest_first)
        return batch.decision(), None
