"""Memory ahead of need: who asks for more before its allocation is used up, from what it is served, and what critical
requests get (CacheOPT, arXiv 2503.13773, sections 3.3.2 and 3.3.3).

The paper keeps a global reserve that newcomers may not count on, lets requests ask for further KV a few iterations
before they run out, and gives a request that must start in the next iteration just its tokens and one quantum B, if
need be from what others have allocated and do not use, those with the largest slack first. Reconstructed: the numbers
(2 iterations and 64 reserved tokens are a third party's; B is ours), and that whoever is cut keeps what it needs for
the next iterations, since it would ask for it again at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import Floats, Ints


@dataclass(frozen=True, slots=True)
class Growth:
    """The rule with its constants: how many iterations ahead a request asks, how many tokens it asks for (B), how many
    tokens are reserved, and tokens per block. Raises ValueError."""

    ahead: int = 2
    quantum: int = 32
    reserve: int = 64
    block_size: int = 16

    def __post_init__(self) -> None:
        within("ahead", self.ahead, 0, unit="iterations")
        within("quantum", self.quantum, 1, unit="tokens")
        within("reserve", self.reserve, 0, unit="tokens")
        within("block_size", self.block_size, 1, unit="tokens")

    @property
    def reserve_blocks(self) -> int:
        """The reserve in whole blocks."""
        return -(-self.reserve // self.block_size)

    def spare(self, free: int) -> int:
        """Of `free` blocks, those that newcomers may count on."""
        return max(0, free - self.reserve_blocks)

    def asks(self, allocated: Ints, used: Ints, most: Ints) -> Ints:
        """Further blocks that running requests ask for now, [n]; 0 for those that need none yet. `allocated` blocks,
        tokens `used`, the `most` tokens that each can ever have, [n]."""
        size = self.block_size
        short = allocated * size - used <= self.ahead
        wanted = np.minimum(allocated * size + self.quantum, most)
        blocks: Ints = np.where(short, np.maximum(-(-wanted // size) - allocated, 0), 0)
        return blocks

    def least_demand(self, tokens: int, most: int) -> int:
        """Blocks without which a critical request cannot start: for all its `tokens` (a prompt; prompt and output of
        one that returns) and a quantum, at most for the `most` tokens that it can ever have."""
        return -(-min(tokens + self.quantum, most) // self.block_size)

    def unused(self, allocated: Ints, used: Ints) -> Ints:
        """Blocks of each that may be cut off, [n]: all but those for its tokens and the next `ahead` iterations."""
        kept = -(-(used + self.ahead) // self.block_size)
        blocks: Ints = np.maximum(allocated - kept, 0)
        return blocks


def serve(asks: Ints, left: Ints, ids: Ints, blocks: int) -> Ints:
    """Blocks granted of those asked for, [n]: whoever has the fewest tokens `left` in its allocation first, of equals
    the smaller id; the last one served may get a part. Sums to `blocks`, or less if all are satisfied."""
    return _pour(asks, np.lexsort((ids, left)), blocks)


def cuts(unused: Ints, slack_s: Floats, ids: Ints, blocks: int) -> Ints:
    """Unused blocks to be taken from each for a critical request that lacks `blocks`, [n]: from the largest slack
    first, of equals from the smaller id. Sums to less than `blocks` if there is no more: then somebody must be
    preempted besides."""
    return _pour(unused, np.lexsort((ids, -slack_s)), blocks)


def _pour(room: Ints, order: Ints, amount: int) -> Ints:
    """Shares of `amount`, [n]: as much as there is room, one after the other."""
    in_order = room[order]
    before = np.cumsum(in_order) - in_order
    shares = np.zeros_like(room)
    shares[order] = np.clip(amount - before, 0, in_order)
    return shares
