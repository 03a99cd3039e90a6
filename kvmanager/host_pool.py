"""The blocks of the host's memory that KV is swapped out to: which are free. A block has one owner, or none."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable


class HostPool:
    """Blocks 0 .. num_blocks-1. The lowest go first, so that those of one request lie in few runs, which are copied
    faster than single blocks."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._untouched = 0  # this one and all above it have never been taken
        self._returned: list[int] = []  # a heap

    @property
    def free(self) -> int:
        return self.num_blocks - self._untouched + len(self._returned)

    @property
    def used(self) -> int:
        return self.num_blocks - self.free

    def take(self, count: int) -> list[int]:
        """`count` blocks. The caller has compared with `free`."""
        assert count <= self.free, "the caller must look first"
        taken = [heapq.heappop(self._returned) for _ in range(min(count, len(self._returned)))]
        fresh = count - len(taken)
        taken += range(self._untouched, self._untouched + fresh)
        self._untouched += fresh
        return taken

    def give_back(self, blocks: Iterable[int]) -> None:
        """They are free again."""
        for block in blocks:
            heapq.heappush(self._returned, block)

    def claim(self, tables: Iterable[Iterable[int]]) -> None:
        """For a new pool: the blocks of `tables` have an owner."""
        assert not self.used
        claimed = {block for table in tables for block in table}
        self._untouched = max(claimed, default=-1) + 1
        self._returned = [block for block in range(self._untouched) if block not in claimed]

    def check(self, held: Iterable[int]) -> list[str]:
        """What is wrong with the pool, given the blocks of all owners: nothing, one hopes."""
        faults = []
        counts = Counter(held)
        if any(count > 1 for count in counts.values()):
            faults.append("a block of the host has two owners")
        if len(counts) != self.used:
            faults.append(f"host: free {self.free} + used {len(counts)} != {self.num_blocks}")
        if counts.keys() & {*self._returned} or max(counts, default=-1) >= self._untouched:
            faults.append("a block of the host is free and has an owner")
        if len({*self._returned}) != len(self._returned):
            faults.append("a block of the host is free twice")
        return faults
