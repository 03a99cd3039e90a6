"""What the KV core promises, one rule at a time."""

from __future__ import annotations

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import given, settings
from plan_maker import make_lookup, make_plan, make_prompt
from shadow_worker import ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.proto.messages import Batch, Fork, KvReport, Lookup, Plan, Prompt

SIZE = 4


class Replica:
    """A core and a worker behind it; every Batch is executed at once and checked."""

    def __init__(self, num_blocks: int = 16, prefix_caching: bool = True) -> None:
        self.core = KvCore(num_blocks, SIZE, prefix_caching)
        self.worker = ShadowWorker(num_blocks, SIZE)
        self.batch: Batch | None = None
        self.sampled: dict[int, list[int]] = {}

    def look_up(self, *prompts: Prompt) -> KvReport:
        return self.core.on_lookup(make_lookup(*prompts))

    def plan(self, *entries: tuple[int, int, int], **rest: list) -> KvReport:
        self.batch, report = self.core.on_plan(make_plan(0, entries, **rest))
        result = self.worker.run(self.batch)
        tokens = iter(result.tokens)
        for id, count in zip(result.ids, result.counts, strict=True):
            self.sampled.setdefault(id, []).extend(next(tokens) for _ in range(count))
        assert self.core.check() == []
        return report

    def table(self, id: int) -> list[int]:
        return next(h.blocks for h in self.core.on_activate().held if h.id == id)

    def computed(self, id: int) -> int:
        return next(h.computed for h in self.core.on_activate().held if h.id == id)


def test_prompt_in_chunks_then_decodes() -> None:
    replica = Replica()
    assert replica.look_up(make_prompt(1, range(10))).hit_tokens == [0]
    report = replica.plan((1, 0, 6))
    assert (report.free, report.cached, report.pinned, report.dropped) == (14, 0, 0, [])
    assert replica.batch.new[0].tokens == list(range(10))
    assert (replica.batch.table_at, replica.batch.table_counts) == ([0], [2])
    replica.plan((1, 6, 4))
    assert replica.batch.new == []
    assert (replica.batch.table_at, replica.batch.table_counts) == ([2], [1])
    replica.plan((1, 10, 1))
    assert replica.batch.table_blocks == []
    replica.plan((1, 11, 1), confirmed=[(1, replica.sampled[1][:1])])
    replica.plan((1, 12, 1))
    assert (replica.batch.table_at, len(replica.batch.table_blocks)) == ([3], 1)
    replica.plan(release=[1])
    assert replica.batch.release == [1] and replica.core.pool.used == 0


def test_empty_plan_goes_round() -> None:
    core = KvCore(4, SIZE)
    batch, report = core.on_plan(make_plan(7))
    assert batch.step == report.step == 7
    assert (batch.predicted_s, batch.bound_s) == (0.01, 0.05)


def test_second_request_hits_what_the_first_computed() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(12)))
    replica.plan((1, 0, 12))
    report = replica.look_up(make_prompt(2, range(12)), make_prompt(3, [*range(8), 99, 99]))
    assert report.hit_tokens == [8, 8]  # never the last token of a prompt, only whole blocks
    replica.plan((2, 8, 4), (3, 8, 2))
    assert replica.table(2)[:2] == replica.table(3)[:2] == replica.table(1)[:2]


def test_hits_stop_before_the_last_token() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(8)))
    replica.plan((1, 0, 8))
    assert replica.look_up(make_prompt(2, range(8))).hit_tokens == [4]
    assert replica.look_up(make_prompt(3, range(9))).hit_tokens == [8]
    assert replica.look_up(make_prompt(4, range(4))).hit_tokens == [0]
    assert replica.look_up(make_prompt(5, [])).hit_tokens == [0]


def test_tenants_share_nothing() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(9), b"a"))
    replica.plan((1, 0, 9))
    report = replica.look_up(make_prompt(2, range(9), b"b"), make_prompt(3, range(9), b"a"))
    assert report.hit_tokens == [0, 8]


