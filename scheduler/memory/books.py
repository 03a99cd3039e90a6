"""The books of one plan: who will hold how much of what when it has been carried out, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.memory.growth import Growth, cuts, serve
from accelgen.scheduler.policy import Decision, View
from accelgen.scheduler.table import WAITING, Bools, Floats, Ints, RequestTable


@dataclass(slots=True)
class Books:
    """Requests that run and stay, [n] each: blocks `held`, tokens `computed` after the plan, all tokens so far, whether
    they may give or take (not if they live inside another one by this plan, or lend). `left` blocks are free."""

    slots: Ints
    ids: Ints
    held: Ints
    computed: Ints
    tokens: Ints
    most: Ints
    open: Bools
    left: int

    @classmethod
    def of(cls, view: View, decision: Decision, returned: set[int]) -> Books:
        """After `decision`; blocks of victims come back at once, except of those `returned` to somebody else or copied
        to the host. The terms of the plan must still hold."""
        table = view.table
        slots = np.array(decision.slots, dtype=np.int64)
        counts = np.array(decision.counts, dtype=np.int64)
        spent = _spent(table, slots, counts)
        kept = returned | {*(decision.swap or ())}
        freed = sum(int(table.blocks[slot]) for slot in decision.preempt if slot not in kept)
        planned = np.zeros(len(table.requests), dtype=np.int64)
        planned[slots] = counts
        stays = np.ones(len(table.requests), dtype=bool)
        stays[decision.preempt] = False
        tied = [*decision.embed, *decision.embed.values()]
        is_open = np.ones(len(table.requests), dtype=bool)
        is_open[tied] = False
        running = table.running[stays[table.running]]
        computed = table.computed[running] + planned[running]
        held = np.maximum(table.blocks[running], -(-computed // table.block_size))
        left = view.free_blocks - view.pinned_blocks + freed - spent
        return cls(
            running,
            table.ids[running],
            held,
            computed,
            np.maximum(table.length[running], computed),
            table.limit[running] - 1,  # the last token is never in the cache
            is_open[running],
            max(0, left),
        )

    def grow(self, decision: Decision, rule: Growth, owed: Ints) -> None:
        """Gives more to those who ask for it before their allocation is used up: from what is free, the reserve
        included. What is `owed` to them (blocks in all, [n]; 0: nothing) comes from what newcomers may count on."""
        room = self.held * rule.block_size - self.computed
        asks = np.where(self.open, rule.asks(self.held, self.computed, self.most), 0)
        grants = serve(asks, room, self.ids, self.left)
        rest = self.left - int(grants.sum())
        more = np.where(self.open, np.maximum(owed - self.held - grants, 0), 0)
        if more.any():
            grants = grants + serve(more, room, self.ids, rule.spare(rest))
        for at in np.flatnonzero(grants).tolist():
            decision.allocate[int(self.slots[at])] = int(self.held[at] + grants[at])
        self.left -= int(grants.sum())
        self.open &= grants == 0

    def cut(self, decision: Decision, rule: Growth, slack_s: Floats, blocks: int) -> int:
        """Takes unused blocks for a critical request, at most so many, from the largest slack first; how many."""
        unused = np.where(self.open, rule.unused(self.held, self.tokens), 0)
        shares = cuts(unused, slack_s, self.ids, blocks)
        for at in np.flatnonzero(shares).tolist():
            decision.allocate[int(self.slots[at])] = int(self.held[at] - shares[at])
        return int(shares.sum())

    def unused(self, rule: Growth) -> dict[int, int]:
        """How many blocks could be cut, by slot."""
        unused = np.where(self.open, rule.unused(self.held, self.tokens), 0)
        return dict(zip(self.slots.tolist(), unused.tolist(), strict=True))

    def close(self, slots: list[int]) -> None:
        """These neither give nor take any more."""
        self.open &= ~np.isin(self.slots, slots)


def _spent(table: RequestTable, slots: Ints, counts: Ints) -> int:
    """Free blocks that the entries of a plan take: newcomers all at once, from the reserve, too."""
    new = table.state[slots] == WAITING
    pending = table.length[slots] - table.computed[slots]
    spent = int(table.block_demand(slots, np.where(new, pending, counts)).sum())
    if table.has_terms:
        reserved = [slot for slot in slots[new].tolist() if slot not in table.lenders]
        spent += int(table.offered[reserved].sum())
    return spent
