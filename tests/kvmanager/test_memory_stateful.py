"""Random life of a KV core whose requests are swapped out and in, hold more blocks than they use, live in those of
others, and verify drafts: no request ever finds anything but its own KV, on the device or on the host, and no block is
lost.

What a scheduler could do at any moment of a copy is done at all of them: release, preempt, fork, adopt, swap again.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, currently_in_test_context, event, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from modelled import DICE, Modelled, ready_forks
from plan_maker import make_family, make_plan, make_prompt
from shadow_worker import VOCABULARY, ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Batch, KvReport, Lookup, Plan


@dataclass
class Expected(Modelled):
    """What the rules say about one request. `place`: here, out (on its way to the host), away, in (on its way back).
    `unconfirmed` has the tokens of each result that the core has not heard of, `flights` the drafts of each entry whose
    tokens it has not heard of."""

    place: str = "here"
    unconfirmed: list[list[int]] = field(default_factory=list)
    flights: list[int] = field(default_factory=list)

    def settle(self, tokens: list[int]) -> int:
        """The core hears of the oldest result. Returns how many drafts of it were not accepted."""
        known = len(self.tokens) - sum(map(len, self.unconfirmed))
        assert self.unconfirmed.pop(0) == tokens
        drafts = self.flights.pop(0)
        rejected = drafts + 1 - len(tokens)
        self.length -= rejected
        if self.computed >= known + drafts:
            self.computed -= rejected
        return rejected


class MemoryLife(RuleBasedStateMachine):
    """Plays scheduler and worker. At most two Batches are unexecuted, as with plans that run one ahead. `seen` counts
    what has happened, so that a test can tell whether all of it does."""

    seen: Counter[str] = Counter()

    @initialize(
        num_blocks=st.integers(4, 40),
        block_size=st.integers(1, 4),
        host_blocks=st.integers(0, 30),
        prefix_caching=st.sampled_from([True, True, False]),
        dice=DICE,
    )
    def begin(
        self,
        num_blocks: int,
        block_size: int,
        host_blocks: int,
        prefix_caching: bool,
        dice: Random,
    ) -> None:
        self.shape = (num_blocks, block_size, prefix_caching, host_blocks)
        self.core = KvCore(*self.shape)
        self.worker = ShadowWorker(num_blocks, block_size, host_blocks, forgives=True)
        luck = Random(num_blocks)
        self.worker.lucky = lambda id, drafts: luck.randint(0, drafts)
        self.requests: dict[int, Expected] = {}
        self.queue: list[Batch] = []
        self.moved: list[int] = []  # the worker has said so, the core has not heard of it
        self.next_id = 1
        self.step = 0
        for _ in range(3):
            self.submit(dice)
        self.plan(dice, 6)

    # --- arrivals ------------------------------------------------------------------------------------------------

    @rule(dice=DICE)
    def submit(self, dice: Random) -> None:
        tokens = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 14))]
        if self.requests and dice.random() < 0.6:  # a prompt that begins like a known one
            other = self.requests[dice.choice(list(self.requests))]
            tokens = other.tokens[: dice.randint(0, len(other.tokens))] + tokens[:3]
        salt, parent = dice.choice([b"", b"", b"other"]), self.next_id
        siblings = dice.choice([0, 0, 0, 2])
        prompts = make_family(parent, tokens, salt, siblings)
        self.next_id += len(prompts)
        for prompt in prompts:
            made = Expected(list(tokens), salt, len(tokens), parent=prompt.parent)
            self.requests[prompt.id] = made
        self._take_hits(self.core.on_lookup(Lookup(prompts)))

    @precondition(lambda self: self.requests)
    @rule(dice=DICE)
    def look_up_again(self, dice: Random) -> None:
        """As a scheduler does for those whose KV was dropped; whoever runs, is away or moves keeps what he has."""
        id = dice.choice(list(self.requests))
        expected = self.requests[id]
        before = expected.computed
        prompt = make_prompt(id, expected.tokens, expected.salt)
        self._take_hits(self.core.on_lookup(Lookup([prompt])))
        assert expected.place == "here" or expected.computed == before

    def _take_hits(self, report: KvReport) -> None:
        for id, hit in zip(report.hit_ids, report.hit_tokens, strict=True):
            expected = self.requests[id]
            assert hit <= expected.length
            assert (id in report.away_ids) == (expected.place in ("out", "away"))
            expected.computed = hit

    # --- plans ---------------------------------------------------------------------------------------------------

    @rule(dice=DICE, rounds=st.integers(1, 8))
    def plan(self, dice: Random, rounds: int) -> None:
        for _ in range(rounds):
            while len(self.queue) > dice.randint(0, 1):
                self._work(dice)
            self._plan_once(dice)

    def _plan_once(self, dice: Random) -> None:
        known = self.requests
        release = [id for id in known if dice.random() < 0.04]
        preempt = [id for id in known if dice.random() < 0.03]
        here = [id for id, one in known.items() if one.place == "here" and one.computed]
        away = [id for id, one in known.items() if one.place == "away"]
        forks = ready_forks(self.requests)
        forked = {child: computed for child, _, computed in forks}
        entries, drafts = [], {}
        for id, expected in known.items():
            if any(expected.flights):  # nobody knows yet how many tokens it has: it may only decode
                decodes = expected.computed == expected.length - 1 and expected.place == "here"
                if id not in preempt and decodes and dice.random() < 0.7:
                    entries.append((id, expected.computed, 1))
                    drafts[id] = dice.choice([0, dice.randint(0, 6)])
            elif dice.random() < (0.03 if expected.parent in known else 0.75):
                start = 0 if id in preempt else forked.get(id, expected.computed)
                room = expected.length - start
                entries.append((id, start, dice.choice([room, dice.randint(1, room)])))
                if room == 1 and id not in preempt:
                    drafts[id] = dice.choice([0, dice.randint(0, 6)])
        swap_out = [id for id in here if dice.random() < 0.12]
        if dice.random() < 0.9:  # mostly as a scheduler would
            entries = [entry for entry in entries if entry[0] not in swap_out]
        moved = [] if dice.random() < 0.2 else self.moved
        self.moved = [id for id in self.moved if id not in moved]
        everyone = list(known)
        embed = [(id, self._host_for(id, dice)) for id, _, _ in entries if dice.random() < 0.8]
        self.step += 1
        plan = make_plan(
            self.step,
            entries,
            self._confirmed(dice),
            forks,
            release,
            preempt,
            swap_out,
            swap_in=[id for id in away if dice.random() < 0.4 or id in moved],
            moved=moved,
            allocate=[
                (id, dice.choice([dice.randint(0, 8), 30]))
                for id in everyone
                if dice.random() < 0.25
            ],
            embed=embed,
            spoiled=[id for id in release if dice.random() < 0.3],
            drafts=[drafts.get(id, 0) for id, _, _ in entries] if any(drafts.values()) else [],
        )
        self._apply(plan)

    def _host_for(self, guest: int, dice: Random) -> int:
        """Mostly somebody who can lend, to one that lives with him already, if there is one."""
        core = self.core
        known, loans = core._requests, core.tables.loans
        able = [id for id in known if loans.spare(known[guest], known[id], core.block_size) > 0]
        return dice.choice(able if able and dice.random() < 0.9 else [*known])

    def _confirmed(self, dice: Random) -> list[tuple[int, list[int]]]:
        confirmed = []
        for id, expected in self.requests.items():
            if any(expected.flights) or dice.random() < 0.9:
                confirmed += [(id, tokens) for tokens in expected.unconfirmed]
        return confirmed

    @precondition(lambda self: len(self.queue) < 2)
    @rule(dice=DICE)
    def garbage(self, dice: Random) -> None:
        """A plan by somebody who has lost his mind. Only of copies he does not lie: nobody else could know better."""

        def ids(most: int) -> list[int]:
            return [dice.randint(0, self.next_id) for _ in range(dice.randint(0, most))]

        def settled(id: int) -> bool:
            return id not in self.requests or not any(self.requests[id].flights)

        self.step += 1
        plan = make_plan(
            self.step,
            [(id, dice.randint(0, 9), dice.randint(0, 9)) for id in ids(3) if settled(id)],
            preempt=ids(1),
            swap_out=ids(3),
            swap_in=ids(3),
            moved=[id for id in ids(2) if id not in self.core.tables.moves],
            allocate=[(id, dice.choice([0, 3, 2**31 - 1])) for id in ids(3)],
            embed=[*zip(ids(4), ids(4), strict=False)],
        )
        plan.allocate_ids.extend(ids(1))
        plan.embed_guests.extend(ids(1))
        self._apply(plan)

    def _apply(self, plan: Plan) -> KvReport:
        """Lets the core apply the plan and follows the rules of the contract with the model."""
        ties = self._ties()
        batch, report = self.core.on_plan(plan)
        self._count_ends(ties, plan, batch, report)
        known = self.requests
        confirmed = iter(plan.confirmed_tokens)
        for id, count in zip(plan.confirmed_ids, plan.confirmed_counts, strict=True):
            self.seen["rejected"] += known[id].settle([next(confirmed) for _ in range(count)])
        for id in plan.moved:
            if id in known and known[id].place in ("out", "in"):
                known[id].place = "away" if known[id].place == "out" else "here"
        for id in plan.release:
            known.pop(id, None)
        for fork in plan.forks:
            if fork.child in known:
                self._set(fork.child, fork.computed)
        for id in [*plan.preempt, *report.unswapped, *report.unpinned]:
            if id in known:
                self._set(id, 0)
        for id in batch.out_ids:
            assert known[id].place == "here" and known[id].computed
            self.seen["out with drafts in flight"] += any(known[id].flights)
            known[id].place = "out"
        drafts = batch.drafts or [0] * len(batch.ids)
        entries = zip(batch.ids, batch.starts, batch.counts, drafts, strict=True)
        for id, start, count, ahead in entries:
            expected = known[id]
            assert expected.place == "here", "runs while its KV is elsewhere"
            assert start == expected.computed and 0 < count <= expected.length - start
            expected.computed, expected.fresh = start + count, False
            assert not ahead or expected.computed == expected.length
            if expected.computed == expected.length:
                expected.length += 1 + ahead
                expected.computed += ahead
                expected.flights.append(ahead)
        for id in report.unpinned:  # by who came later in this plan
            if id in known:
                assert known[id].computed == 0 or id in batch.ids
        for id in batch.in_ids:
            assert known[id].place == "away"
            known[id].place = "in"
        assert {*report.swapped_out} == {*batch.out_ids}
        assert {*plan.swap_out} == {*report.swapped_out, *report.unswapped}
        assert {*plan.swap_in} == {*report.stayed, *batch.in_ids}
        assert sorted(batch.ids + report.dropped) == sorted(plan.ids)
        self._count(plan, batch, report)
        self.queue.append(batch)
        return report

    def _set(self, id: int, computed: int) -> None:
        self.requests[id].computed, self.requests[id].place = computed, "here"

    def _ties(self) -> list[tuple[int, int]]:
        """Who lives inside whom: (guest, host), copies that are under way left out."""
        loans = self.core.tables.loans
        return [(guest, loan.host.id) for guest, loan in loans._of_guest.items() if loan.host]

    def _count_ends(
        self, ties: list[tuple[int, int]], plan: Plan, batch: Batch, report: KvReport
    ) -> None:
        """What became of guests and hosts. Everybody's KV is compared behind it."""
        ran, ended = {*batch.ids}, {*plan.release}
        dropped = {*plan.preempt, *report.unswapped, *report.unpinned}
        ways = {"ran": ran, "ended": ended, "dropped": dropped, "went out": {*batch.out_ids}}
        for guest, host in ties:
            for way, ids in ways.items():
                self.seen[f"guest {way}"] += guest in ids
                self.seen[f"host {way}"] += host in ids
            self.seen["both ran"] += {guest, host} <= ran
            self.seen["both ended"] += {guest, host} <= ended
        self.seen["guest came back"] += len({*batch.in_ids} & {guest for guest, _ in self._ties()})

    def _count(self, plan: Plan, batch: Batch, report: KvReport) -> None:
        moves, loans = self.core.tables.moves, self.core.tables.loans
        self.seen.update(
            out=len(batch.out_ids),
            drafts=sum(batch.drafts),
            back=len(batch.in_ids),
            unswapped=len(report.unswapped),
            stayed=len(report.stayed),
            abandoned=sum(move.request is None for move in moves.under_way.values()),
            lent=loans.lent,
            returned=loans.returned,
            loans_on_the_way=sum(move.loan is not None for move in moves.under_way.values()),
            beyond_need=sum(
                len(request.table) > -(-request.computed // self.core.block_size)
                for request in self.core._requests.values()
            ),
        )

    # --- worker --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.queue)
    @rule(dice=DICE)
    def work(self, dice: Random) -> None:
        self._work(dice)

    def _work(self, dice: Random) -> None:
        result = self.worker.run(self.queue.pop(0), linger=dice.randint(0, 3))
        self.worker.audit()
        self.moved += result.moved
        tokens = iter(result.tokens)
        for id, count in zip(result.ids, result.counts, strict=True):
            new = [next(tokens) for _ in range(count)]
            if new and id in self.requests:
                self.requests[id].tokens += new
                self.requests[id].unconfirmed.append(new)

    # --- a new scheduler -------------------------------------------------------------------------------------------

    @rule(dice=DICE, kv_dies=st.booleans(), batches_are_lost=st.booleans())
    def take_over(self, dice: Random, kv_dies: bool, batches_are_lost: bool) -> None:
        """The journals have what was sampled, or a little less; some requests have ended meanwhile."""
        self.seen["takeover with guests"] += bool(self._ties())
        if batches_are_lost:
            self.queue.clear()
        while self.queue:
            self._work(dice)
        if kv_dies:
            self.core = KvCore(*self.shape)
        assert self.core.on_inventory(self.worker.inventory()) == []
        assert self.core.check() == []
        inventory = self.core.on_activate()
        held = {one.id: one for one in inventory.held}
        assert all(not (one.host and one.blocks) for one in inventory.held)
        self.moved = []
        gone = [id for id in held if id not in self.requests or dice.random() < 0.1]
        for id in gone:
            self.requests.pop(id, None)
        for id, expected in self.requests.items():
            if len(expected.tokens) > 1 and dice.random() < 0.3:
                expected.tokens.pop()
            self._claim(id, expected, held[id].computed if id in held else 0)
        self._apply(make_plan(self.step + 1, release=gone))
        self.step += 1

    def _claim(self, id: int, expected: Expected, computed: int) -> None:
        prompt = make_prompt(id, expected.tokens, expected.salt)
        report = self.core.on_lookup(Lookup([prompt], adopt=True))
        expected.length, expected.unconfirmed = len(expected.tokens), []
        expected.flights = []
        [expected.computed] = report.hit_tokens
        expected.place = "away" if report.away_ids else "here"
        expected.parent, expected.fresh = 0, False
        keep = min(computed, len(expected.tokens) - 1)
        assert expected.computed >= keep, "KV was lost in a takeover"
        self.seen["claimed away"] += bool(report.away_ids)

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "core"):
            return
        assert self.core.check() == []
        core, pool, host = self.core, self.core.pool, self.core.tables.host
        inventory = core.on_activate()
        held = {one.id: one.computed for one in inventory.held}
        assert held == {id: expected.computed for id, expected in self.requests.items()}
        places = {one.id: bool(one.host) for one in inventory.held}
        assert places == {id: one.place in ("out", "away") for id, one in self.requests.items()}
        tables = {block for one in core._requests.values() for block in one.table}
        leaving = {block for move in core.tables.moves.under_way.values() for block in move.blocks}
        assert pool.free + pool.cached + len(tables | leaving) == pool.num_blocks
        assert pool.leaving == len(leaving - tables)
        assert host.free + host.used == host.num_blocks
        if (guests := len(self._ties())) and currently_in_test_context():
            event(f"{min(guests, 3)} guests")

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        dice = Random(0)
        while self.queue:
            self._work(dice)
        self._apply(make_plan(self.step + 1, release=list(self.requests)))
        self._work(dice)
        self.moved += self.worker.finish_copies()
        self._apply(make_plan(self.step + 2, moved=self.moved))
        self._work(dice)
        assert self.core.check() == []
        assert self.core.pool.used == self.core.tables.host.used == 0
        assert not self.worker.requests and not self.core.tables.loans.any


MemoryLife.TestCase.settings = settings(
    derandomize=True,
    max_examples=150,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestMemoryLife = pytest.mark.timeout(600)(MemoryLife.TestCase)


def test_everything_happens() -> None:
    """The machine above would prove little if copies, loans and allocations never met. Plain dice: no shrinking."""
    MemoryLife.seen.clear()
    for seed in range(100):
        dice, life = Random(seed), MemoryLife()
        life.begin(dice.randint(10, 30), dice.randint(1, 4), dice.randint(5, 30), True, dice)
        for _ in range(25):
            life.submit(dice)
            life.plan(dice, 3)
            life.is_sound()
            if dice.random() < 0.05:
                life.take_over(dice, dice.random() < 0.5, dice.random() < 0.5)
        life.teardown()
    seen = MemoryLife.seen
    missing = [name for name, count in seen.items() if count < 3]
    assert not missing and len(seen) == 25, seen
    assert seen["guest ran"] > 300 and seen["both ran"] > 200, seen
