"""Blocks that requests are to hold beyond what they use, and who lives inside whom: what of a decision is told."""

from __future__ import annotations

from collections.abc import Collection

from accelgen.scheduler.policy import Decision
from accelgen.scheduler.table import RUNNING, RequestTable


def allocated(decision: Decision, table: RequestTable, total: int) -> dict[int, int]:
    """Notes the blocks that requests which run are to hold (never fewer than they use, of `total`), and returns them
    by slot."""
    found = _possible(decision, table, total)
    for slot, blocks in found.items():
        table.blocks[slot] = blocks
    return found


def grows(decision: Decision, table: RequestTable, total: int, free: int) -> bool:
    """Whether somebody who runs is to hold fewer blocks than now, or more while some of `total` are `free`: reason
    enough for a plan. That he is told the same again is none, nor that he is told what cannot be."""
    held, possible = table.blocks, _possible(decision, table, total).items()
    return any(most < held[slot] or (most > held[slot] and free > 0) for slot, most in possible)


def _possible(decision: Decision, table: RequestTable, total: int) -> dict[int, int]:
    return {
        slot: max(int(min(blocks, total)), table.used_blocks(slot))
        for slot, blocks in decision.allocate.items()
        if table.state[slot] == RUNNING
    }


def embedded(decision: Decision, table: RequestTable, back: Collection[int]) -> dict[int, int]:
    """The host's slot by the guest's, of those guests that run now or come back."""
    state, pairs = table.state, decision.embed.items()
    return {guest: host for guest, host in pairs if state[guest] == RUNNING or guest in back}