def test_cached_blocks_survive_release_and_are_evicted_last_first() -> None:
    replica = Replica(num_blocks=4)
    replica.look_up(make_prompt(1, range(13)))
    report = replica.plan((1, 0, 13))
    report = replica.plan(release=[1])
    assert (report.free, report.cached) == (1, 3)
    replica.look_up(make_prompt(2, [50] * 8))
    replica.plan((2, 0, 8))  # takes the free block and evicts the third of the prefix
    assert replica.look_up(make_prompt(3, range(13))).hit_tokens == [8]


def test_least_recently_used_prefix_goes_first() -> None:
    replica = Replica(num_blocks=4)
    for id in (1, 2):
        replica.look_up(make_prompt(id, [id] * 4))
        replica.plan((id, 0, 4))
    replica.plan(release=[1, 2])
    assert replica.look_up(make_prompt(3, [1] * 5)).hit_tokens == [4]
    replica.plan(release=[3])  # prefix 1 was used after prefix 2
    replica.look_up(make_prompt(4, [9] * 12))
    replica.plan((4, 0, 12))
    assert replica.look_up(make_prompt(5, [2] * 5)).hit_tokens == [0]
    assert replica.look_up(make_prompt(6, [1] * 5)).hit_tokens == [4]


def test_generated_tokens_enter_only_when_confirmed() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(6)))
    replica.plan((1, 0, 6))
    replica.plan((1, 6, 1))
    replica.plan((1, 7, 1))
    text = [*range(6), *replica.sampled[1]]
    assert replica.look_up(make_prompt(2, [*text, 5])).hit_tokens == [4]
    replica.plan((1, 8, 1), confirmed=[(1, replica.sampled[1])])
    assert replica.look_up(make_prompt(3, [*text, 5])).hit_tokens == [8]


def test_last_confirmed_tokens_are_indexed_although_the_request_ends() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(6)))
    for start, count in ((0, 6), (6, 1), (7, 1)):
        replica.plan((1, start, count))
    text = [*range(6), *replica.sampled[1]]
    assert replica.plan(confirmed=[(1, replica.sampled[1])], release=[1]).cached == 2
    assert replica.look_up(make_prompt(2, text)).hit_tokens == [8]


def test_prefix_caching_can_be_off() -> None:
    replica = Replica(prefix_caching=False)
    replica.look_up(make_prompt(1, range(9)))
    replica.plan((1, 0, 9))
    assert replica.look_up(make_prompt(2, range(9))).hit_tokens == [0]
    report = replica.plan(release=[1])
    assert (report.free, report.cached) == (16, 0)


def test_pins_are_withdrawn_newest_first_and_reported() -> None:
    replica = Replica(num_blocks=6)
    for id in (1, 2):
        replica.look_up(make_prompt(id, [id] * 8))
        replica.plan((id, 0, 8))
    replica.plan(release=[1, 2])
    report = replica.look_up(make_prompt(3, [1] * 9), make_prompt(4, [2] * 9))
    assert (report.free, report.cached, report.pinned) == (2, 0, 4)
    replica.look_up(make_prompt(5, [7] * 16))
    report = replica.plan((5, 0, 12))
    assert (report.unpinned, report.dropped) == ([4], [])
    assert replica.computed(3) == 8 and replica.computed(4) == 0
    report = replica.plan((4, 8, 1))  # it has nothing any more
    assert report.dropped == [4]
    report = replica.plan((3, 8, 1), release=[5])
    assert report.dropped == []


def test_own_pin_is_not_withdrawn_for_itself() -> None:
    replica = Replica(num_blocks=4)
    replica.look_up(make_prompt(1, range(8)))
    replica.plan((1, 0, 8), release=[])
    replica.plan(release=[1])
    replica.look_up(make_prompt(2, [5] * 8))
    replica.plan((2, 0, 8))
    replica.look_up(make_prompt(3, range(12)))
    report = replica.plan((3, 8, 4))
    assert report.dropped == [3] and report.unpinned == [] and replica.computed(3) == 8
    assert replica.plan((3, 8, 4), release=[2]).dropped == []


def test_hopeless_entry_takes_nobodys_pin() -> None:
    replica = Replica(num_blocks=4)
    replica.look_up(make_prompt(1, range(8)))
    replica.plan((1, 0, 8))
    replica.plan(release=[1])
    replica.look_up(make_prompt(2, range(9)), make_prompt(3, [1] * 100))
    report = replica.plan((3, 0, 100))
    assert report.dropped == [3] and report.unpinned == [] and report.pinned == 2


