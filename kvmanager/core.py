"""The KV manager's core: turns Plans into Batches with block tables. No sockets, no clock, no device.

The worker executes Batches strictly in the order in which they were made. Everything here rests on that: KV counts as
computed once the Batch that computes it has been made, because whoever uses it runs later; and a block given back may
be handed out again at once, because whoever writes it runs later.

Any well-typed message is answered, however wrong: entries that cannot run are dropped whole and reported.
"""

from __future__ import annotations

from array import array
from collections import Counter

from accelgen.kvmanager.block_pool import BlockPool
from accelgen.kvmanager.inventory import faults_of
from accelgen.kvmanager.prefix_index import root_key
from accelgen.kvmanager.request import Request
from accelgen.kvmanager.tables import BlockTables, Work
from accelgen.proto.messages import Batch, Fork, Held, Inventory, KvReport, Lookup, Plan, Prompt


class KvCore:
    """Block tables, prefix cache and pins of one replica, and what of it lies on the host (`host_blocks`).

    `counters` has: queries and hits (tokens), copies, swapped_out, swapped_in (blocks), dropped (entries), unpinned,
    unswapped (requests), never_used (blocks that requests held when they ended, and had not used)."""

    def __init__(
        self, num_blocks: int, block_size: int, prefix_caching: bool = True, host_blocks: int = 0
    ) -> None:
        assert num_blocks > 0 and block_size > 0 and host_blocks >= 0
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.host_blocks = host_blocks
        self.tables = BlockTables(num_blocks, block_size, prefix_caching, host_blocks)
        self.counters: Counter[str] = Counter()
        self._requests: dict[int, Request] = {}
        self._step = -1

    @property
    def pool(self) -> BlockPool:
        return self.tables.pool

    @property
    def unused_blocks(self) -> int:
        """Blocks that running requests hold and have no KV in: what has been given ahead of need, or lent."""
        return sum(self._unused(request) for request in self._requests.values())

    def _unused(self, request: Request) -> int:
        return len(request.table) + request.computed // -self.block_size if request.running else 0

    @property
    def num_requests(self) -> int:
        """Requests known here, running or not."""
        return len(self._requests)

    # --- messages ------------------------------------------------------------------------------------------------

    def on_lookup(self, lookup: Lookup) -> KvReport:
        """Remembers new requests and pins what the prefix cache has of them. For a known request that does not run
        the cache is tried again with the tokens known here; one that runs, or is away, keeps what it has."""
        self.settle()
        hit_ids, hit_tokens, away = [], [], []
        for prompt in lookup.prompts:
            request = self._requests.get(prompt.id)
            if request is not None and lookup.adopt:
                self._adopt(request, prompt)
            elif request is None:
                request = self._requests[prompt.id] = self._make_request(prompt)
                if prompt.parent:
                    continue  # it gets its parent's blocks by a fork
                self.tables.pin_prefix(request)
                self.counters["queries"] += len(request.tokens)
                self.counters["hits"] += request.computed
            elif not (request.running or request.host or request.moving):
                self.tables.pin_prefix(request)
            hit_ids.append(prompt.id)
            hit_tokens.append(request.computed)
            if request.host:
                away.append(prompt.id)
        return self._report(-1, hit_ids=hit_ids, hit_tokens=hit_tokens, away_ids=away)

    def on_plan(self, plan: Plan) -> tuple[Batch, KvReport]:
        """Applies a plan; returns what the worker must do and what the scheduler must know."""
        self._step = plan.step
        work = Work()
        self._confirm(plan)
        for id in plan.spoiled:
            if id in self._requests:
                work.unpinned += self.tables.spoil(self._requests[id])
        for id in plan.moved:
            self.tables.finish(id)
        outcome = {fork.child: self._fork(fork) for fork in plan.forks}  # of a child's last fork
        work.unpinned += [child for child, forked in outcome.items() if not forked]
        release = self._release(plan.release)
        for id in plan.preempt:
            if id in self._requests:
                self.tables.drop(self._requests[id])
        unswapped = self._swap_out(plan.swap_out, work)
        self._name_lenders(plan)
        ids, starts, counts, dropped = self._place_entries(plan, work)
        stayed = self._swap_in(plan.swap_in, work)
        short = self._allocate(plan, {*dropped})
        self.tables.lenders.clear()
        self.counters["dropped"] += len(dropped)
        self.counters["copies"] += len(work.copy_to)
        self.counters["unpinned"] += len(work.unpinned)
        cuts = self.tables.cuts
        batch = Batch(
            plan.step, work.new, ids, starts, counts,
            work.table_at, work.table_counts, work.table_blocks, work.copy_from, work.copy_to,
            release, plan.predicted_s, plan.bound_s, [*cuts], [*cuts.values()],
            work.out_ids, work.out_counts, work.out_from, work.out_to,
            work.in_ids, work.in_counts, work.in_from, work.in_to,
            work.drafts,
        )  # fmt: skip
        cuts.clear()
        report = self._report(
            plan.step, dropped, unpinned=work.unpinned,
            swapped_out=work.out_ids, freeing=work.out_frees, unswapped=unswapped, stayed=stayed,
            short_ids=[*short], short_blocks=[*short.values()],
        )  # fmt: skip
        return batch, report

    def _report(
        self,
        step: int,
        dropped: list[int] | None = None,
        hit_ids: list[int] | None = None,
        hit_tokens: list[int] | None = None,
        unpinned: list[int] | None = None,
        **rest: list[int],
    ) -> KvReport:
        pool = self.pool
        return KvReport(
            step, pool.free, pool.cached, pool.pinned,
            dropped or [], hit_ids or [], hit_tokens or [], unpinned or [],
            leaving=pool.leaving, host_free=self.tables.host.free, **rest,
        )  # fmt: skip

    def on_inventory(self, inventory: Inventory) -> list[str]:
        """The worker's word, which is the truth, on what has been computed: before a new scheduler is told.

        If all that was sent has been run, it only confirms what is known here. Otherwise (this KV manager is new, or
        messages were lost) tables and pool are built anew from it, and tokens come with the scheduler's Lookups.
        Returns what did not add up, in words: then nothing counts as computed."""
        if inventory.step == self._step:
            self.on_copies_done()
            self._compare(inventory)
            return []
        faults = faults_of(inventory, self.pool.num_blocks, self.block_size, self.host_blocks)
        self._step = inventory.step
        blocks, size = self.pool.num_blocks, self.block_size
        self.tables = BlockTables(blocks, size, self.prefix_caching, self.host_blocks)
        self._requests = {held.id: self._stranger(held.id) for held in inventory.held}
        self.tables.cuts = dict.fromkeys(self._requests, 0) if faults else {}
        if not faults:
            self.tables.restore([*self._requests.values()], inventory.held)
        return faults

    def on_activate(self) -> Inventory:
        """What a new scheduler finds here: every known request, also those that hold nothing. Blocks that a request
        does not use are not told of: it loses them when it is claimed."""
        size = self.block_size
        held = [
            Held(r.id, r.computed, r.table[: -(-r.computed // size)], list(r.host))
            for r in self._requests.values()
        ]
        return Inventory(self._step, held, self.pool.free, self.pool.cached)

    def on_copies_done(self) -> None:
        """The worker has run all that was sent, and its copies to the host and back are done. A new scheduler will not
        know of them, nor who lives inside whom."""
        self.tables.finish_all()

    def on_gap(self) -> None:
        """A message of the scheduler was lost, and confirmed tokens with it: what is confirmed later would land at
        wrong positions, so requests that the worker may have sampled for keep the tokens they have."""
        for request in self._requests.values():
            if request.prompt is None:
                request.follows = False

    def settle(self) -> None:
        """Hashes what the last plans completed into the prefix index. Nothing waits for it but the next Lookup, which
        does it if nobody has: call it when the Batch is on its way."""
        self.tables.settle()

    def check(self) -> list[str]:
        """The invariants that do not hold, in words: none, unless the core has a bug. Time grows with the pool."""
        return self.tables.check(self._requests.values())

    # --- what the worker holds ---------------------------------------------------------------------------------------

    def _compare(self, inventory: Inventory) -> None:
        """Takes KV away from requests that the worker has failed to compute, and meets those it alone knows."""
        held = {held.id: held for held in inventory.held}
        for request in self._requests.values():
            there = held.pop(request.id, None)
            drafts = sum(drafts for _, drafts in request.unsettled)
            request.unsettled = []
            if not (request.running or request.host):
                continue
            if there is None or not _bears_out(there, request, drafts):
                self.tables.spoil(request)
                self.tables.drop(request)
            elif drafts and there.computed < request.computed:
                self.tables.take_back(request, there.computed)
                request.length = there.computed + 1
        for id in held:
            self._requests[id] = self._stranger(id)
            self.tables.cuts[id] = 0

    def _stranger(self, id: int) -> Request:
        """A request that the worker knows and whose tokens are not known here: a scheduler claims it, or it ends."""
        root = root_key(b"")
        first = self.tables.first_index
        return Request(id, array("I"), root, 0, None, index_at=first, introduced=True)

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
                if request.unsettled:
                    self.tables.settle_drafts(request, count)
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

    def _adopt(self, request: Request, prompt: Prompt) -> None:
        """A new scheduler's word on a known request: `prompt` is the truth, KV beyond it is given up. The last token
        must be computed (again) for the next one to be sampled."""
        fresh = self._make_request(prompt)
        same = min(len(request.tokens), len(fresh.tokens))
        keep = min(request.computed, len(fresh.tokens) - 1)
        if request.tokens[:same] != fresh.tokens[:same] or request.moving:
            keep = (
                0  # another prompt under this id, or a copy is under way: nothing of it can be used
            )
        if keep > 0:
            self.tables.truncate(request, keep)
        else:
            self.tables.drop(request)
        request.tokens, request.root, request.length = fresh.tokens, fresh.root, fresh.length
        request.prompt, request.follows, request.unsettled = prompt, True, []
        if keep <= 0:
            request.chain = []
            self.tables.pin_prefix(request)

    def _fork(self, fork: Fork) -> bool:
        child = self._requests.get(fork.child)
        if child is None:
            return False
        return self.tables.fork(child, self._requests.get(fork.parent), fork.computed)

    def _release(self, ids: list[int]) -> list[int]:
        """Forgets ended requests; returns those that the worker must forget, too."""
        known_to_worker = []
        for id in ids:
            request = self._requests.get(id)
            if request is None:
                continue
            self.counters["never_used"] += self._unused(request)
            self.tables.drop(request)
            self.tables.cuts.pop(id, None)
            del self._requests[id]
            if request.introduced:
                known_to_worker.append(id)
        return known_to_worker

    def _swap_out(self, ids: list[int], work: Work) -> list[int]:
        """Returns those whose KV was dropped instead, if they had any."""
        unswapped = []
        for id in dict.fromkeys(ids):
            request = self._requests.get(id)
            if request is not None and self.tables.swap_out(request, work):
                continue
            unswapped.append(id)
            if request is not None:
                self.tables.drop(request)
        self.counters["swapped_out"] += len(work.out_from)
        self.counters["unswapped"] += len(unswapped)
        return unswapped

    def _swap_in(self, ids: list[int], work: Work) -> list[int]:
        """Returns those that stay on the host."""
        find = self._requests.get
        asked = [(id, find(id)) for id in dict.fromkeys(ids)]
        stayed = [id for id, one in asked if one is None or not self.tables.swap_in(one, work)]
        self.counters["swapped_in"] += len(work.in_to)
        return stayed

    def _name_lenders(self, plan: Plan) -> None:
        """Notes in whose blocks others are to live by this plan."""
        for guest, host in zip(plan.embed_guests, plan.embed_hosts, strict=False):
            lender = self._requests.get(host)
            if lender is not None and guest in self._requests:
                self.tables.lenders[guest] = lender

    def _allocate(self, plan: Plan, dropped: set[int]) -> dict[int, int]:
        """Gives requests the blocks that the plan says. Returns who holds another number, and which, hosts of others
        and those whose entry was `dropped` included. A tail that is shared does not count: it will be copied."""
        short = {}
        for id, blocks in zip(plan.allocate_ids, plan.allocate_blocks, strict=False):
            request = self._requests.get(id)
            if request is not None:
                self.tables.resize(request, blocks)
                held = len(request.table) - request.shares_tail
                if held != blocks or id in dropped:
                    short[id] = held
        for id, host in self.tables.loans.resized.items():
            if self._requests.get(id) is host:
                short[id] = len(host.table)
        self.tables.loans.resized.clear()
        return short

    def _place_entries(
        self, plan: Plan, work: Work
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        """Gives every entry its blocks, drafts included. Returns ids, starts, counts of those that run, and ids of the
        others."""
        find, ripe = self._requests.get, self.tables.ripe
        table_at, table_counts = work.table_at, work.table_counts
        rejected = _misfits(plan)
        drafts = plan.drafts
        at, ahead = -1, 0
        for id, start, count in zip(plan.ids, plan.starts, plan.counts, strict=False):
            at += 1
            end = start + count
            request = find(id)
            if drafts and at < len(drafts):
                ahead = drafts[at]
            if (
                request is None
                or request.computed != start
                or not start < end <= request.length
                or (ahead and (count > 1 or end < request.length))
                or (rejected and at in rejected)
                or (end + ahead > request.capacity and not self._place(request, end + ahead, work))
            ):
                rejected.add(at)
                continue
            if end == request.length:
                request.length = end + 1 + ahead  # the worker samples a token
                if ahead:
                    request.unsettled.append((end, ahead))
                    end += ahead
            request.computed = end
            sent, blocks = request.sent, len(request.table)
            table_at.append(sent)
            table_counts.append(blocks - sent)
            if sent != blocks:
                work.table_blocks += request.table[sent:]
                request.sent = blocks
            if drafts:
                work.drafts.append(ahead)
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

    def _place(self, request: Request, end: int, work: Work) -> bool:
        """Gets the blocks for `end` tokens and, the first time, introduces the request to the worker."""
        if request.host or request.moving or not self.tables.grow(request, end, work):
            return False
        if not request.running or request.prompt is not None:
            _start(request, work)
        return True

    def _make_request(self, prompt: Prompt) -> Request:
        tokens = array("I", prompt.tokens)
        assert tokens.itemsize == 4
        root = root_key(prompt.salt)
        return Request(
            prompt.id, tokens, root, len(tokens), prompt, index_at=self.tables.first_index
        )


def _start(request: Request, work: Work) -> None:
    """Notes that the request runs from now on; the worker learns its tokens once, also across preemptions."""
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
    request.prompt, request.introduced = None, True


def _bears_out(there: Held, request: Request, drafts: int) -> bool:
    """Whether the worker holds what `request` is taken to have, of which at most `drafts` tokens may be missing."""
    known = min(len(there.host), len(request.host))
    same = not request.host or (known > 0 and there.host[:known] == request.host[:known])
    return there.computed >= request.computed - drafts and same


def _misfits(plan: Plan) -> set[int]:
    """Positions of entries that cannot be meant: the second of an id, and what the shorter columns lack."""
    ids = plan.ids
    told = min(len(plan.starts), len(plan.counts), len(plan.drafts) or len(ids))
    rejected = set(range(told, len(ids)))
    if len(set(ids)) != len(ids):
        seen: set[int] = set()
        for at, id in enumerate(ids):
            if id in seen:
                rejected.add(at)
            seen.add(id)
    return rejected
