"""Block tables: how requests come to blocks, share them, and lose them again.

A block that may have several owners is written only by the request that fills it; a forked request, which begins to
write behind the part it shares, copies it first. What a waiting request holds can be taken away (a pin).

A running request can hold more blocks than it uses (`resize`), and others can live in what it does not use (`lenders`,
`accelgen.kvmanager.loans`). What a request holds can be moved to the host and back (`accelgen.kvmanager.moves`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from accelgen.kvmanager.block_pool import BlockPool
from accelgen.kvmanager.host_pool import HostPool
from accelgen.kvmanager.loans import Loan, Loans
from accelgen.kvmanager.moves import Moves
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
    out_ids: list[int] = field(default_factory=list)
    out_counts: list[int] = field(default_factory=list)
    out_from: list[int] = field(default_factory=list)
    out_to: list[int] = field(default_factory=list)
    out_frees: list[int] = field(default_factory=list)  # blocks that each will give back
    in_ids: list[int] = field(default_factory=list)
    in_counts: list[int] = field(default_factory=list)
    in_from: list[int] = field(default_factory=list)
    in_to: list[int] = field(default_factory=list)
    drafts: list[int] = field(default_factory=list)


class BlockTables:
    """The tables of all requests over one pool, and the prefix cache that outlives them."""

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool, host_blocks: int = 0
    ) -> None:
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.index = PrefixIndex()
        self.pool = BlockPool(num_blocks, self.index)
        self.host = HostPool(host_blocks)
        self.moves = Moves(self.pool, self.host)
        self.loans = Loans()
        self.lenders: dict[int, Request] = {}  # for the plan being applied: guest's id -> host
        self.ripe: list[Request] = []  # have full blocks that are not in the index yet
        self.first_index = block_size if prefix_caching else NEVER  # `index_at` of a new request
        self.cuts: dict[int, int] = {}  # id -> tokens whose KV it keeps; the worker must hear of it
        self._pinned: dict[int, Request] = {}  # hold KV but have not run with it; oldest first

    def grow(self, request: Request, end: int, work: Work) -> bool:
        """Extends the table to hold `end` tokens and makes the first block that will be written the request's own.
        False if that does not fit; then nothing has changed for the request."""
        size, pool = self.block_size, self.pool
        tied = self.lenders or self.loans.any
        if (
            request.capacity
            and not tied
            and end <= request.capacity + size
            and (block := pool.take_free()) >= 0
        ):
            request.table.append(block)
            request.capacity += size
            return True
        needed = -(-end // size) - len(request.table)
        fresh = needed - self._spare_for(request, needed) if tied else needed
        if request.shares_tail:
            at = request.computed // size
            if not self._make_room_for_tail(max(0, fresh), at, request, work):
                return False
            self._unpin(request)
            self._own_tail(request, at, work)
        elif fresh > pool.available and not self._make_room(fresh, request, work):
            return False
        elif not request.running:
            self._unpin(request)
        if needed > 0:
            request.table += self._take(request, needed - fresh, fresh)
        request.capacity = len(request.table) * size
        return True

    def _spare_for(self, request: Request, needed: int) -> int:
        """How many of `needed` blocks the host that the plan has named for `request` can lend."""
        lender = self.lenders.get(request.id)
        return min(max(0, needed), self.loans.spare(request, lender, self.block_size))

    def _take(self, request: Request, borrowed: int, fresh: int) -> list[int]:
        """So many blocks of the request's host, and so many that nobody has, which are there."""
        blocks: list[int] = []
        if borrowed:
            host = self.lenders[request.id]
            blocks = self.loans.lend(request, host, borrowed, self.block_size)
        if fresh:
            blocks += self.pool.take(fresh)
            self.loans.replace(request, fresh)
        return blocks

    def resize(self, request: Request, blocks: int) -> None:
        """Lets a running request hold so many blocks, as far as there are some, and never fewer than it uses."""
        if not request.running or request.moving:
            return
        wanted = max(blocks, -(-request.computed // self.block_size))
        more = wanted - len(request.table)
        if more > 0:
            borrowed = self._spare_for(request, more)
            fresh = min(more - borrowed, self.pool.available)
            request.table += self._take(request, borrowed, fresh)
        elif more < 0:
            rest = request.table[wanted:]
            del request.table[wanted:]
            request.sent = min(request.sent, wanted)
            self._give_back(rest[::-1], self.loans.of(request))
        if request.capacity:
            request.capacity = len(request.table) * self.block_size

    def _give_back(self, blocks: list[int], loan: Loan | None = None) -> None:
        """Gives `blocks` back, first named first evicted; what of them is borrowed, and nobody shares, to its host."""
        if loan is not None and loan.host is not None:
            mine = [block for block in blocks if block in loan.blocks]
            for block in mine:
                if self.pool.owners[block] > 1:
                    loan.blocks.remove(block)  # a prefix hit or a fork lives on in it
                    continue
                if block in self.index:
                    self.index.forget(block)
                self.loans.returns(loan, block, self.block_size)
            returned = {block for block in mine if self.pool.owners[block] == 1}
            blocks = [block for block in blocks if block not in returned]
            if not loan.blocks:
                self.loans.close(loan)
        self.pool.give_back(blocks)

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
            self._withdraw(newest, work)
        return True

    def _make_room_for_tail(self, needed: int, at: int, request: Request, work: Work) -> bool:
        """As `_make_room`, with a block to copy block `at` of the table to, if that is shared. If there is none, pins
        that share it give way: it need not be copied then."""
        tail = request.table[at]
        if self._make_room(needed + (self.pool.owners[tail] > 1), request, work):
            return True
        sharing = [one for one in self._pinned.values() if one is not request and tail in one.table]
        if self.pool.owners[tail] - len(sharing) > 1:
            return False
        for pin in sharing:
            self._withdraw(pin, work)
        return self._make_room(needed, request, work)

    def _withdraw(self, pin: Request, work: Work) -> None:
        self.drop(pin)
        work.unpinned.append(pin.id)

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
        if request.introduced and (request.table or request.host):
            self.cuts[request.id] = 0
        loan = self._end_ties(request)
        if request.moving:
            self.moves.abandon(request, loan)
        else:
            self._index_full_blocks(request)
            self._unpin(request)
            self._give_back(request.table[::-1], loan)
            self.loans.close(loan)
        self.host.give_back(request.host)
        request.table, request.host = [], []
        request.computed = request.sent = 0
        request.capacity = 0
        request.running = request.shares_tail = request.claimed = False
        self._set_indexed(request, 0)

    def _end_ties(self, request: Request) -> Loan | None:
        """`request` is no host any more, and what it has borrowed (returned) is about to go back."""
        self.lenders.pop(request.id, None)
        if not self.loans.any:
            return None
        self.loans.forgive(request)
        return self.loans.take_along(request)

    def spoil(self, request: Request) -> list[int]:
        """The worker failed to compute this request: its blocks leave the prefix index, those too that it has left
        behind by going out, and so that nobody reads them who has not begun to, pins on them are withdrawn. Returns the
        ids of those that lost theirs."""
        found = [self.index.find(key) for key in request.chain]
        blocks = {*request.table, *self.moves.blocks_of(request.id)}
        blocks |= {block for block in found if block is not None}
        for block in blocks:
            self.pool.discredit(block)
        request.index_at = NEVER
        losers = [r for r in self._pinned.values() if r is not request and blocks & {*r.table}]
        for loser in losers:
            self.drop(loser)
        return [loser.id for loser in losers]

    # --- to the host and back --------------------------------------------------------------------------------------

    def swap_out(self, request: Request, work: Work) -> bool:
        """Begins to copy what `request` has computed to the host; what it does not use is given back at once. False if
        it cannot be: no room there, a copy still under way, or the worker has not run it with this KV."""
        used = -(-request.computed // self.block_size)
        runs = request.table and (request.running or request.claimed)
        if not runs or used > self.host.free or request.id in self.moves:
            return False
        self._index_full_blocks(request)
        self._unpin(request)
        loan = self._end_ties(request)
        rest = request.table[used:]
        del request.table[used:]
        self._give_back(rest[::-1], loan)
        blocks, hosts = self.moves.begin_out(request, loan)
        request.sent = request.capacity = 0
        request.running = request.shares_tail = request.claimed = False
        request.indexed, request.index_at = 0, NEVER
        borrowed = loan.blocks if loan is not None else set()
        own = [block for block in blocks if self.pool.owners[block] == 1 and block not in borrowed]
        work.out_ids.append(request.id)
        work.out_counts.append(used)
        work.out_frees.append(len(own))
        work.out_from += blocks
        work.out_to += hosts
        return True

    def swap_in(self, request: Request, work: Work) -> bool:
        """Begins to copy what `request` has on the host back. False, and nothing has changed, if it does not fit or is
        not there."""
        needed = len(request.host)
        if not needed or request.id in self.moves:
            return False
        borrowed = self._spare_for(request, needed)
        if not self._make_room(needed - borrowed, request, work):
            return False
        blocks = self._take(request, borrowed, needed - borrowed)
        hosts, blocks = self.moves.begin_in(request, blocks)
        work.in_ids.append(request.id)
        work.in_counts.append(needed)
        work.in_from += hosts
        work.in_to += blocks
        return True

    def finish(self, id: int) -> None:
        """The copy of request `id` is done: both sides of it are what they were meant to be."""
        move = self.moves.under_way.pop(id, None)
        if move is None:
            return
        self.pool.stay(move.blocks)
        self._give_back(move.blocks[::-1], move.loan)
        self.loans.close(move.loan)
        self.host.give_back(move.hosts)
        request = move.request
        if request is not None:
            request.moving = False
            self._trim_host(request)
            request.running = bool(request.table)
            if request.running:
                self._set_indexed(request, 0)

    def finish_all(self) -> None:
        """All copies that were ever begun are done, and nobody knows any more who lives inside whom."""
        for id in [*self.moves.under_way]:
            self.finish(id)
        self.loans.clear()
        self.loans.resized.clear()

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
        """Keeps the KV of the first `keep` tokens, pinned like a prefix hit; the rest of the blocks is given back. What
        is on the host stays there."""
        assert 0 < keep <= request.computed and not request.moving
        # Not more than it has been told already: what was given up may be in others' hands.
        self.cuts[request.id] = min(keep, self.cuts.get(request.id, keep))
        blocks = -(-keep // self.block_size)
        request.computed, known = keep, request.computed
        if request.host:
            self.host.give_back(request.host[blocks:])
            del request.host[blocks:], request.chain[keep // self.block_size :]
            return
        self._index_full_blocks(request, known)
        self._unpin(request)
        loan = self._end_ties(request)
        self._give_back(request.table[blocks:][::-1], loan)
        self.loans.close(loan)
        del request.table[blocks:], request.chain[keep // self.block_size :]
        request.sent = request.capacity = 0
        request.running, request.claimed = False, request.running or request.claimed
        # The block that it writes next may be in the index, as full, or be read by a forked sibling.
        request.shares_tail = keep % self.block_size > 0
        self.pool.demote(request.table)
        self._pinned[request.id] = request
        self._set_indexed(request, min(request.indexed, keep // self.block_size))

    def settle_drafts(self, request: Request, count: int) -> None:
        """`count` tokens are confirmed next. If they are those of the oldest entry with drafts, it is known how many of
        these were accepted: what was counted for the others is taken back."""
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
        """Only `computed` tokens, at least one, are computed: nothing behind them was confirmed, or shared. The worker
        is not told: it knows. Blocks of the device stay where they are, for the next tokens; what there is more on the
        host, where nothing is written, is given back, but not while a copy goes there."""
        request.computed = computed
        if not request.moving:
            self._trim_host(request)

    def _trim_host(self, request: Request) -> None:
        used = -(-request.computed // self.block_size)
        self.host.give_back(request.host[used:])
        del request.host[used:]

    def restore(self, requests: Sequence[Request], held: Sequence[Held]) -> None:
        """What the worker holds becomes the tables again, pinned until a scheduler claims it; what it has on the host
        stays there. For new pools."""
        for request, there in zip(requests, held, strict=True):
            request.table, request.computed = list(there.blocks), there.computed
            request.host = list(there.host)
            if request.table:
                self._pinned[request.id], request.claimed = request, True
            if request.host:
                request.index_at = NEVER
        self.pool.claim([request.table for request in requests])
        self.host.claim([request.host for request in requests])

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

    def _index_full_blocks(self, request: Request, computed: int = 0) -> None:
        """Enters the blocks of which all tokens are computed and confirmed (`computed`: of so many)."""
        known = min(computed or request.computed, len(request.tokens))
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
        leaves = self.moves.leaves()
        owners = Counter(block for request in requests for block in request.table) + leaves
        pins = Counter(block for request in self._pinned.values() for block in request.table)
        faults = self.pool.check(owners, pins, leaves) + self.index.check()
        faults += self.moves.check([*requests])
        moving = {id: {*move.blocks} for id, move in self.moves.under_way.items()}
        faults += self.loans.check(requests, moving)
        for request in requests:
            used = -(-request.computed // self.block_size)
            if len(set(request.table)) != len(request.table):
                faults.append(f"request {request.id} has a block twice")
            held = len(request.host or request.table)
            if held < used or (held > used and not (request.running or request.moving)):
                faults.append(f"request {request.id} holds more or fewer blocks than it computed")
            if any(owners[block] > 1 or block in self.index for block in request.table[used:]):
                faults.append(f"request {request.id} shares a block that it does not use")
            pinned = bool(request.table) and not request.running and not request.moving
            if pinned != (request.id in self._pinned):
                faults.append(f"request {request.id} is wrongly pinned or not pinned")
        if self._pinned.keys() - {request.id for request in requests}:
            faults.append("a forgotten request is pinned")
        return faults


def _can_fork(child: Request, parent: Request, computed: int) -> bool:
    """Whether the first `computed` tokens of both are the same, known, and computed for the parent, and are here."""
    return (
        not (parent.host or parent.moving)
        and computed <= min(parent.computed, len(parent.tokens), child.length - 1)
        and parent.root == child.root
        and parent.tokens[:computed] == child.tokens[:computed]
    )