def test_entry_that_does_not_fit_is_dropped_whole() -> None:
    replica = Replica(num_blocks=3)
    replica.look_up(make_prompt(1, [1] * 8), make_prompt(2, [2] * 8))
    report = replica.plan((1, 0, 8), (2, 0, 8))
    assert report.dropped == [2] and report.free == 1
    assert replica.batch.ids == [1] and [prompt.id for prompt in replica.batch.new] == [1]
    assert replica.plan((2, 0, 8), release=[1]).dropped == []


def test_freed_blocks_serve_the_same_plan() -> None:
    replica = Replica(num_blocks=2)
    replica.look_up(make_prompt(1, [1] * 8), make_prompt(2, [2] * 8))
    replica.plan((1, 0, 8))
    assert replica.plan((2, 0, 8), preempt=[1]).dropped == []
    assert replica.plan((1, 0, 8), release=[2]).dropped == []


def test_dropped_entry_is_not_indexed() -> None:
    replica = Replica(num_blocks=2)
    replica.look_up(make_prompt(1, range(12)))
    assert replica.plan((1, 0, 12)).dropped == [1]
    assert replica.look_up(make_prompt(2, range(12))).hit_tokens == [0]


@pytest.mark.parametrize(
    "entry",
    [(9, 0, 1), (1, 0, 4), (1, 5, 1), (1, 4, 0), (1, 4, 5), (1, 4, 2**31 - 1), (1, 2**31 - 1, 1)],
)
def test_wrong_entry_is_dropped(entry: tuple[int, int, int]) -> None:
    """Unknown id, start behind and before what is computed, no tokens, more tokens than there are."""
    replica = Replica()
    replica.look_up(make_prompt(1, range(8)))
    replica.plan((1, 0, 4))
    report = replica.plan(entry)
    assert report.dropped == [entry[0]] and replica.batch.ids == []
    assert replica.plan((1, 4, 4)).dropped == []


def test_second_entry_of_an_id_is_dropped() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(8)))
    report = replica.plan((1, 0, 4), (1, 4, 4))
    assert report.dropped == [1] and replica.computed(1) == 4


def test_decode_may_be_planned_before_its_token_is_known_but_not_two() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(4)))
    replica.plan((1, 0, 4))
    assert replica.plan((1, 4, 1)).dropped == []
    assert replica.plan((1, 5, 2)).dropped == [1]


def test_preempted_request_resumes_with_its_whole_table() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(10)))
    replica.plan((1, 0, 10))
    replica.plan((1, 10, 1), confirmed=[(1, replica.sampled[1])])
    report = replica.plan(preempt=[1])
    assert (report.cached, replica.core.pool.used) == (2, 0)
    replica.plan((1, 0, 7))
    assert (replica.batch.new, replica.batch.table_at) == ([], [0])
    assert replica.plan((1, 7, 5)).dropped == []
    assert replica.sampled[1][-1] is not None


def test_preempted_request_can_be_looked_up_again() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(10)))
    replica.plan((1, 0, 10))
    replica.plan(preempt=[1])
    assert replica.look_up(make_prompt(1, [])).hit_tokens == [8]
    assert replica.plan((1, 8, 2)).dropped == []
    assert replica.look_up(make_prompt(1, range(10))).hit_tokens == [10]  # it runs: as it is


def test_fork_shares_and_copies_on_write() -> None:
    replica = Replica()
    prompts = [make_prompt(i, range(10), parent=(i > 1)) for i in (1, 2, 3)]
    report = replica.look_up(*prompts)
    assert report.hit_ids == [1]
    replica.plan((1, 0, 10))
    report = replica.plan((1, 10, 1), (2, 9, 1), (3, 9, 1), forks=[(2, 1, 9), (3, 1, 9)])
    assert report.dropped == [] and len(replica.batch.copy_to) == 2
    assert replica.table(1)[:2] == replica.table(2)[:2] == replica.table(3)[:2]
    assert len({replica.table(i)[2] for i in (1, 2, 3)}) == 3
    report = replica.plan(release=[1])
    assert report.free == 16 - 4
    assert replica.plan((2, 10, 1), (3, 10, 1)).dropped == []
    assert replica.plan(release=[2, 3]).free == 16 - 2


