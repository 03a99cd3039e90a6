"""The KV manager's core: turns Plans into Batches with block tables. No sockets, no clock, no device.

The worker executes Batches strictly in the order in which they were made. Everything here rests on that: KV counts as
computed once the Batch that computes it has been made, because whoever uses it runs later; and a block given back may
be handed out again at once, because whoever writes it runs later.

Any well-typed message is answered, however wrong: entries that cannot run are dropped whole and reported.
"""

from __future__ import annotations

from array import array
from collections import Counter
from dataclasses import dataclass, field

from accelgen.kvmanager.block_pool import BlockPool
from accelgen.kvmanager.prefix_index import PrefixIndex, extend_chain, root_key
from accelgen.kvmanager.request import Request
from accelgen.proto.messages import Batch, Fork, Held, Inventory, KvReport, Lookup, Plan, Prompt


@dataclass(slots=True)
class _Work:
    """The columns of a Batch while a Plan is applied."""

    new: list[Prompt] = field(default_factory=list)
    table_at: list[int] = field(default_factory=list)
    table_counts: list[int] = field(default_factory=list)
    table_blocks: list[int] = field(default_factory=list)
    copy_from: list[int] = field(default_factory=list)
    copy_to: list[int] = field(default_factory=list)
    unpinned: list[int] = field(default_factory=list)


