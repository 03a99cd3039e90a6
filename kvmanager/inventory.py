"""Whether an Inventory of a worker can be true: the conservation check before tables are built from it."""

from __future__ import annotations

from accelgen.proto.messages import Inventory

MOST = 5  # faults that are told


def faults_of(
    inventory: Inventory, num_blocks: int, block_size: int, host_blocks: int = 0
) -> list[str]:
    """What does not add up, in words, the first few: nothing if tables can be built from it.

    A block may be shared (prefix hits, forks), but then it holds the same tokens for all: it lies at one position. A
    block of the host has one owner, and a request has its KV on one side only."""
    faults: list[str] = []
    position_of: dict[int, int] = {}
    away: set[int] = set()
    seen: set[int] = set()
    for held in inventory.held:
        if held.id in seen:
            faults.append(f"request {held.id} is listed twice")
        seen.add(held.id)
        blocks = len(held.blocks) + len(held.host)
        if blocks != -(-held.computed // block_size) or (held.blocks and held.host):
            faults.append(f"request {held.id} holds {blocks} blocks for {held.computed} tokens")
        for block in held.host:
            if block >= host_blocks or block in away:
                faults.append(f"request {held.id} holds block {block} of {host_blocks} on the host")
            away.add(block)
        for position, block in enumerate(held.blocks):
            if block >= num_blocks:
                faults.append(f"request {held.id} holds block {block} of {num_blocks}")
            elif position_of.setdefault(block, position) != position:
                faults.append(f"block {block} is held at two positions")
        if len(faults) >= MOST:
            break
    return faults[:MOST]
