"""Random life of a KV core, valid and invalid, against a model of the rules and a worker that checks every KV read."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from plan_maker import make_lookup, make_plan, make_prompt
from shadow_worker import VOCABULARY, ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Batch, KvReport, Plan

TOKENS = st.integers(0, VOCABULARY - 1)
SALTS = st.sampled_from([b"", b"other tenant"])


@dataclass
class Expected:
    """What the rules say about one request."""

    tokens: list[int]
    salt: bytes
    length: int
    computed: int = 0
    parent: int = 0
    unconfirmed: list[int] = field(default_factory=list)  # sampled, not yet told to the core


class KvLife(RuleBasedStateMachine):
    """Plays scheduler and worker. At most two Batches are unexecuted, as with plans that run one ahead."""

    @initialize(
        num_blocks=st.integers(3, 24),
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

    @rule(data=st.data(), salt=SALTS, siblings=st.sampled_from([0, 0, 1, 3]))
    def submit(self, data: st.DataObject, salt: bytes, siblings: int) -> None:
        tokens = data.draw(st.lists(TOKENS, min_size=1, max_size=14))
        if self.requests and data.draw(st.booleans()):  # a prompt that begins like a known one
            other = self.requests[data.draw(st.sampled_from(list(self.requests)))]
            tokens = other.tokens[: data.draw(st.integers(0, len(other.tokens)))] + tokens
        parent = self.next_id
        prompts = [make_prompt(parent, tokens, salt)]
        prompts += [make_prompt(parent + i, tokens, salt, parent) for i in range(1, siblings + 1)]
        self.next_id += len(prompts)
        report = self.core.on_lookup(make_lookup(*prompts))
        for prompt in prompts:
            self.requests[prompt.id] = Expected(
                list(tokens), salt, len(tokens), parent=prompt.parent
            )
        assert report.hit_ids == [parent]
        self._take_hits(report)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def look_up_again(self, data: st.DataObject) -> None:
        id = data.draw(st.sampled_from(list(self.requests)))
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

    @precondition(lambda self: len(self.queue) < 2)
    @rule(data=st.data())
    def plan(self, data: st.DataObject) -> None:
        """A plan as a scheduler makes it."""
        some = st.lists(st.sampled_from(list(self.requests)), max_size=2, unique=True)
        release = data.draw(some) if self.requests and data.draw(st.booleans()) else []
        preempt = data.draw(some) if self.requests and data.draw(st.booleans()) else []
        forks = self._ready_forks()
        entries, demand = [], 0
        for id, expected in self.requests.items():
            start = 0 if id in preempt else dict((c, n) for c, _, n in forks).get(id, expected.computed)
            end = start
            if id not in release and data.draw(st.booleans()):
                room = expected.length - start
                count = room if data.draw(st.booleans()) else data.draw(st.integers(1, room))
                entries.append((id, start, count))
                end = start + count
            demand += -(-max(end, expected.computed) // self.core.block_size) + 1
        plan = self._make(data, entries, forks, release, preempt)
        report = self._apply(plan)
        if demand <= self.core.pool.num_blocks:  # it fits, whatever is shared
            assert not report.dropped and not report.unpinned

    def _ready_forks(self) -> list[tuple[int, int, int]]:
        forks = []
        for id, expected in self.requests.items():
            parent = self.requests.get(expected.parent)
            if parent is not None and parent.computed >= len(expected.tokens) and not expected.computed:
                forks.append((id, expected.parent, len(expected.tokens) - 1))
        for child, _, _ in forks:
            self.requests[child].parent = 0
        return forks

    def _make(
        self,
        data: st.DataObject,
        entries: list[tuple[int, int, int]],
        forks: list[tuple[int, int, int]],
        release: list[int],
        preempt: list[int],
    ) -> Plan:
        confirmed = []
        for id, expected in self.requests.items():
            if expected.unconfirmed and data.draw(st.integers(0, 4)):  # now and then later
                confirmed.append((id, expected.unconfirmed))
                expected.unconfirmed = []
        self.step += 1
        return make_plan(self.step, entries, confirmed, forks, release, preempt)

    @precondition(lambda self: len(self.queue) < 2)
    @rule(data=st.data())
    def garbage(self, data: st.DataObject) -> None:
        """A plan by somebody who has lost his mind, but cannot lie about tokens unnoticed."""
        ids = st.integers(0, self.next_id)
        numbers = st.one_of(st.integers(0, 20), st.just(2**31 - 1))
        rows = st.lists(st.tuples(ids, numbers, numbers), max_size=6)
        plan = self._make(
            data,
            data.draw(rows),
            data.draw(rows) if data.draw(st.booleans()) else [],
            data.draw(st.lists(ids, max_size=1)),
            data.draw(st.lists(ids, max_size=2)),
        )
        plan.ids.extend(data.draw(st.lists(ids, max_size=1)))
        plan.counts.extend(data.draw(st.lists(numbers, max_size=1)))
        match data.draw(st.sampled_from(["", "", "", "columns", "too many"])):
            case "columns":
                plan.confirmed_counts.append(3)
            case "too many" if self.requests:
                id = data.draw(st.sampled_from(list(self.requests)))
                if id in self.worker.requests:
                    plan.confirmed_ids.append(id)
                    plan.confirmed_counts.append(1000)
                    plan.confirmed_tokens.extend([5] * 1000)
        self._apply(plan)

    @rule()
    def lose_a_message(self) -> None:
        for expected in self.requests.values():
            expected.unconfirmed = []
        self.core.distrust()

    def _apply(self, plan: Plan) -> KvReport:
        """Lets the core apply the plan and follows the rules of the contract with the model."""
        batch, report = self.core.on_plan(plan)
        for id in plan.release:
            self.requests.pop(id, None)
        for fork in plan.forks:  # (a fork happens before releases; for what is left this is the same)
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
            expected.length += expected.computed == expected.length
        assert sorted(batch.ids + report.dropped) == sorted(plan.ids)
        assert report.step == batch.step == plan.step
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
    max_examples=150,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestKvLife = KvLife.TestCase
