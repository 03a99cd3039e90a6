"""Blocks for drafts: reserved for all of them, and left to the request's next tokens when fewer were accepted, whatever
happens to it in between."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from random import Random

import pytest
from plan_maker import make_lookup, make_plan, make_prompt
from shadow_worker import VOCABULARY, ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Held, Inventory, StepResult

SIZE = 4


class Pair:
    """A core and a worker; `accepts` drafts of the next entries are accepted."""

    def __init__(self, blocks: int = 16, host_blocks: int = 0) -> None:
        self.core = KvCore(blocks, SIZE, True, host_blocks)
        self.worker = ShadowWorker(blocks, SIZE, host_blocks)
        self.accepts = 0
        self.worker.lucky = lambda id, drafts: self.accepts
        self.report = self.batch = None
        self.step = 0

    def plan(self, *entries: tuple[int, int, int], **rest: list) -> StepResult:
        self.step += 1
        self.batch, self.report = self.core.on_plan(make_plan(self.step, entries, **rest))
        result = self.worker.run(self.batch)
        assert self.core.check() == []
        return result

    def held(self, id: int) -> tuple[int, int]:
        """Computed tokens and blocks."""
        found = next(h for h in self.core.on_activate().held if h.id == id)
        return found.computed, len(found.blocks)


def begun(prompt: int = 7, blocks: int = 16) -> tuple[Pair, list[int]]:
    """A request whose prompt is computed, and its first token."""
    pair = Pair(blocks)
    pair.core.on_lookup(make_lookup(make_prompt(1, range(prompt))))
    return pair, pair.plan((1, 0, prompt)).tokens


def test_blocks_for_all_drafts_stay_for_the_next_tokens() -> None:
    pair, first = begun()
    pair.accepts = 2
    result = pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    assert pair.batch.drafts == [6] and pair.batch.starts == [7]
    assert len(result.tokens) == 3 and pair.held(1) == (14, 4)
    pair.plan(confirmed=[(1, result.tokens)])
    assert pair.held(1) == (
        10,
        3,
    )  # 7 of the prompt, its own and two accepted; one block is not used
    assert pair.core.pool.used == 4
    for start in range(10, 16):
        pair.plan((1, start, 1))
        assert pair.batch.table_at == [4] and pair.batch.table_blocks == []
    assert pair.held(1) == (16, 4) and pair.core.pool.used == 4


@pytest.mark.parametrize("accepted", range(5))
def test_an_entry_behind_one_in_flight(accepted: int) -> None:
    """Both are planned before anything of the first is known; the second starts at the upper bound."""
    pair, first = begun()
    pair.accepts = accepted
    one = pair.plan((1, 7, 1), drafts=[4], confirmed=[(1, first)])
    pair.accepts = 1
    two = pair.plan((1, 12, 1), drafts=[3])
    assert (len(one.tokens), len(two.tokens)) == (1 + accepted, 2)
    assert pair.held(1) == (16, 4)
    pair.plan(confirmed=[(1, one.tokens)])
    assert pair.held(1)[0] == 16 - (4 - accepted)
    pair.plan(confirmed=[(1, two.tokens)])
    assert pair.held(1)[0] == 7 + 1 + accepted + 1 + 1
    pair.plan((1, 10 + accepted, 1))
    assert not pair.report.dropped


def test_a_plain_entry_before_and_behind_one_with_drafts() -> None:
    pair, first = begun()
    pair.accepts = 0
    plain = pair.plan((1, 7, 1), confirmed=[(1, first)])
    draft = pair.plan((1, 8, 1), drafts=[4])
    behind = pair.plan((1, 13, 1), confirmed=[(1, plain.tokens)])
    assert pair.held(1)[0] == 14  # that was of the plain one: nothing is known of drafts yet
    pair.plan(confirmed=[(1, draft.tokens), (1, behind.tokens)])
    assert pair.held(1)[0] == 10
    pair.plan((1, 10, 1))
    assert not pair.report.dropped


def test_what_does_not_fit_with_its_drafts_is_dropped_whole() -> None:
    pair, first = begun(blocks=3)
    pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    assert pair.report.dropped == [1] and pair.held(1) == (7, 2) and pair.batch.drafts == []
    pair.plan((1, 7, 1), drafts=[4])
    assert not pair.report.dropped and pair.held(1) == (12, 3)


def test_drafts_for_what_does_not_decode_are_refused() -> None:
    pair = Pair()
    pair.core.on_lookup(make_lookup(make_prompt(1, range(7)), make_prompt(2, range(7))))
    pair.plan((1, 0, 3), (2, 0, 7), drafts=[1])  # one column is too short
    assert pair.report.dropped == [1, 2]
    pair.plan((1, 0, 3), (2, 0, 7), drafts=[1, 0])
    assert pair.report.dropped == [1] and pair.batch.drafts == [0]


def test_preempted_while_drafts_are_in_flight() -> None:
    pair, first = begun()
    pair.accepts = 1
    result = pair.plan((1, 7, 1), drafts=[5], confirmed=[(1, first)])
    pair.plan(preempt=[1])
    assert pair.held(1) == (0, 0)
    hit = pair.core.on_lookup(make_lookup(make_prompt(1, range(7)))).hit_tokens
    assert hit == [4]  # one full confirmed block
    known = 7 + 1 + len(result.tokens)
    pair.plan((1, 4, known - 4), confirmed=[(1, result.tokens)])
    assert not pair.report.dropped and pair.held(1) == (known, 3)


def test_only_confirmed_tokens_are_found_by_others() -> None:
    """Blocks that drafts have filled are in no prefix index before their tokens are known."""
    pair, first = begun(prompt=7)
    pair.accepts = 5
    result = pair.plan((1, 7, 1), drafts=[5], confirmed=[(1, first)])
    text = [*range(7), *first, *result.tokens]
    assert pair.core.on_lookup(make_lookup(make_prompt(2, [*text, 9]))).hit_tokens == [8]
    pair.plan((1, 13, 1), confirmed=[(1, result.tokens)])
    assert pair.core.on_lookup(make_lookup(make_prompt(3, [*text, 9]))).hit_tokens == [12]


def test_the_workers_word_settles_drafts() -> None:
    """A takeover while drafts are unsettled: what the worker has computed stands, and no more."""
    pair, first = begun()
    pair.accepts = 2
    pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    known = pair.worker.requests[1]
    blocks = known.table[: -(-(len(known.tokens) - 1) // SIZE)]
    inventory = Inventory(pair.step, [Held(1, len(known.tokens) - 1, blocks)])
    assert pair.core.on_inventory(inventory) == [] and pair.core.check() == []
    assert pair.held(1) == (10, 3)


def test_a_worker_that_lost_more_than_drafts_loses_all() -> None:
    pair, first = begun()
    pair.plan((1, 7, 1), drafts=[2], confirmed=[(1, first)])
    assert pair.core.on_inventory(Inventory(pair.step, [Held(1, 5, [0, 1])])) == []
    assert pair.held(1) == (0, 0) and pair.core.check() == []


@pytest.mark.parametrize("accepted", range(7))
def test_swapped_out_while_drafts_are_in_flight(accepted: int) -> None:
    """All that may be its KV goes to the host; when it is known what is, the host keeps the blocks of that alone."""
    pair = Pair(host_blocks=8)
    pair.core.on_lookup(make_lookup(make_prompt(1, range(7))))
    first = pair.plan((1, 0, 7)).tokens
    pair.accepts = accepted
    result = pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    moved = pair.plan(swap_out=[1]).moved
    assert pair.batch.out_counts == [4] and pair.core.pool.leaving == 4
    pair.plan(confirmed=[(1, result.tokens)], moved=moved)
    computed = 8 + accepted
    [held] = pair.core.on_activate().held
    assert (held.computed, held.blocks, len(held.host)) == (computed, [], -(-computed // SIZE))
    assert pair.core.tables.host.used == len(held.host) and pair.core.pool.used == 0
    moved = pair.plan(swap_in=[1]).moved
    pair.plan((1, computed, 1), moved=moved)  # the worker looks at all that it reads
    assert not pair.report.dropped and pair.held(1) == (computed + 1, -(-(computed + 1) // SIZE))
    assert pair.core.tables.host.used == 0


def test_the_workers_word_settles_drafts_on_the_host() -> None:
    pair = Pair(host_blocks=8)
    pair.core.on_lookup(make_lookup(make_prompt(1, range(7))))
    first = pair.plan((1, 0, 7)).tokens
    pair.accepts = 2
    pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    pair.plan(swap_out=[1])
    assert pair.core.on_inventory(pair.worker.inventory()) == [] and pair.core.check() == []
    [held] = pair.core.on_activate().held
    assert (held.computed, held.blocks, len(held.host)) == (10, [], 3)


def test_what_the_host_has_no_room_for_is_dropped_with_its_drafts() -> None:
    pair = Pair(host_blocks=3)
    pair.core.on_lookup(make_lookup(make_prompt(1, range(7))))
    first = pair.plan((1, 0, 7)).tokens
    result = pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)])
    pair.plan(swap_out=[1])
    assert pair.report.unswapped == [1] and pair.held(1) == (0, 0)
    pair.plan((1, 0, 9), confirmed=[(1, result.tokens)])
    assert not pair.report.dropped and pair.held(1) == (9, 3)


def test_a_guest_lives_in_what_drafts_have_left() -> None:
    """Blocks that were taken for drafts are lent only when nobody may still write there."""
    pair = Pair()
    pair.core.on_lookup(make_lookup(make_prompt(1, range(7)), make_prompt(2, range(20, 24))))
    first = pair.plan((1, 0, 7)).tokens
    result = pair.plan((1, 7, 1), drafts=[6], confirmed=[(1, first)], allocate=[(1, 5)])
    pair.plan((2, 0, 4), embed=[(2, 1)])
    assert (
        pair.batch.table_blocks == [4] and pair.core.pool.used == 5
    )  # the fifth: 14 tokens may lie in 4
    pair.plan(confirmed=[(1, result.tokens)], release=[2])
    pair.core.on_lookup(make_lookup(make_prompt(3, range(30, 38))))
    pair.plan((3, 0, 8), (1, 8, 1), drafts=[0, 2], embed=[(3, 1)])
    assert pair.report.dropped == [] and pair.core.pool.used == 5
    assert pair.held(1) == (11, 3) and pair.held(3) == (8, 2)


@dataclass
class Live:
    """What a scheduler knows of a request: as projected, and what has been confirmed."""

    prompt: int
    length: int
    computed: int = 0
    got: int = 0
    # of results that have not been seen: drafts planned; None for an entry without
    flights: deque[int] = field(default_factory=deque)


@pytest.mark.parametrize("seed", range(40))
def test_any_life_with_drafts(seed: int) -> None:
    """Plans one ahead, preemption, ends, memory pressure: no KV is read that is not the reader's own, the core's books
    are right at every step, and in the end nothing is held."""
    dice = Random(seed)
    blocks = dice.randint(12, 40)
    core, worker = KvCore(blocks, SIZE), ShadowWorker(blocks, SIZE)
    worker.lucky = lambda id, drafts: dice.randint(0, drafts)
    live: dict[int, Live] = {}
    results: deque[StepResult] = deque()
    confirmed: list[tuple[int, list[int]]] = []
    accepted = 0
    for step in range(120):
        if len(live) < 5 and dice.random() < 0.3:
            tokens = [dice.randrange(VOCABULARY) for _ in range(dice.randint(1, 12))]
            [hit] = core.on_lookup(make_lookup(make_prompt(step + 1, tokens))).hit_tokens
            live[step + 1] = Live(len(tokens), len(tokens), hit)
        while len(results) > dice.randint(0, 1):
            accepted += _take(results.popleft(), live, confirmed)
        ended = [id for id in live if dice.random() < 0.05]
        for id in ended:
            del live[id]
        confirmed = [item for item in confirmed if item[0] in live]
        preempt = [id for id, one in live.items() if one.computed and dice.random() < 0.05]
        entries, drafts = [], []
        for id, one in live.items():
            left = one.length - one.computed
            if id in preempt or dice.random() < 0.2:
                continue
            count = dice.randint(1, left)
            entries.append((id, one.computed, count))
            decodes = count == left == 1 and one.length > one.prompt
            drafts.append(dice.randint(0, 6) if decodes else 0)
        plan = make_plan(
            step, entries, confirmed, release=ended, preempt=preempt,
            drafts=drafts if dice.random() < 0.9 else [0] * len(drafts),
        )  # fmt: skip
        confirmed = []
        batch, report = core.on_plan(plan)
        core.settle()
        assert core.check() == []
        for id in [*preempt, *report.unpinned]:
            live[id].computed = 0
        for (id, _, count), ahead in zip(entries, plan.drafts, strict=True):
            if id in report.dropped:
                continue
            one = live[id]
            one.computed += count + ahead
            if one.computed - ahead == one.length:
                one.length += 1 + ahead
                one.flights.append(ahead)
        results.append(worker.run(batch))
        held = {h.id: h.computed for h in core.on_activate().held}
        assert held == {id: one.computed for id, one in live.items()}
    core.on_plan(make_plan(999, release=[*live]))
    assert core.check() == [] and core.pool.used == 0
    assert accepted > 5 and worker.reads > 200


def _take(result: StepResult, live: dict[int, Live], confirmed: list[tuple[int, list[int]]]) -> int:
    """A result arrives: what was projected too much is taken back. Returns how many drafts were accepted."""
    tokens, accepted = iter(result.tokens), 0
    for id, count in zip(result.ids, result.counts, strict=True):
        new = [next(tokens) for _ in range(count)]
        if id not in live or not count:
            continue
        one = live[id]
        drafts = one.flights.popleft()
        end = one.prompt + one.got + drafts  # computed behind that entry, all accepted
        rejected = drafts + 1 - count
        one.length -= rejected
        if one.computed >= end:
            one.computed -= rejected
        one.got += count
        confirmed.append((id, new))
        accepted += count - 1
    return accepted
