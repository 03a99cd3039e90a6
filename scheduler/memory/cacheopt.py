"""`cacheopt`: CacheOPT's memory (arXiv 2503.13773), under any scheduling policy.

1. Pad (hoeffding.py): the predicted output of a request and a pad, by Hoeffding's inequality, at a confidence that
   falls with the arrival rate.
2. Allocation and embedding (demand.py, lending.py): a newcomer gets blocks for all of that, those of a running host
   that does not need them meanwhile, else free ones less the reserve. A critical one, which must start in the next
   iteration, gets its prompt and B; the reserve is for it, then (rescue.py) unused tails of others, then a victim.
3. Growth (growth.py): whoever is about to use up its allocation gets B more, from what is free, the reserve included;
   what is needed at once comes from the reserve, then from hosts. A guest that outlives its prediction gets blocks of
   its own in this way; if there are none, it is the first to give way.
4. Victims (buckets.py), for every policy that asks for victims only when blocks are short.
5. Swap or recompute (crossover.py): whichever is faster for the length; without measurements, or where the host has no
   room, recompute.

Reconstructed, besides what these files say: where nothing runs, there is neither reserve nor more padding than there
are free blocks, so that the head of the queue can always start; the reserve is an eighth of all blocks at most; a
request whose KV comes back from the host is given the rest of its padded demand when it runs; prompts are assumed to be
processed in chunks of `chunk_size`.

`pad`, `embed`, `growth`, `victims`, `crossover` false, and `reserve` 0, each leave out a part.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.memory.arrival_rate import ArrivalRate, heard
from accelgen.scheduler.memory.books import Books
from accelgen.scheduler.memory.buckets import victim_order
from accelgen.scheduler.memory.crossover import Crossover, Way
from accelgen.scheduler.memory.demand import demands_of
from accelgen.scheduler.memory.embedding import BUFFER, Embedding
from accelgen.scheduler.memory.growth import Growth
from accelgen.scheduler.memory.hoeffding import Pad
from accelgen.scheduler.memory.lending import (
    Stay,
    Stays,
    lend_to_running,
    lend_to_waiting,
    overstayed,
    still_there,
)
from accelgen.scheduler.memory.rescue import AHEAD, Pace, rescue
from accelgen.scheduler.memory.waiting import LongestRun, critical
from accelgen.scheduler.parameters import within
from accelgen.scheduler.policies.shared import promised_blocks
from accelgen.scheduler.policy import Decision, StepStats, View
from accelgen.scheduler.table import MOVING, RUNNING, WAITING, Ints, RequestTable

MOST_SEATS = 2  # waiting requests that are given terms, in multiples of max_num_seqs
RESERVE_SHARE = 8  # the reserve is at most this part of all blocks


class Remembered(Struct, frozen=True):
    """Arrivals per second, the last iteration times, who lives inside whom, and, by request id, how many blocks those
    are to hold whose KV is on its way back."""

    rate: ArrivalRate = ArrivalRate()
    runs: LongestRun = LongestRun()
    guests: dict[int, Stay] = {}
    owed: dict[int, int] = {}


class CacheOptMemory:
    name = "cacheopt"

    def __init__(
        self, pad: bool = True, embed: bool = True, growth: bool = True, reserve: int = 64,
        victims: bool = True, crossover: bool = True, alpha: float = 0.95, beta: float = 0.001,
        buffer: int = BUFFER, quantum: int = 32, ahead: int = 2, chunk_size: int = 512,
    ) -> None:  # fmt: skip
        self.pad = Pad(alpha if pad else 0.0, beta)
        self.rule = Growth(ahead, quantum, reserve)
        self.embedding = Embedding(buffer)
        within("chunk_size", chunk_size, 1, unit="tokens")
        self.chunk_size = chunk_size
        self.embed, self.growth = embed, growth
        self.victims, self.crossover = victims, crossover

    def initial(self) -> Remembered:
        return Remembered()

    def inherited(self, state: Remembered) -> Remembered:
        return structs.replace(state, guests={})

    def before(self, view: View, state: Remembered, start_s: float) -> tuple[View, Remembered]:
        table = view.table
        state = _look(table, state)
        rule = self._rule(view)
        if self.embed:
            lend_to_running(table, state.guests, rule, view.free_blocks)
        kept = rule.reserve_blocks if table.seated else 0
        free = max(view.free_blocks - kept, min(view.free_blocks, promised_blocks(view)))
        if table.waiting:
            most, reserve = view.free_blocks, 0  # nothing is kept back, pins included
            if table.seated:
                most = view.total_blocks - kept
                reserve = view.free_blocks - free + view.pinned_blocks
            self._set_terms(view, state, start_s, most, reserve)
        victims = partial(_victims, state.guests) if self.victims else None
        return replace(view, free_blocks=free, victims=victims), state

    def after(
        self, view: View, decision: Decision, state: Remembered, start_s: float
    ) -> tuple[Decision, Remembered]:
        table, rule = view.table, self._rule(view)
        guests, owed = self._admit(table, decision, state)
        self._choose_ways(view, decision)
        returned = {slot for slot in decision.preempt if int(table.ids[slot]) in state.guests}
        books = Books.of(view, decision, returned)
        if self.growth:
            waited_for = [owed.get(id, 0) for id in books.ids.tolist()] if owed else []
            due = np.array(waited_for or [0] * len(books.ids), dtype=np.int64)
            books.grow(decision, rule, due)
        if table.waiting:
            books.close([table.slot_of[id] for id in guests])  # what they hold is their hosts'
            before = len(decision.preempt)
            pace = self._pace(view, state, start_s)
            rescue(view, decision, books, rule, pace, partial(_lone_victims, state.guests, view))
            if len(decision.preempt) > before:
                self._choose_ways(view, decision)
        owed = {id: blocks for id, blocks in owed.items() if not _runs(table, id)}
        return decision, structs.replace(state, guests=guests, owed=owed)

    def observe(self, step: StepStats, state: Remembered) -> Remembered:
        if not step.ids:  # it only waited for copies
            return state
        return structs.replace(state, runs=state.runs.after(step.run_s))

    # --- terms -------------------------------------------------------------------------------------------------------

    def _set_terms(
        self, view: View, state: Remembered, start_s: float, most: int, reserve: int
    ) -> None:
        """What waiting requests must be given, at most `most` blocks unless they have more tokens; who lends it.
        Critical ones get what is left of the reserve besides, and what others that wait have in the cache: else a
        victim that waits again would be back before them."""
        table = view.table
        head = table.waiting.islice(0, MOST_SEATS * view.limits.max_num_seqs)
        waiting = np.array([slot for _, slot in head], dtype=np.int64)
        pace = self._pace(view, state, start_s)
        confidence = self.pad.confidence(state.rate.per_s(start_s))
        rule = self._rule(view)
        found = demands_of(table, waiting, confidence, rule, pace.chunk, pace.longest_s)
        urgent = critical(found.latest_s, start_s, pace.longest_s)
        urgent[0] |= found.latest_s[0] - start_s < AHEAD * pace.longest_s  # see rescue.py
        wanted = np.where(urgent, np.minimum(found.least, found.whole), found.whole)
        wanted = np.maximum(np.minimum(wanted, most), found.needed)
        table.pad(waiting, wanted - found.needed)
        for at in np.flatnonzero(urgent).tolist():
            slot = int(waiting[at])
            held = int(table.blocks[slot])  # of the cache, it may be the only one
            lent = max(0, min(reserve - held, int(wanted[at]) - held))
            table.offer(slot, lent)
            reserve -= lent
            if reserve <= 0:
                break
        if self.embed and len(table.running):
            embedding = Embedding(self.embedding.buffer, table.block_size)
            lend_to_waiting(table, found, ~urgent, state.guests, embedding, pace.chunk)

    def _rule(self, view: View) -> Growth:
        """With the block size and the reserve of this replica."""
        size, most = view.table.block_size, view.total_blocks // RESERVE_SHARE
        reserve = min(self.rule.reserve, most * size)
        return Growth(self.rule.ahead, self.rule.quantum, reserve, size)

    def _pace(self, view: View, state: Remembered, start_s: float) -> Pace:
        chunk = min(self.chunk_size, view.limits.max_num_batched_tokens)
        default_s = view.cost.predict(Work(prefill_tokens=chunk))
        return Pace(chunk, state.runs.longest_s(default_s), start_s)

    # --- what becomes of a decision ----------------------------------------------------------------------------------

    def _admit(
        self, table: RequestTable, decision: Decision, state: Remembered
    ) -> tuple[dict[int, Stay], dict[int, int]]:
        """Gives newcomers all that they must be given, and whoever is lent something its host: (guests, owed)."""
        guests, owed, gone = dict(state.guests), dict(state.owed), {*decision.preempt}
        taken, size = dict(zip(decision.slots, decision.counts, strict=True)), table.block_size
        slots = np.array(decision.slots, dtype=np.int64)
        for slot in slots[table.state[slots] == WAITING].tolist():
            total = _granted(table, slot)
            if table.away[slot]:
                owed[int(table.ids[slot])] = total
            elif total > -(-(int(table.computed[slot]) + taken[slot]) // size):
                decision.allocate[slot] = total
        for slot, host in table.lenders.items():
            if slot not in taken or host in gone:
                continue
            decision.embed[slot] = host
            new = table.state[slot] == WAITING
            expected = _granted(table, slot) * size if new else int(table.limit[slot])
            stay = Stay(int(table.ids[host]), expected)
            guests.setdefault(int(table.ids[slot]), stay)
        return guests, owed

    def _choose_ways(self, view: View, decision: Decision) -> None:
        """Swap or drop, for each victim, whichever is faster; as long as the host has room."""
        if not (self.crossover and decision.preempt):
            return
        copies, table = view.copies, view.table
        decision.swap = []
        if copies is None:
            return
        chunk = min(self.chunk_size, view.limits.max_num_batched_tokens)
        prices = Crossover(copies.out, copies.back, copies.block_bytes, table.block_size, chunk)
        room = view.host_free
        for slot in decision.preempt:
            tokens = int(table.computed[slot])
            blocks = -(-tokens // table.block_size)
            if blocks <= room and prices.way(tokens, view.cost) is Way.SWAP:
                decision.swap.append(slot)
                room -= blocks


def _look(table: RequestTable, state: Remembered) -> Remembered:
    """What has changed since the last plan: who has arrived, who is gone."""
    owed = {id: blocks for id, blocks in state.owed.items() if _moves_or_runs(table, id)}
    guests = still_there(table, state.guests)
    return Remembered(heard(state.rate, table), state.runs, guests, owed)


def _victims(stays: Stays, view: View) -> Ints:
    """Running slots, the first victim in front: guests that have outlived their prediction, then by buckets."""
    table = view.table
    running = table.running
    generated = table.length[running] - table.prompt_len[running]
    order = victim_order(
        table.ids[running],
        table.arrival_s[running],
        table.tpot_s[running],
        np.maximum(table.predicted_output[running] - generated, 1),
        table.blocks[running],
    )
    slots: Ints = running[order]
    if stays:
        slots = slots[np.argsort(~overstayed(table, slots, stays), kind="stable")]
    return slots


def _lone_victims(stays: Stays, view: View) -> Ints:
    """Of these, those whose blocks come free when they give way."""
    slots = _victims(stays, view)
    kept = [at for at, id in enumerate(view.table.ids[slots].tolist()) if id not in stays]
    found: Ints = slots[kept]
    return found


def _granted(table: RequestTable, slot: int) -> int:
    """Blocks that a request holds when it has been given what the terms say."""
    return -(-int(table.length[slot]) // table.block_size) + int(table.padding[slot])


def _runs(table: RequestTable, id: int) -> bool:
    slot = table.slot_of.get(id)
    return slot is not None and bool(table.state[slot] == RUNNING)


def _moves_or_runs(table: RequestTable, id: int) -> bool:
    slot = table.slot_of.get(id)
    return slot is not None and int(table.state[slot]) in (RUNNING, MOVING)