class KvCore:
    """Block tables, prefix cache and pins of one replica.

    `counters` has: queries and hits (tokens), copies (blocks), dropped (entries), unpinned (requests)."""

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool = True) -> None:
        assert num_blocks > 0 and block_size > 0
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.index = PrefixIndex()
        self.pool = BlockPool(num_blocks, self.index)
        self.counters: Counter[str] = Counter()
        self._requests: dict[int, Request] = {}
        self._pinned: dict[int, Request] = {}  # hold KV but have not run with it; oldest first
        self._step = -1
        self._ripe: list[Request] = []  # have full blocks that are not in the index yet

    @property
    def num_requests(self) -> int:
        """Requests known here, running or not."""
        return len(self._requests)

    # --- messages ------------------------------------------------------------------------------------------------

    def on_lookup(self, lookup: Lookup) -> KvReport:
        """Remembers new requests and pins what the prefix cache has of them. For a known request that does not run
        the cache is tried again with the tokens known here; one that runs keeps what it has."""
        self.settle()
        hit_ids, hit_tokens = [], []
        for prompt in lookup.prompts:
            request = self._requests.get(prompt.id)
            if request is None:
                request = self._requests[prompt.id] = self._make_request(prompt)
                if prompt.parent:
                    continue  # it gets its parent's blocks by a fork
                self._pin(request)
                self.counters["queries"] += len(request.tokens)
                self.counters["hits"] += request.computed
            elif not request.running:
                self._pin(request)
            hit_ids.append(prompt.id)
            hit_tokens.append(request.computed)
        return self._report(-1, hit_ids=hit_ids, hit_tokens=hit_tokens)

    def on_plan(self, plan: Plan) -> tuple[Batch, KvReport]:
        """Applies a plan; returns what the worker must do and what the scheduler must know."""
        self._step = plan.step
        work = _Work()
        self._confirm(plan)
        outcome = {fork.child: self._fork(fork) for fork in plan.forks}  # of a child's last fork
        work.unpinned += [child for child, forked in outcome.items() if not forked]
        release = self._release(plan.release)
        for id in plan.preempt:
            if id in self._requests:
                self._drop_kv(self._requests[id])
        ids, starts, counts, dropped = self._place_entries(plan, work)
        self.counters["dropped"] += len(dropped)
        self.counters["copies"] += len(work.copy_to)
        self.counters["unpinned"] += len(work.unpinned)
        batch = Batch(
            plan.step, work.new, ids, starts, counts,
            work.table_at, work.table_counts, work.table_blocks, work.copy_from, work.copy_to,
            release, plan.predicted_s, plan.bound_s,
        )  # fmt: skip
        return batch, self._report(plan.step, dropped, unpinned=work.unpinned)

    def _report(
        self,
        step: int,
        dropped: list[int] | None = None,
        hit_ids: list[int] | None = None,
        hit_tokens: list[int] | None = None,
        unpinned: list[int] | None = None,
    ) -> KvReport:
        pool = self.pool
        return KvReport(
            step, pool.free, pool.cached, pool.pinned,
            dropped or [], hit_ids or [], hit_tokens or [], unpinned or [],
        )  # fmt: skip

    def on_activate(self) -> Inventory:
        """What a new scheduler finds here: every known request, also those that hold nothing."""
        held = [Held(r.id, r.computed, list(r.table)) for r in self._requests.values()]
        return Inventory(self._step, held, self.pool.free, self.pool.cached)

    def on_gap(self) -> None:
        """A message of the scheduler was lost, and confirmed tokens with it: what is confirmed later would land at
        wrong positions, so requests that the worker may have sampled for keep the tokens they have."""
        for request in self._requests.values():
            if request.prompt is None:
                request.follows = False

    def check(self) -> list[str]:
        """The invariants that do not hold, in words: none, unless the core has a bug. Time grows with the pool."""
        owners = Counter(block for request in self._requests.values() for block in request.table)
        pins = Counter(block for request in self._pinned.values() for block in request.table)
        faults = self.pool.check(owners, pins) + self.index.check()
        for request in self._requests.values():
            if len(set(request.table)) != len(request.table):
                faults.append(f"request {request.id} has a block twice")
            if len(request.table) != -(-request.computed // self.block_size):
                faults.append(f"request {request.id} holds more or fewer blocks than it computed")
            pinned = bool(request.table) and not request.running
            if pinned != (request.id in self._pinned):
                faults.append(f"request {request.id} is wrongly pinned or not pinned")
        if self._pinned.keys() - self._requests.keys():
            faults.append("a forgotten request is pinned")
        return faults

    # --- parts of a plan -----------------------------------------------------------------------------------------

    def _confirm(self, plan: Plan) -> None:
        """Appends confirmed tokens. If the columns do not fit together, nobody knows whose tokens were lost."""
        ids, counts, tokens = plan.confirmed_ids, plan.confirmed_counts, plan.confirmed_tokens
        if len(ids) != len(counts) or sum(counts) != len(tokens):
            self.on_gap()
            return
        find = self._requests.get
        at = 0
        for id, count in zip(ids, counts, strict=True):
            request = find(id)
            if request is not None and request.follows:
                known = len(request.tokens) + count
                if request.prompt is not None:
                    request.length = known  # the worker will hear of them when it is introduced
                if known > request.length:  # the worker cannot have sampled so many
                    request.follows = False
                elif count == 1:
                    request.tokens.append(tokens[at])
                else:
                    request.tokens.extend(tokens[at : at + count])
            at += count

    def _fork(self, fork: Fork) -> bool:
        """Lets `child` share its parent's leading blocks; otherwise it has nothing afterwards and False is returned."""
        child = self._requests.get(fork.child)
        if child is None:
            return False
        parent, computed = self._requests.get(fork.parent), fork.computed
        if parent is child:
            parent = None
        self._drop_kv(child)
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

    def _release(self, ids: list[int]) -> list[int]:
        """Forgets ended requests; returns those that the worker must forget, too."""
        known_to_worker = []
        for id in ids:
            request = self._requests.get(id)
            if request is None:
                continue
            self._drop_kv(request)
            del self._requests[id]
            if request.prompt is None:
                known_to_worker.append(id)
        return known_to_worker

    def _place_entries(
        self, plan: Plan, work: _Work
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Gives every entry its blocks. Returns ids, starts, counts of those that run, and ids of the others."""
        find, ripe = self._requests.get, self._ripe
        table_at, table_counts = work.table_at, work.table_counts
        rejected = _misfits(plan)
        at = -1
        for id, start, count in zip(plan.ids, plan.starts, plan.counts, strict=False):
            at += 1
            end = start + count
            request = find(id)
            if (
                request is None
                or request.computed != start
                or not start < end <= request.length
                or (rejected and at in rejected)
                or (end > request.capacity and not self._place(request, end, work))
            ):
                rejected.add(at)
                continue
            request.computed = end
            if end == request.length:
                request.length = end + 1  # the worker samples a token
            sent, blocks = request.sent, len(request.table)
            table_at.append(sent)
            table_counts.append(blocks - sent)
            if sent != blocks:
                work.table_blocks += request.table[sent:]
                request.sent = blocks
            if end >= request.index_at <= len(request.tokens):
                ripe.append(request)
        if not rejected and len(plan.ids) == len(plan.starts) == len(plan.counts):
            return plan.ids, plan.starts, plan.counts, []
        kept = [at for at in range(at + 1) if at not in rejected]
        return (
            [plan.ids[at] for at in kept],
            [plan.starts[at] for at in kept],
            [plan.counts[at] for at in kept],
            [plan.ids[at] for at in sorted(rejected)],
        )

    def _start(self, request: Request, work: _Work) -> None:
        request.running = True
        prompt = request.prompt
        if prompt is None:
            return
        confirmed = len(request.tokens) - len(prompt.tokens)
        if confirmed:
            prompt = Prompt(
                prompt.id, request.tokens.tolist(), prompt.sampling, prompt.generated + confirmed,
                prompt.salt, prompt.parent,
            )  # fmt: skip
        work.new.append(prompt)
        request.prompt = None

    # --- blocks --------------------------------------------------------------------------------------------------

    def _place(self, request: Request, end: int, work: _Work) -> bool:
        """Extends the table to hold `end` tokens, makes the first written block the request's own, introduces it to
        the worker. False if that does not fit; then nothing has changed for the request."""
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
        if not request.running:
            self._start(request, work)
        request.capacity = len(request.table) * size
        return True

    def _make_room(self, needed: int, request: Request, work: _Work) -> bool:
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
            self._drop_kv(newest)
            work.unpinned.append(newest.id)
        return True

    def _own_tail(self, request: Request, at: int, work: _Work) -> None:
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

    def _drop_kv(self, request: Request) -> None:
        """Gives back all blocks; the full confirmed ones stay in the prefix index, the last evicted first."""
        self._index_full_blocks(request)
        self._unpin(request)
        self.pool.give_back(reversed(request.table))
        request.table = []
        request.computed = request.sent = 0
        request.capacity = 0
        request.running = request.shares_tail = False
        self._set_indexed(request, 0)

    # --- prefix cache --------------------------------------------------------------------------------------------

    def _make_request(self, prompt: Prompt) -> Request:
        tokens = array("I", prompt.tokens)
        assert tokens.itemsize == 4
        request = Request(prompt.id, tokens, root_key(prompt.salt), len(tokens), prompt)
        self._set_indexed(request, 0)
        return request

    def _pin(self, request: Request) -> None:
        """Takes hold of the longest cached prefix, of whole blocks, short of the last token (which must be computed
        for the next one to be sampled)."""
        self._drop_kv(request)
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
        for request in self._ripe:
            self._index_full_blocks(request)
        self._ripe.clear()

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


def _can_fork(child: Request, parent: Request, computed: int) -> bool:
    """Whether the first `computed` tokens of both are the same, known, and computed for the parent."""
    return (
        computed <= min(parent.computed, len(parent.tokens), child.length - 1)
        and parent.root == child.root
        and parent.tokens[:computed] == child.tokens[:computed]
    )


def _misfits(plan: Plan) -> set[int]:
    """Positions of entries that cannot be meant: the second of an id, and what the shorter columns lack."""
    ids = plan.ids
    rejected = set(range(min(len(plan.starts), len(plan.counts)), len(ids)))
    if len(set(ids)) != len(ids):
        seen: set[int] = set()
        for at, id in enumerate(ids):
            if id in seen:
                rejected.add(at)
            seen.add(id)
    return rejected
