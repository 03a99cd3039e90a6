"""Random life of a KV core, valid and invalid, against a model of the rules and a worker that checks every KV read."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from modelled import DICE, Modelled, ready_forks
from plan_maker import make_family, make_lookup, make_plan, make_prompt
from shadow_worker import VOCABULARY, ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Batch, KvReport, Plan


@dataclass
class Expected(Modelled):
    """What the rules say about one request."""

    unconfirmed: list[int] = field(default_factory=list)  # sampled, not yet told to the core


class KvLife(RuleBasedStateMachine):
    """Plays scheduler and worker. At most two Batches are unexecuted, as with plans that run one ahead."""

    @initialize(
        num_blocks=st.integers(3, 40),
        block_size=st.integers(1, 4),
        prefix_caching=st.sampled_from([True, True, True, False]),
    )
    def begin(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.core = KvCore(num_blocks, block_size, prefix_caching)
        self.worker = ShadowWorker(num_blocks, block_size)
        self.requests: dict[int, Expected] = {}
        self.queue: list[Batch] = []
        self.next_id = 1
        self.step = 0

    # --- arrivals ------------------------------------------------------------------------------------------------

    @rule(dice=DICE)
    def submit(self, dice: Random) -> None:
        tokens = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 14))]
        if self.requests and dice.random() < 0.7:  # a prompt that begins like a known one
            other = self.requests[dice.choice(list(self.requests))]
            tokens = (
                other.tokens[: dice.randint(0, len(other.tokens))] + tokens[: dice.randint(1, 4)]
            )
        salt = dice.choice([b"", b"", b"other tenant"])
        parent, siblings = self.next_id, dice.choice([0, 0, 1, 3])
        prompts = make_family(parent, tokens, salt, siblings)
        self.next_id += len(prompts)
        report = self.core.on_lookup(make_lookup(*prompts))
        for prompt in prompts:
            self.requests[prompt.id] = Expected(
                list(tokens), salt, len(tokens), parent=prompt.parent
            )
        assert report.hit_ids == [parent]
        self._take_hits(report)

    @precondition(lambda self: self.requests)
    @rule(dice=DICE)
    def look_up_again(self, dice: Random) -> None:
        id = dice.choice(list(self.requests))
        expected = self.requests[id]
        report = self.core.on_lookup(make_lookup(make_prompt(id, expected.tokens, expected.salt)))
        assert report.hit_ids == [id]
        self._take_hits(report)

    def _take_hits(self, report: KvReport) -> None:
        size = self.core.block_size
        for id, hit in zip(report.hit_ids, report.hit_tokens, strict=True):
            expected = self.requests[id]
            if hit != expected.computed:  # a running request keeps what it has
                assert hit % size == 0 and hit < len(expected.tokens)
            assert self.core.prefix_caching or hit == expected.computed or hit == 0
            expected.computed = hit

    # --- plans ---------------------------------------------------------------------------------------------------

    @rule(dice=DICE, rounds=st.integers(1, 8))
    def plan(self, dice: Random, rounds: int) -> None:
        """Plans as a scheduler makes them."""
        for _ in range(rounds):
            while len(self.queue) > dice.randint(0, 1):
                self.work()
            self._plan_once(dice)

    def _plan_once(self, dice: Random) -> None:
        release = [id for id in self.requests if dice.random() < 0.05]
        preempt = [id for id in self.requests if dice.random() < 0.03]
        forks = ready_forks(self.requests)
        forked = {child: computed for child, _, computed in forks}
        entries, demand = [], 0
        for id, expected in self.requests.items():
            start = 0 if id in preempt else forked.get(id, expected.computed)
            waits = expected.parent in self.requests
            end = start
            if id not in release and dice.random() < (0.05 if waits else 0.8):
                room = expected.length - start
                count = dice.choice([room, dice.randint(1, room)])
                entries.append((id, start, count))
                end = start + count
            demand += -(-max(end, expected.computed) // self.core.block_size) + 1
        dice.shuffle(entries)
        plan = self._make(dice, entries, forks, release, preempt)
        report = self._apply(plan)
        if demand <= self.core.pool.num_blocks:  # it fits, whatever is shared
            assert not report.dropped and not report.unpinned

    def _make(
        self,
        dice: Random,
        entries: list[tuple[int, int, int]],
        forks: list[tuple[int, int, int]],
        release: list[int],
        preempt: list[int],
    ) -> Plan:
        confirmed = []
        for id, expected in self.requests.items():
            if expected.unconfirmed and dice.random() < 0.9:  # now and then later
                confirmed.append((id, expected.unconfirmed))
                expected.unconfirmed = []
        self.step += 1
        return make_plan(self.step, entries, confirmed, forks, release, preempt)

    @precondition(lambda self: len(self.queue) < 2)
    @rule(dice=DICE)
    def garbage(self, dice: Random) -> None:
        """A plan by somebody who has lost his mind, but cannot lie about tokens unnoticed."""

        def ids(most: int) -> list[int]:
            return [dice.randint(0, self.next_id) for _ in range(dice.randint(0, most))]

        def number() -> int:
            return dice.choice([dice.randint(0, 20), dice.randint(0, 3), 2**31 - 1])

        entries = [(id, number(), number()) for id in ids(6)]
        for id in ids(3):  # nearly right ones
            if id in self.requests:
                entries.append((id, self.requests[id].computed, dice.randint(0, 4)))
                entries.append((id, sum(entries[-1][1:]), 1))  # a second of the same
        forks = [(child, parent, number()) for child, parent in zip(ids(2), ids(2), strict=False)]
        for child, parent in zip(ids(4), self.requests, strict=False):
            forks.append((child, parent, dice.randint(0, self.requests[parent].computed)))
        plan = self._make(dice, entries, forks, ids(1), ids(1))

        plan.ids.extend(ids(1))
        plan.counts.extend(ids(1))
        match dice.randrange(6):
            case 0:
                plan.confirmed_counts.append(3)
            case 1 if self.worker.requests:
                plan.confirmed_ids.append(dice.choice(list(self.worker.requests)))
                plan.confirmed_counts.append(1000)
                plan.confirmed_tokens.extend([5] * 1000)
        self._apply(plan)

    @rule()
    def lose_a_message(self) -> None:
        for expected in self.requests.values():
            expected.unconfirmed = []
        self.core.on_gap()

    def _apply(self, plan: Plan) -> KvReport:
        """Lets the core apply the plan and follows the rules of the contract with the model."""
        batch, report = self.core.on_plan(plan)
        for id in plan.release:
            self.requests.pop(id, None)
        for (
            fork
        ) in plan.forks:  # (a fork happens before releases; for what is left this is the same)
            if fork.child in self.requests:
                self.requests[fork.child].computed = fork.computed
        for id in plan.preempt:
            if id in self.requests:
                self.requests[id].computed = 0
        for id in report.unpinned:
            if id in self.requests:
                self.requests[id].computed = 0
        for id, start, count in zip(batch.ids, batch.starts, batch.counts, strict=True):
            expected = self.requests[id]
            assert start == expected.computed and 0 < count <= expected.length - start
            expected.computed = start + count
            expected.fresh = False
            expected.length += expected.computed == expected.length
        assert sorted(batch.ids + report.dropped) == sorted(plan.ids)
        assert report.step == batch.step == plan.step
        assert (report.free, report.cached) == (self.core.pool.free, self.core.pool.cached)
        assert report.pinned <= self.core.pool.used
        self.queue.append(batch)
        return report

    # --- worker --------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.queue)
    @rule()
    def work(self) -> None:
        result = self.worker.run(self.queue.pop(0))
        tokens = iter(result.tokens)
        for id, count in zip(result.ids, result.counts, strict=True):
            for _ in range(count):
                token = next(tokens)
                if id in self.requests:
                    self.requests[id].tokens.append(token)
                    self.requests[id].unconfirmed.append(token)

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "core"):
            return
        assert self.core.check() == []
        inventory = self.core.on_activate()
        assert inventory.free == self.core.pool.free and inventory.cached == self.core.pool.cached
        held = {held.id: held.computed for held in inventory.held}
        assert held == {id: expected.computed for id, expected in self.requests.items()}

    def teardown(self) -> None:
        if not hasattr(self, "core"):
            return
        while self.queue:
            self.work()
        self._apply(make_plan(0, release=list(self.requests)))
        self.work()
        self.is_sound()
        assert self.core.pool.used == 0 and not self.worker.requests


KvLife.TestCase.settings = settings(
    # fixed seed: a failure is the same for everyone
    derandomize=True,
    max_examples=100,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestKvLife = pytest.mark.timeout(600)(KvLife.TestCase)  # when it fails, shrinking takes minutes