def test_last_owner_writes_without_a_copy() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(6)), make_prompt(2, range(6), parent=1))
    replica.plan((1, 0, 6))
    replica.plan((2, 5, 1), forks=[(2, 1, 5)], release=[1])
    assert replica.batch.copy_to == [] and replica.core.pool.used == 2


def test_a_tail_that_only_pins_share_needs_no_copy_once_they_have_given_way() -> None:
    """There is no fourth block; the other one that waits would be looked up again, and stand in the way for ever."""
    replica = Replica(num_blocks=3)
    replica.look_up(make_prompt(1, range(12)), make_prompt(2, range(12), parent=1))
    replica.plan((1, 0, 12))
    replica.plan(forks=[(2, 1, 11)], preempt=[1])
    assert replica.look_up(make_prompt(3, range(20))).hit_tokens == [12]
    report = replica.plan((2, 11, 1))
    assert (report.dropped, report.unpinned, replica.batch.copy_to) == ([], [3], [])


def test_block_written_by_its_last_owner_leaves_the_index() -> None:
    """The child goes on with other tokens than its parent did, in a block that the index knew."""
    replica = Replica()
    replica.look_up(make_prompt(1, [0, 1, 2, 3, 4]), make_prompt(2, [0, 1, 7, 8, 9], parent=1))
    replica.plan((1, 0, 5))
    replica.plan((2, 2, 2), forks=[(2, 1, 2)], release=[1])
    assert replica.look_up(make_prompt(3, [0, 1, 2, 3, 4])).hit_tokens == [0]
    assert replica.look_up(make_prompt(4, [0, 1, 7, 8, 9])).hit_tokens == [4]
    assert replica.plan((4, 4, 1)).dropped == []


def test_fork_at_a_block_border_needs_no_copy() -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(9)), make_prompt(2, range(9), parent=1))
    replica.plan((1, 0, 9))
    replica.plan((1, 9, 1), (2, 8, 1), forks=[(2, 1, 8)])
    assert replica.batch.copy_to == []


@pytest.mark.parametrize(
    "fork", [(2, 7, 5), (2, 1, 7), (2, 2, 3), (3, 1, 5), (4, 1, 5), (2, 1, 6), (9, 1, 5)]
)
def test_impossible_fork_leaves_the_child_with_nothing(fork: tuple[int, int, int]) -> None:
    """Parent unknown, too short, the child itself, of another tenant, with other tokens; the whole prompt; no child."""
    replica = Replica()
    replica.look_up(
        make_prompt(1, range(6)),
        make_prompt(2, range(6), parent=1),
        make_prompt(3, range(6), b"other", parent=1),
        make_prompt(4, [0, 1, 2, 3, 9, 9], parent=1),
    )
    replica.plan((1, 0, 6))
    report = replica.plan(forks=[fork])
    assert report.unpinned == [fork[0]]
    if fork[0] != 9:
        assert replica.plan((fork[0], 0, 6)).dropped == []


def test_release_in_any_state_and_of_unknown_ids() -> None:
    replica = Replica()
    for id in (1, 2, 3, 4):
        replica.look_up(make_prompt(id, range(9)))
    replica.plan((1, 0, 9))
    replica.look_up(make_prompt(2, range(9)))  # pinned now
    replica.plan(preempt=[1])
    replica.plan(release=[4, 3, 2, 1, 99, 1])
    assert replica.batch.release == [1]  # the only one the worker has seen
    assert replica.core.pool.used == 0 and replica.core.num_requests == 0


def test_worker_hears_tokens_confirmed_before_it_met_the_request() -> None:
    replica = Replica()
    replica.core.on_lookup(Lookup([Prompt(1, [1, 2, 3], generated=1)]))
    replica.plan(confirmed=[(1, [4, 5])])
    replica.plan((1, 0, 5))
    assert replica.batch.new[0].tokens == [1, 2, 3, 4, 5]
    assert replica.batch.new[0].generated == 3


