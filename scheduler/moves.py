"""KV on its way to the host's memory and back: what of a decision can be done at once, and what waits for a copy.

A policy decides as if blocks of victims came back at once, and as if a request whose KV is on the host could run like
any other. So it need not know of copies: what starts an away request becomes a swap-in (it runs when its KV is there),
and entries that need blocks which are still leaving are held back, until the worker has said that they are free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from accelgen.proto.messages import KvReport
from accelgen.scheduler.decision import Entries
from accelgen.scheduler.policy import Decision, Limits
from accelgen.scheduler.table import MOVING, WAITING, RequestTable

Key = Callable[[int], float]
"""The place in the queue of the request in a slot."""


@dataclass(slots=True)
class Reach:
    """What is done now. By slot: `entries` run, the KV of `drop` is given up, that of `out` goes to the host, that of
    `back` comes back."""

    entries: Entries
    drop: list[int]
    out: list[int]
    back: list[int]


class Moves:
    """Copies under way on one replica. `swaps`: what becomes of victims where the decision does not say."""

    def __init__(self, swaps: bool) -> None:
        self.swaps = swaps
        self.out: dict[int, int] = {}  # request id -> blocks that its copy to the host will free
        self.back: set[int] = set()  # request ids
        self.done: list[int] = []  # request ids, to be told to the KV manager
        self.freed = 0  # blocks that the next plan frees by telling it
        self.swapped_out = self.swapped_in = self.unswapped = 0  # requests, ever

    @property
    def pending(self) -> bool:
        """Whether a plan has to go round for copies, even if it processes nothing."""
        return bool(self.out or self.back or self.done)

    def reach(
        self, decision: Decision, entries: Entries, table: RequestTable, free: int, limits: Limits
    ) -> Reach:
        """What of a decision is within reach. `free`: blocks that can be had at once, victims' not counted."""
        swap = decision.preempt if self.swaps else []
        chosen = {*(swap if decision.swap is None else decision.swap)}
        out = [slot for slot in decision.preempt if slot in chosen and table.computed[slot]]
        gone = {*out}
        drop = [slot for slot in decision.preempt if slot not in gone]
        if not (out or self.pending or table.num_away):
            return Reach(entries, drop, out, [])
        free += self.freed + int(table.blocks[drop].sum())
        seats = limits.max_num_seqs - table.seated + len(decision.preempt)
        kept, back = _hold_back(decision, entries, table, free, seats)
        return Reach(entries.part(kept), drop, out, back)

    def send_out(self, slot: int, table: RequestTable) -> None:
        """A victim's KV goes to the host."""
        frees = min(int(table.blocks[slot]), table.used_blocks(slot))  # the rest comes at once
        self.out[int(table.ids[slot])] = frees
        table.go_out(slot)
        table.request(slot).preemptions += 1

    def bring_back(self, slot: int, table: RequestTable, now_s: float) -> None:
        """KV comes back from the host; its request runs when it is there."""
        self.back.add(int(table.ids[slot]))
        table.come_back(slot)
        table.request(slot).start(now_s)

    def take_in(self, report: KvReport, table: RequestTable, key: Key) -> None:
        """What the copies that the KV manager has begun will free, and those that it could not begin."""
        for id, blocks in zip(report.swapped_out, report.freeing, strict=False):
            if id in self.out:
                self.out[id] = blocks
        for id in report.unswapped:
            self.unswapped += self.out.pop(id, None) is not None
            if (slot := _moving(id, table)) is not None:
                table.went_out(slot, key(slot), kept=False)
        for id in report.stayed:
            self.back.discard(id)
            if (slot := _moving(id, table)) is not None:
                table.stayed(slot, key(slot))

    def finish(self, id: int, table: RequestTable, key: Key) -> None:
        """The worker has copied the KV of a request, which may have ended meanwhile."""
        self.done.append(id)
        slot = _moving(id, table)
        if id in self.out:
            self.freed += self.out.pop(id)
            self.swapped_out += 1
            if slot is not None:
                table.went_out(slot, key(slot))
        elif id in self.back:
            self.back.remove(id)
            self.swapped_in += 1
            if slot is not None:
                table.came_back(slot)

    def take_done(self) -> list[int]:
        """What the next plan tells."""
        done, self.done, self.freed = self.done, [], 0
        return done


def _moving(id: int, table: RequestTable) -> int | None:
    slot = table.slot_of.get(id)
    return slot if slot is not None and table.state[slot] == MOVING else None


def _hold_back(
    decision: Decision, entries: Entries, table: RequestTable, free: int, seats: int
) -> tuple[list[int], list[int]]:
    """Which entries (by position) run, and the slots of those whose KV comes back."""
    slots = entries.slots.tolist()
    returns = table.away[entries.slots] > 0
    counts = np.where(returns, 0, entries.counts)
    demands = table.block_demand(entries.slots, counts).tolist()
    starts = (table.state[entries.slots] == WAITING).tolist()
    spare: dict[int, int] = {}  # blocks that hosts of others do not use
    kept: list[int] = []
    back: list[int] = []
    for at, slot in enumerate(slots):
        demand, host = demands[at], decision.embed.get(slot)
        lent = 0
        if host is not None and demand:
            used = -(-int(table.computed[host]) // table.block_size)
            unused = spare.setdefault(host, max(0, int(table.blocks[host]) - used))
            lent = min(demand, unused)
        if demand - lent > free or (starts[at] and seats < 1):
            continue
        free -= demand - lent
        seats -= starts[at]
        if host is not None and lent:
            spare[host] -= lent
        if returns[at]:
            back.append(slot)
        else:
            kept.append(at)
    return kept, back
