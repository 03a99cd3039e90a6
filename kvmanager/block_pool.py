"""The KV blocks of one replica: who owns how many of them, and which may be handed out next.

A block is in exactly one of three states, so that free + used + cached = total:
free (its content is worthless), used (it has owners), cached (no owner, but the prefix index knows its content).
Used blocks that nobody but copies to or from the host owns are *leaving*: they are given back when those are done.
Every operation costs O(1) for each block it touches.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from accelgen.kvmanager.prefix_index import PrefixIndex


class BlockPool:
    """Blocks 0 .. num_blocks-1 with reference counts; cached blocks are evicted least recently used first."""

    def __init__(self, num_blocks: int, index: PrefixIndex) -> None:
        self.num_blocks = num_blocks
        self.owners = [0] * num_blocks
        self.pins = [0] * num_blocks  # owners that are only waiting requests
        self.pinned = 0  # used blocks that nobody but waiting requests owns
        self.leaves = [0] * num_blocks  # owners that are only copies under way
        self.leaving = 0  # used blocks that nobody but copies owns
        self.evictions = 0
        self._index = index
        self._free = list(range(num_blocks - 1, -1, -1))  # a stack: low numbers go first
        self._cached: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def free(self) -> int:
        """Blocks that can be handed out at once."""
        return len(self._free)

    @property
    def cached(self) -> int:
        """Blocks that can be handed out after forgetting the prefix they hold."""
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.num_blocks - len(self._free) - len(self._cached)

    @property
    def available(self) -> int:
        """How many blocks `take` can deliver now."""
        return len(self._free) + len(self._cached)

    def take(self, count: int) -> list[int]:
        """`count` blocks with one owner each, free ones first. The caller has compared with `available`."""
        free, owners = self._free, self.owners
        spare = len(free)
        if count <= spare:
            blocks = free[spare - count :]
            del free[spare - count :]
            blocks.reverse()
        else:
            assert count <= self.available, "the caller must make room first"
            blocks = free[::-1]
            free.clear()
            blocks.extend(self._evict() for _ in range(count - spare))
        for block in blocks:
            owners[block] = 1
        return blocks

    def take_free(self) -> int:
        """A free block with one owner, -1 if there is none: the short way for a decode that begins a new block."""
        if not self._free:
            return -1
        block = self._free.pop()
        self.owners[block] = 1
        return block

    def claim(self, tables: Iterable[Iterable[int]]) -> None:
        """For a new pool: the blocks of `tables` belong to waiting requests, one each."""
        assert self.free == self.num_blocks
        for table in tables:
            for block in table:
                self.owners[block] += 1
                self.pins[block] += 1
        self._free = [block for block in self._free if not self.owners[block]]
        self.pinned = self.used

    def pin(self, blocks: Iterable[int]) -> None:
        """One more owner for each of `blocks`, which are used or cached: a waiting request, from which they can be
        taken away."""
        owners, pins = self.owners, self.pins
        for block in blocks:
            if not owners[block]:
                del self._cached[block]
                self.pinned += 1
            self.leaving -= 0 < owners[block] == self.leaves[block]
            owners[block] += 1
            pins[block] += 1

    def unpin(self, blocks: Iterable[int]) -> None:
        """The waiting request that pinned `blocks` now owns them like any other."""
        for block in blocks:
            self.pinned -= self.pins[block] == self.owners[block]
            self.pins[block] -= 1

    def demote(self, blocks: Iterable[int]) -> None:
        """The reverse of `unpin`: an owner of `blocks` waits from now on, and they can be taken away from it."""
        for block in blocks:
            self.pins[block] += 1
            self.pinned += self.pins[block] == self.owners[block]

    def leave(self, blocks: Iterable[int]) -> None:
        """An owner of `blocks` that is no pin holds them from now on only until they have been copied."""
        for block in blocks:
            self.leaves[block] += 1
            self.leaving += self.leaves[block] == self.owners[block]

    def stay(self, blocks: Iterable[int]) -> None:
        """The reverse of `leave`: to be given back, or handed on."""
        for block in blocks:
            self.leaving -= self.leaves[block] == self.owners[block]
            self.leaves[block] -= 1

    def give_back(self, blocks: Iterable[int]) -> None:
        """One owner less for each of `blocks`; of those that become cached, the first named is evicted first."""
        owners = self.owners
        for block in blocks:
            owners[block] -= 1
            if owners[block]:
                self.pinned += owners[block] == self.pins[block]
                self.leaving += owners[block] == self.leaves[block]
                continue
            if block in self._index:
                self._cached[block] = None
            else:
                self._free.append(block)

    def discredit(self, block: int) -> None:
        """What `block` holds is worthless: nobody finds it any more, and if it was cached, it is free."""
        if block in self._index:
            self._index.forget(block)
            if not self.owners[block]:
                del self._cached[block]
                self._free.append(block)

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        self._index.forget(block)
        self.evictions += 1
        return block

    def check(
        self, owners: dict[int, int], pins: dict[int, int], leaves: dict[int, int]
    ) -> list[str]:
        """What is wrong with the pool, given the true counts of all owners, of waiting ones and of copies: nothing, one
        hopes."""
        faults = []
        used = {block: count for block, count in enumerate(self.owners) if count}
        if used != owners:
            faults.append("reference counts differ from the block tables")
        if {block: count for block, count in enumerate(self.pins) if count} != pins:
            faults.append("pin counts differ from the tables of waiting requests")
        if {block: count for block, count in enumerate(self.leaves) if count} != leaves:
            faults.append("counts of leaving owners differ from the copies under way")
        if self.leaving != sum(leaves.get(block) == count for block, count in used.items()):
            faults.append("the number of blocks held by copies alone is wrong")
        if self.pinned != sum(pins.get(block) == count for block, count in used.items()):
            faults.append("the number of blocks held by pins alone is wrong")
        if len(self._free) + len(used) + len(self._cached) != self.num_blocks:
            faults.append(
                f"free {self.free} + used {len(used)} + cached {self.cached} != {self.num_blocks}"
            )
        if len({*self._free, *used, *self._cached}) != self.num_blocks:
            faults.append("a block is in two states or in none")
        if any(block in self._index for block in self._free):
            faults.append("a free block is in the prefix index")
        if any(block not in self._index for block in self._cached):
            faults.append("a cached block is not in the prefix index")
        return faults