@pytest.mark.parametrize("lost", ["gap", "columns", "too many"])
def test_after_lost_tokens_nothing_wrong_is_indexed(lost: str) -> None:
    replica = Replica()
    replica.look_up(make_prompt(1, range(6)))
    for start, count in ((0, 6), (6, 1), (7, 1), (8, 1)):
        replica.plan((1, start, count))
    first, *later = replica.sampled[1]
    if lost == "gap":
        replica.core.on_gap()
    elif lost == "columns":
        plan = make_plan(confirmed=[(1, [first])])
        plan.confirmed_counts.append(1)
        replica.core.on_plan(plan)
    else:
        later = [3] * 9
        replica.plan(confirmed=[(1, later)])
    replica.plan((1, 9, 1), confirmed=[(1, later)])
    assert replica.look_up(make_prompt(2, [*range(6), *later])).hit_tokens == [4]
    assert replica.plan((1, 10, 1)).dropped == []


def test_activation_tells_what_is_held() -> None:
    replica = Replica()
    assert replica.core.on_activate().step == -1
    replica.look_up(make_prompt(1, range(6)), make_prompt(2, range(3)))
    replica.core.on_plan(make_plan(5, [(1, 0, 6)]))
    inventory = replica.core.on_activate()
    assert inventory.step == 5 and (inventory.free, inventory.cached) == (14, 0)
    assert [(h.id, h.computed, h.blocks) for h in inventory.held] == [(1, 6, [0, 1]), (2, 0, [])]


IDS = st.integers(0, 6)
NUMBERS = st.one_of(st.integers(0, 12), st.integers(0, 2**31 - 1))
PLANS = st.builds(
    Plan,
    step=st.integers(0, 2**63 - 1),
    ids=st.lists(IDS),
    starts=st.lists(NUMBERS),
    counts=st.lists(NUMBERS),
    confirmed_ids=st.lists(IDS),
    confirmed_counts=st.lists(st.integers(0, 3)),
    confirmed_tokens=st.lists(NUMBERS),
    forks=st.lists(st.builds(Fork, IDS, IDS, NUMBERS)),
    release=st.lists(IDS),
    preempt=st.lists(IDS),
    copied=st.lists(IDS),
    predicted_s=st.just(0.0),
    bound_s=st.just(0.0),
    swap_out=st.lists(IDS),
    swap_in=st.lists(IDS),
    moved=st.lists(IDS),
    allocate_ids=st.lists(IDS),
    allocate_blocks=st.lists(NUMBERS),
    embed_guests=st.lists(IDS),
    embed_hosts=st.lists(IDS),
)
LOOKUPS = st.builds(
    Lookup,
    st.lists(st.builds(Prompt, IDS, st.lists(st.integers(0, 2**31 - 1), max_size=9), parent=IDS)),
    st.booleans(),
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(messages=st.lists(st.one_of(LOOKUPS, PLANS), max_size=12), num_blocks=st.integers(1, 9))
def test_any_well_typed_message_is_answered(messages: list[Lookup | Plan], num_blocks: int) -> None:
    core = KvCore(num_blocks, 2, host_blocks=num_blocks // 2)
    for message in messages:
        if isinstance(message, Lookup):
            answers: tuple = (core.on_lookup(message),)
        else:
            answers = core.on_plan(message)
        assert core.check() == []
        for answer in answers:  # and the answers keep to the limits of the wire
            wire = msgspec.msgpack.encode(answer)
            assert msgspec.msgpack.decode(wire, type=type(answer)) == answer


def test_a_tail_that_is_somebody_elses_is_not_counted_as_held() -> None:
    """The child of 6 tokens begins with a copy of the second block, for which there is none: it holds one block, and is
    not said to hold two. Else a scheduler would believe that it can run, and try in vain for ever."""
    core = KvCore(2, 4)
    core.on_lookup(make_lookup(make_prompt(1, range(7)), make_prompt(2, range(7), parent=1)))
    core.on_plan(make_plan(0, [(1, 0, 7)]))
    plan = make_plan(1, [(2, 6, 1)], forks=[(2, 1, 6)], allocate=[(2, 3)])
    _, report = core.on_plan(plan)
    assert report.dropped == [2]
    assert (report.short_ids, report.short_blocks) == ([2], [1])
    core.on_plan(make_plan(2, [], release=[1]))
    _, report = core.on_plan(make_plan(3, [(2, 6, 1)], allocate=[(2, 2)]))
    assert not report.dropped and not report.short_ids
    assert core.check() == []
