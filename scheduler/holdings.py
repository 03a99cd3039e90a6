"""Blocks that requests are to hold beyond what they use, and who lives inside whom: what of a decision is told."""

from __future__ import annotations

from collections.abc import Collection

from accelgen.scheduler.policy import Decision
from accelgen.scheduler.table import RUNNING, RequestTable


def allocated(decision: Decision, table: RequestTable, total: int) -> dict[int, int]:
    """Notes the blocks that requests which run are to hold (never fewer than they use, of `total`), and returns them
    by slot."""
    found = {slot: n for slot, n in decision.allocate.items() if table.state[slot] == RUNNING}
    for slot, blocks in found.items():
        most = int(min(blocks, total))
        found[slot] = table.blocks[slot] = max(most, table.used_blocks(slot))
    return found


def grows(decision: Decision, table: RequestTable) -> bool:
    """Whether somebody who runs is to hold another number of blocks than now: reason enough for a plan. That he is
    told the same again is none."""
    state, held = table.state, table.blocks
    allocate = decision.allocate.items()
    return any(state[slot] == RUNNING and held[slot] != most for slot, most in allocate)


def embedded(decision: Decision, table: RequestTable, back: Collection[int]) -> dict[int, int]:
    """The host's slot by the guest's, of those guests that run now or come back."""
    state, pairs = table.state, decision.embed.items()
    return {guest: host for guest, host in pairs if state[guest] == RUNNING or guest in back}
