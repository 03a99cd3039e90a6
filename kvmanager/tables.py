"""Block tables: how requests come to blocks, share them, and lose them again.

A block that may have several owners is written only by the request that fills it; a forked request, which begins to
write behind the part it shares, copies it first. What a waiting request holds can be taken away (a pin).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from accelgen.kvmanager.block_pool import BlockPool
from accelgen.kvmanager.prefix_index import PrefixIndex, extend_chain
from accelgen.kvmanager.request import NEVER, Request
from accelgen.proto.messages import Held, Prompt


@dataclass(slots=True)
class Work:
    """The columns of a Batch while a Plan is applied."""

    new: list[Prompt] = field(default_factory=list)
    table_at: list[int] = field(default_factory=list)
    table_counts: list[int] = field(default_factory=list)
    table_blocks: list[int] = field(default_factory=list)
    copy_from: list[int] = field(default_factory=list)
    copy_to: list[int] = field(default_factory=list)
    unpinned: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)


class BlockTables:
    """The tables of all requests over one pool, and the prefix cache that outlives them."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.index = PrefixIndex()
        self.pool = BlockPool(num_blocks, self.index)
        self.ripe: list[Request] = []  # have full blocks that are not in the index yet
        self.first_index = block_size if prefix_caching else NEVER  # `index_at` of a new request
        self.cuts: dict[int, int] = {}  # id -> tokens whose KV it keeps; the worker must hear of it
        self._pinned: dict[int, Request] = {}  # hold KV but have not run with it; oldest first

    def grow(self, request: Request, end: int, work: Work) -> bool:
        """Extends the table to hold `end` tokens and makes the first block that will be written the request's own.
        False if that does not fit; then nothing has changed for the request."""
        size, pool = self.block_size, self.pool
        if request.capacity and end <= request.capacity + size and (block := pool.take_free()) >= 0:
            request.table.append(block)
            request.capacity += size
            return True
        needed = -(-end // size) - len(request.table)
        if request.shares_tail:
            at = request.computed // size
            copies = pool.owners[request.table[at]] > 1
            if not self._make_room(needed + copies, request, work):
                return False
            self._unpin(request)
            self._own_tail(request, at, work)
        elif needed > pool.available and not self._make_room(needed, request, work):
            return False
        elif not request.running:
            self._unpin(request)
        if needed > 0:
            request.table += pool.take(needed)
        request.capacity = len(request.table) * size
        return True

    def _make_room(self, needed: int, request: Request, work: Work) -> bool:
        """True if `needed` blocks are available, after withdrawing pins of other requests, newest first."""
        pool = self.pool
        if needed <= pool.available:
            return True
        if needed > pool.num_blocks - len(request.table):
            return False  # hopeless: nobody need suffer for it
        while needed > pool.available:
            newest = next(
                (pin for pin in reversed(self._pinned.values()) if pin is not request), None
            )
            if newest is None:
                return False
            self.drop(newest)
            work.unpinned.append(newest.id)
        return True

    def _own_tail(self, request: Request, at: int, work: Work) -> None:
        """Copy-on-write: block `at` of the table is about to be written by `request`, which has not run with it yet."""
        block = request.table[at]
        request.shares_tail = False
        if self.pool.owners[block] > 1:
            [copy] = self.pool.take(1)
            work.copy_from.append(block)
            work.copy_to.append(copy)
            request.table[at] = copy
            self.pool.give_back([block])
        elif block in self.index:
            self.index.forget(block)  # a former owner filled it; now it may get other tokens

    def _unpin(self, request: Request) -> None:
        """What a request was found or given before it ran is now its own, or about to be given back."""
        if self._pinned.pop(request.id, None) is not None:
            self.pool.unpin(request.table)

    def drop(self, request: Request) -> None:
        """Gives back all blocks; the full confirmed ones stay in the prefix index, the last evicted first."""
        if request.introduced and request.table:
            self.cuts[request.id] = 0
        self._index_full_blocks(request)
        self._unpin(request)
        self.pool.give_back(reversed(request.table))
        request.table = []
        request.computed = request.sent = 0
        request.capacity = 0
        request.running = request.shares_tail = False
        self._set_indexed(request, 0)

    def spoil(self, request: Request) -> list[int]:
        """The worker failed to compute this request: its blocks leave the prefix index, and so that nobody reads them
        who has not begun to, pins on them are withdrawn. Returns the ids of those that lost theirs."""
        blocks = set(request.table)
        for block in blocks:
            if block in self.index:
                self.index.forget(block)
        request.index_at = NEVER
        losers = [r for r in self._pinned.values() if r is not request and blocks & {*r.table}]
        for loser in losers:
            self.drop(loser)
        return [loser.id for loser in losers]

    def fork(self, child: Request, parent: Request | None, computed: int) -> bool:
        """Lets `child` share its parent's leading blocks; otherwise it has nothing afterwards and False is returned."""
        if parent is child:
            parent = None
        self.drop(child)
        if parent is None or not _can_fork(child, parent, computed):
            return False
        if not computed:
            return True
        child.table = parent.table[: -(-computed // self.block_size)]
        child.chain = parent.chain[: computed // self.block_size]
        child.computed = computed
        self.pool.pin(child.table)
        self._pinned[child.id] = child
        self._set_indexed(child, computed // self.block_size)
        # The parent may go on writing where it is: behind everything that its children read.
        child.shares_tail = computed % self.block_size > 0
        return True

    def truncate(self, request: Request, keep: int) -> None:
        """Keeps the KV of the first `keep` tokens, pinned like a prefix hit; the rest of the blocks is given back."""
        assert 0 < keep <= request.computed
        self.cuts[request.id] = keep
        self._index_full_blocks(request)
        self._unpin(request)
        blocks = -(-keep // self.block_size)
        self.pool.give_back(reversed(request.table[blocks:]))
        del request.table[blocks:], request.chain[keep // self.block_size :]
        request.computed, request.sent, request.capacity = keep, 0, 0
        request.running = False
        # The block that it writes next may be in the index, as full, or be read by a forked sibling.
        request.shares_tail = keep % self.block_size > 0
        self.pool.demote(request.table)
        self._pinned[request.id] = request
        self._set_indexed(request, min(request.indexed, keep // self.block_size))

    def settle_drafts(self, request: Request, count: int) -> None:
        """`count` tokens are confirmed next. If they are those of the oldest entry with drafts, it is known how many of
        these were accepted: what was counted for the others is taken back, and the blocks that only they needed."""
        before, drafts = request.unsettled[0]
        if before != len(request.tokens):
            return  # of an entry without drafts, before that one
        del request.unsettled[0]
        rejected = drafts + 1 - count
        if not 0 < rejected <= drafts:
            return
        request.length -= rejected
        request.unsettled = [(length - rejected, more) for length, more in request.unsettled]
        if request.computed >= before + drafts:  # else it has lost its KV meanwhile
            self.take_back(request, request.computed - rejected)

    def take_back(self, request: Request, computed: int) -> None:
        """Only `computed` tokens, at least one, are computed, of a request that runs: nothing behind them was
        confirmed, or shared. The worker is not told: it knows, and ignores blocks behind those it needs."""
        request.computed = computed
        blocks = -(-computed // self.block_size)
        if blocks < len(request.table):
            self.pool.give_back(reversed(request.table[blocks:]))
            del request.table[blocks:]
            request.sent = min(request.sent, blocks)
            request.capacity = blocks * self.block_size

    def restore(self, requests: Sequence[Request], held: Sequence[Held]) -> None:
        """What the worker holds becomes the tables again, pinned until a scheduler claims it. For a new pool."""
        for request, there in zip(requests, held, strict=True):
            request.table, request.computed = list(there.blocks), there.computed
            if request.table:
                self._pinned[request.id] = request
        self.pool.claim([request.table for request in requests])

    def pin_prefix(self, request: Request) -> None:
        """Takes hold of the longest cached prefix, of whole blocks, short of the last token (which must be computed
        for the next one to be sampled)."""
        self.drop(request)
        if not self.prefix_caching:
            return
        limit = max(len(request.tokens) - 1, 0) // self.block_size
        blocks: list[int] = []
        for at in range(limit):  # hash only as far as there are hits
            extend_chain(request.chain, request.root, request.tokens, self.block_size, at + 1)
            block = self.index.find(request.chain[at])
            if block is None:
                break
            blocks.append(block)
        if blocks:
            self.pool.pin(blocks)
            request.table = blocks
            request.computed = len(blocks) * self.block_size
            self._pinned[request.id] = request
            self._set_indexed(request, len(blocks))

    def settle(self) -> None:
        """Enters into the prefix index what the last plans completed. Nothing waits for it but the next Lookup, which
        does it if nobody has: call it when the Batch is on its way."""
        for request in self.ripe:
            self._index_full_blocks(request)
        self.ripe.clear()

    def _index_full_blocks(self, request: Request) -> None:
        """Enters the blocks of which all tokens are computed and confirmed."""
        known = min(request.computed, len(request.tokens))
        if known < request.index_at:
            return
        full = known // self.block_size
        extend_chain(request.chain, request.root, request.tokens, self.block_size, full)
        for at in range(request.indexed, full):
            self.index.add(request.chain[at], request.table[at])
        self._set_indexed(request, full)

    def _set_indexed(self, request: Request, blocks: int) -> None:
        request.indexed = blocks
        if self.prefix_caching:
            request.index_at = (blocks + 1) * self.block_size

    def check(self, requests: Collection[Request]) -> list[str]:
        """The invariants that do not hold, in words, given all requests. Time grows with the pool."""
        owners = Counter(block for request in requests for block in request.table)
        pins = Counter(block for request in self._pinned.values() for block in request.table)
        faults = self.pool.check(owners, pins) + self.index.check()
        for request in requests:
            if len(set(request.table)) != len(request.table):
                faults.append(f"request {request.id} has a block twice")
            if len(request.table) != -(-request.computed // self.block_size):
                faults.append(f"request {request.id} holds more or fewer blocks than it computed")
            pinned = bool(request.table) and not request.running
            if pinned != (request.id in self._pinned):
                faults.append(f"request {request.id} is wrongly pinned or not pinned")
        if self._pinned.keys() - {request.id for request in requests}:
            faults.append("a forgotten request is pinned")
        return faults


def _can_fork(child: Request, parent: Request, computed: int) -> bool:
    """Whether the first `computed` tokens of both are the same, known, and computed for the parent."""
    return (
        computed <= min(parent.computed, len(parent.tokens), child.length - 1)
        and parent.root == child.root
        and parent.tokens[:computed] == child.tokens[:computed]
    )
