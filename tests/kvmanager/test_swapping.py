"""KV on the host, blocks beyond need, and requests that live in those of others: one rule at a time."""

from __future__ import annotations

import pytest
from plan_maker import make_lookup, make_plan, make_prompt
from shadow_worker import ShadowWorker

from accelgen.kvmanager.core import KvCore
from accelgen.kvmanager.host_pool import HostPool
from accelgen.proto.messages import Batch, Held, Inventory, KvReport, Lookup

SIZE = 4


class Replica:
    """A core and a worker behind it. Copies linger until `done` is called, or a plan has no entries."""

    def __init__(self, num_blocks: int = 16, host_blocks: int = 16) -> None:
        self.core = KvCore(num_blocks, SIZE, host_blocks=host_blocks)
        self.worker = ShadowWorker(num_blocks, SIZE, host_blocks, forgives=True)
        self.moved: list[int] = []
        self.sampled: dict[int, list[int]] = {}
        self.batch: Batch | None = None
        self.step = 0

    def begin(self, id: int, tokens: int, **rest: list) -> KvReport:
        """A request whose whole prompt, of tokens of its own, is computed at once."""
        self.core.on_lookup(make_lookup(make_prompt(id, [id] * tokens)))
        return self.plan((id, 0, tokens), **rest)

    def plan(self, *entries: tuple[int, int, int], **rest: list) -> KvReport:
        self.step += 1
        self.batch, report = self.core.on_plan(make_plan(self.step, entries, **rest))
        result = self.worker.run(self.batch, linger=99)
        self.worker.audit()
        self.moved += result.moved
        tokens = iter(result.tokens)
        for id, count in zip(result.ids, result.counts, strict=True):
            self.sampled.setdefault(id, []).extend(next(tokens) for _ in range(count))
        assert self.core.check() == []
        return report

    def done(self) -> list[int]:
        """All copies are: what the next plan has to tell."""
        moved, self.moved = self.moved + self.worker.finish_copies(), []
        self.worker.audit()
        return moved

    def held(self, id: int) -> Held:
        return next(one for one in self.core.on_activate().held if one.id == id)

    def blocks(self, id: int) -> list[int]:
        """All that it holds, used or not."""
        return self.core._requests[id].table


def test_out_and_back() -> None:
    replica = Replica(num_blocks=4)
    replica.begin(1, 10)
    report = replica.plan((1, 10, 1))
    assert report.free == 1
    replica.core.on_lookup(make_lookup(make_prompt(2, [2] * 4)))
    report = replica.plan((2, 0, 4), swap_out=[1])
    assert (report.swapped_out, report.unswapped, report.leaving) == ([1], [], 3)
    assert (report.free, report.cached, report.host_free) == (0, 0, 13)
    assert replica.batch.out_ids == [1] and replica.batch.out_counts == [3]
    assert replica.held(1) == Held(1, 11, [], replica.batch.out_to)
    assert replica.plan((2, 4, 1)).dropped == [2]  # nobody gets what is leaving
    assert replica.plan((2, 4, 1), moved=replica.done()).dropped == []
    report = replica.plan(release=[2])
    assert report.leaving == 0 and report.free + report.cached == 4
    report = replica.plan(swap_in=[1])
    assert (report.stayed, report.host_free) == ([], 13)  # its place on the host is still kept
    assert replica.plan((1, 11, 1), moved=[]).dropped == [1]
    report = replica.plan((1, 11, 1), moved=replica.done())
    assert report.dropped == [] and report.host_free == 16
    assert replica.batch.table_at == [0] and len(replica.batch.table_blocks) == 3


def test_what_does_not_fit_on_the_host_is_dropped_and_said() -> None:
    replica = Replica(host_blocks=2)
    replica.begin(1, 10)
    report = replica.plan(swap_out=[1, 7])
    assert report.unswapped == [1, 7] and report.swapped_out == []
    assert replica.held(1).computed == 0 and report.leaving == 0
    assert replica.core.on_lookup(make_lookup(make_prompt(1, []))).hit_tokens == [8]


def test_who_does_not_fit_back_stays() -> None:
    replica = Replica(num_blocks=4)
    replica.begin(1, 10)
    replica.plan(swap_out=[1])
    replica.begin(2, 8, moved=replica.done())
    report = replica.plan(swap_in=[1])
    assert report.stayed == [1] and replica.batch.in_ids == []
    assert replica.plan(swap_in=[1], release=[2]).stayed == []


def test_it_takes_pins_to_come_back() -> None:
    """As any request that starts does: whoever only waits gives way."""
    replica = Replica(num_blocks=4)
    replica.begin(1, 10)
    replica.plan(swap_out=[1])
    replica.begin(2, 9, moved=replica.done())
    replica.plan(release=[2])
    replica.core.on_lookup(make_lookup(make_prompt(3, [2] * 9)))
    report = replica.plan(swap_in=[1])
    assert report.unpinned == [3] and report.stayed == []


def test_a_block_that_is_copied_away_may_be_copied_to_in_the_same_plan() -> None:
    """Of two forked siblings one begins to write, and copies the shared tail; the other one's pin is withdrawn for who
    comes back, and the tail is handed out."""
    replica = Replica(num_blocks=4, host_blocks=4)
    replica.begin(9, 8)
    replica.plan(swap_out=[9])
    family = [make_prompt(1, range(6)), make_prompt(2, range(6), parent=1)]
    replica.core.on_lookup(make_lookup(*family, make_prompt(3, range(6), parent=1)))
    replica.plan((1, 0, 6), moved=replica.done())
    forks = [(2, 1, 5), (3, 1, 5)]
    report = replica.plan((2, 5, 1), forks=forks, release=[1], swap_in=[9])
    assert report.unpinned == [3] and report.stayed == []
    assert {*replica.batch.copy_from} & {*replica.batch.in_to}
    assert replica.plan((2, 6, 1), moved=replica.done()).dropped == []


def test_a_prefix_that_leaves_can_be_hit() -> None:
    replica = Replica()
    replica.begin(1, 9)
    replica.plan(swap_out=[1])
    report = replica.core.on_lookup(make_lookup(make_prompt(2, [1] * 9)))
    assert report.hit_tokens == [8] and report.leaving == 1 and report.pinned == 0
    assert replica.plan((2, 8, 1), moved=replica.done()).dropped == []
    assert replica.core.on_lookup(make_lookup(make_prompt(1, [1] * 9))).away_ids == [1]


@pytest.mark.parametrize("how", ["release", "preempt", "adopt", "spoil"])
@pytest.mark.parametrize("back", [False, True])
def test_its_request_is_over_while_it_is_copied(how: str, back: bool) -> None:
    """The blocks on both sides stay reserved until the copy is done; what it brings is nobody's."""
    replica = Replica(num_blocks=4, host_blocks=4)
    replica.begin(1, 10)
    replica.plan(swap_out=[1])
    if back:
        told = replica.done()
        replica.core.on_lookup(make_lookup(make_prompt(9, [9])))
        replica.plan((9, 0, 1), moved=told, swap_in=[1])  # with an entry: nobody waits for it
        replica.plan(release=[9])
        replica.moved.clear()
    words: dict[str, list] = {"preempt": [1]} if how == "preempt" else {"release": [1]}
    if how == "adopt":
        replica.core.on_lookup(Lookup([make_prompt(1, [1] * 5)], adopt=True))
        words = {}
    if how == "spoil":
        words["spoiled"] = [1]
    report = replica.plan(**words)
    assert replica.core.check() == []
    assert report.leaving >= (3 if how != "adopt" else 2) and report.host_free == 1
    if how == "spoil":
        assert len(replica.core.tables.index) == 0
    replica.done()
    report = replica.plan(moved=[1])
    assert report.leaving == 0 and report.host_free == 4
    replica.core.on_lookup(make_lookup(make_prompt(2, [2] * 16)))
    assert replica.plan((2, 0, 16)).dropped == []


def test_one_copy_at_a_time() -> None:
    """Preempted while it goes out, computed again, and to go out again: the first copy has not been heard of."""
    replica = Replica()
    replica.begin(1, 8)
    replica.begin(2, 3, swap_out=[1])
    replica.plan((2, 3, 1), preempt=[1])
    replica.plan((1, 0, 8), (2, 4, 1))
    report = replica.plan((2, 5, 1), swap_out=[1])
    assert report.unswapped == [1] and replica.held(1).computed == 0
    assert replica.plan(moved=replica.done()).host_free == 16


def test_a_fork_of_what_is_away_fails() -> None:
    replica = Replica()
    prompts = [make_prompt(1, range(6)), make_prompt(2, range(6), parent=1)]
    replica.core.on_lookup(make_lookup(*prompts))
    replica.plan((1, 0, 6))
    replica.plan(swap_out=[1])
    assert replica.plan(forks=[(2, 1, 5)]).unpinned == [2]


def test_what_is_away_survives_a_takeover() -> None:
    replica = Replica()
    replica.begin(1, 10)
    replica.begin(2, 10)
    replica.plan(swap_out=[1])
    for core in (replica.core, KvCore(16, SIZE, host_blocks=16)):
        replica.core = core
        assert core.on_inventory(replica.worker.inventory()) == []
        assert replica.held(1).host == [0, 1, 2] and replica.held(2).computed == 10
        report = core.on_lookup(Lookup([make_prompt(1, [1] * 8)], adopt=True))
        assert (report.hit_tokens, report.away_ids, report.host_free) == ([7], [1], 14)
        assert core.check() == []
    replica.plan(swap_in=[1], release=[2])
    assert replica.plan((1, 7, 1), moved=replica.done()).dropped == []
    assert replica.batch.new[0].tokens == [1] * 8 and replica.batch.cut_to == []


def test_what_was_given_up_is_not_kept_after_all() -> None:
    """Two requests have computed the same in blocks of their own. One is looked up again, and shares the blocks of the
    other from then on; a new scheduler adopts it before the worker has heard of that. What the worker has for it is in
    blocks that are somebody else's by now."""
    replica = Replica(num_blocks=8)
    replica.core.on_lookup(make_lookup(make_prompt(1, [7] * 9), make_prompt(2, [7] * 9)))
    replica.plan((1, 0, 9), (2, 0, 9))
    for tokens in (9, 8):
        assert replica.core.on_inventory(replica.worker.inventory()) == []
        for id in (1, 2):
            replica.core.on_lookup(Lookup([make_prompt(id, [7] * tokens)], adopt=True))
        if tokens == 9:
            replica.core.on_lookup(make_lookup(make_prompt(2, [7] * 9)))
            assert {*replica.blocks(2)} <= {*replica.blocks(1)}
    replica.plan()
    assert dict(zip(replica.batch.cut_ids, replica.batch.cut_to, strict=True)) == {1: 7, 2: 0}
    replica.begin(3, 20)  # in whose place
    replica.core = KvCore(8, SIZE, host_blocks=16)
    assert replica.core.on_inventory(replica.worker.inventory()) == []
    assert replica.held(2).computed == 0


@pytest.mark.parametrize(
    "held",
    [
        Held(1, 9, [0, 1], [0]),  # on both sides
        Held(1, 9, [], [0, 1]),  # too few
        Held(1, 9, [], [0, 1, 4]),  # not there
        Held(1, 9, [], [0, 1, 1]),  # twice
    ],
)
def test_an_inventory_that_cannot_be_true(held: Held) -> None:
    core = KvCore(8, SIZE, host_blocks=4)
    assert core.on_inventory(Inventory(3, [held]))
    assert core.check() == [] and core.on_activate().held == [Held(1, 0, [])]


def test_what_the_worker_does_not_have_is_not_away() -> None:
    replica = Replica()
    replica.begin(1, 9)
    replica.plan(swap_out=[1])
    replica.core.on_inventory(Inventory(replica.step, [Held(1, 9, [], [4, 5, 6])]))
    assert replica.held(1) == Held(1, 0, []) and replica.core.tables.host.used == 0
    assert replica.core.check() == []


def test_what_a_copy_will_free() -> None:
    """Not what its request holds beyond use (that is free at once), nor what others share, nor what is borrowed."""
    replica = Replica(num_blocks=16)
    replica.begin(1, 10, allocate=[(1, 8)])
    report = replica.plan(swap_out=[1])
    assert (report.freeing, report.leaving, report.free) == ([3], 3, 13)
    replica.core.on_lookup(make_lookup(make_prompt(2, [2] * 9)))
    replica.plan((2, 0, 9), moved=replica.done())
    replica.core.on_lookup(make_lookup(make_prompt(3, [2] * 9)))
    assert replica.plan((3, 8, 1), (2, 9, 1)).dropped == []
    assert replica.plan((3, 9, 1), swap_out=[2]).freeing == [1]  # of 3, two are shared
    assert embedded(tokens=9).plan(swap_out=[2]).freeing == [0]  # all of its host


def test_a_grant_is_told_if_its_entry_was_dropped() -> None:
    """The scheduler takes the entry back, and with it what it has noted of the request's blocks."""
    replica = Replica(num_blocks=8)
    replica.begin(1, 6)
    report = replica.plan((1, 99, 1), allocate=[(1, 5)])
    assert report.dropped == [1] and len(replica.blocks(1)) == 5
    assert (report.short_ids, report.short_blocks) == ([1], [5])


def test_no_block_of_a_failed_request_can_be_hit() -> None:
    """Nor those that it left on the device when it went out, and that are nobody's since."""
    replica = Replica()
    replica.begin(1, 10)
    replica.plan(swap_out=[1])
    replica.plan(swap_in=[1], moved=replica.done())
    replica.plan((1, 10, 1), moved=replica.done())
    assert replica.core.on_lookup(make_lookup(make_prompt(2, [1] * 9))).hit_tokens == [8]
    report = replica.plan(release=[1], spoiled=[1])
    assert report.unpinned == [2]
    assert replica.core.on_lookup(make_lookup(make_prompt(3, [1] * 9))).hit_tokens == [0]


# --- beyond need -----------------------------------------------------------------------------------------------------


def test_blocks_ahead_of_need() -> None:
    replica = Replica(num_blocks=8)
    report = replica.begin(1, 6, allocate=[(1, 5)])
    assert report.free == 3 and report.short_ids == []
    replica.plan((1, 6, 1))
    assert len(replica.batch.table_blocks) == 3  # the worker hears of them with the next entry
    replica.plan((1, 7, 1))
    assert replica.batch.table_blocks == [] and replica.plan((1, 8, 1)).free == 3
    assert replica.plan(allocate=[(1, 99)]).short_blocks == [8]
    assert replica.plan(allocate=[(1, 0)]).short_blocks == [3]  # never fewer than it uses
    assert replica.plan((1, 9, 1)).free == 5
    assert replica.batch.table_at == [3]  # and the worker's table ends there
    assert replica.plan(release=[1]).leaving == 0 and replica.core.pool.used == 0


def test_only_what_is_used_is_swapped() -> None:
    replica = Replica(num_blocks=8)
    replica.begin(1, 6, allocate=[(1, 6)])
    report = replica.plan(swap_out=[1])
    assert (report.leaving, report.free) == (2, 6)
    assert replica.plan(moved=replica.done()).leaving == 0


# --- embedding -------------------------------------------------------------------------------------------------------


def embedded(tokens: int = 8) -> Replica:
    """Host 1 has 8 blocks and uses 2, guest 2 lives in the last of them; nobody else has any."""
    replica = Replica(num_blocks=8)
    replica.begin(1, 6, allocate=[(1, 8)])
    report = replica.begin(2, tokens, embed=[(2, 1)])
    assert report.dropped == [] and report.free == 0
    lent = -(-tokens // SIZE)
    assert (report.short_ids, report.short_blocks) == ([1], [8 - lent])
    assert replica.blocks(2) == replica.worker.requests[2].table
    return replica


def test_a_guest_lives_in_its_host_and_gives_back() -> None:
    replica = embedded()
    guests = replica.blocks(2)[:]
    assert replica.plan((2, 8, 1)).dropped == [2]  # not named again: there is nothing else
    assert replica.plan((2, 8, 1), embed=[(2, 1)]).dropped == []
    report = replica.plan((1, 6, 1), release=[2])
    assert (report.short_ids, report.short_blocks) == ([1], [8])
    assert {*guests} <= {*replica.blocks(1)} and report.free == report.cached == 0
    # What the guest computed is nobody's prefix any more: its host will write there.
    assert replica.core.on_lookup(make_lookup(make_prompt(3, [2] * 9))).hit_tokens == [0]
    for at in range(7, 32):
        assert replica.plan((1, at, 1)).dropped == []


def test_what_is_given_and_not_used_is_counted() -> None:
    replica = Replica(num_blocks=8)
    replica.begin(1, 6, allocate=[(1, 7)])
    assert replica.core.unused_blocks == 5
    replica.begin(2, 8, embed=[(2, 1)])
    loans = replica.core.tables.loans
    assert (loans.guests, loans.living_inside, replica.core.unused_blocks) == (1, 1, 3)
    replica.plan((2, 8, 1), embed=[(2, 1)])
    replica.plan((1, 6, 1), release=[2])
    assert (loans.guests, loans.living_inside, replica.core.unused_blocks) == (1, 0, 5)
    assert replica.core.counters["never_used"] == 0
    replica.plan(release=[1])
    assert (replica.core.counters["never_used"], replica.core.unused_blocks) == (5, 0)


def test_the_host_goes_first() -> None:
    replica = embedded()
    report = replica.plan((2, 8, 1), release=[1])
    assert report.dropped == [] and report.free + report.cached == 8 - 3
    assert not replica.core.tables.loans.any
    assert (
        replica.plan(release=[2]).cached == 3
    )  # its own by then: one of the host, two of its prefix


def test_the_host_gets_other_blocks_for_what_it_lent() -> None:
    replica = Replica(num_blocks=8)
    replica.begin(1, 6, allocate=[(1, 4)])
    replica.begin(2, 8, embed=[(2, 1)])
    assert len(replica.blocks(1)) == 2
    assert replica.plan((1, 6, 1), (1, 7, 1)).dropped == [1]  # (the second of an id)
    replica.plan((1, 7, 1))
    replica.plan((1, 8, 1))
    assert (
        len(replica.blocks(1)) == 3
        and len(replica.core.tables.loans.of(replica.core._requests[2]).blocks) == 1
    )
    replica.plan(release=[2])
    assert len(replica.blocks(1)) == 4


@pytest.mark.parametrize("how", ["preempt", "swap_out"])
def test_a_guest_is_preempted(how: str) -> None:
    replica = embedded()
    report = replica.plan(**{how: [2]})
    if how == "swap_out":
        assert report.leaving == 2 and len(replica.blocks(1)) == 6
        report = replica.plan(moved=replica.done())
    assert len(replica.blocks(1)) == 8 and (report.free, report.cached) == (0, 0)
    assert (report.short_ids, report.short_blocks) == ([1], [8])
    if how == "swap_out":  # back into its host
        assert replica.plan(swap_in=[2]).stayed == [2]
        assert replica.plan(swap_in=[2], embed=[(2, 1)]).stayed == []
        assert len(replica.blocks(1)) == 6
        assert replica.plan((2, 8, 1), moved=replica.done(), embed=[(2, 1)]).dropped == []


def test_the_host_is_swapped_out() -> None:
    replica = embedded()
    report = replica.plan((2, 8, 1), swap_out=[1])
    assert report.leaving == 2 and report.dropped == [] and not replica.core.tables.loans.any
    assert replica.plan(release=[2], moved=replica.done()).leaving == 0


def test_a_block_that_others_share_by_then_stays_with_them() -> None:
    replica = embedded(tokens=9)
    report = replica.core.on_lookup(make_lookup(make_prompt(3, [2] * 9)))
    assert report.hit_tokens == [8]  # in two blocks of the host
    report = replica.plan(release=[2])
    assert (report.short_blocks, report.pinned) == ([6], 2)
    assert replica.plan((3, 8, 1), embed=[(3, 1)]).dropped == []


@pytest.mark.parametrize("pair", [(2, 2), (2, 9), (1, 2), (3, 2), (2, 3)])
def test_who_cannot_lend(pair: tuple[int, int]) -> None:
    """Itself, nobody, a guest to its host, a guest to a third, who only waits."""
    replica = embedded()
    replica.core.on_lookup(make_lookup(make_prompt(3, [3] * 5)))
    guest = pair[0]
    entry = {1: (1, 6, 1), 2: (2, 8, 1), 3: (3, 0, 5)}[guest]
    assert replica.plan(entry, embed=[pair]).dropped == ([] if guest == 1 else [guest])


# --- the host's pool -------------------------------------------------------------------------------------------------


def test_the_pool_of_the_host() -> None:
    pool = HostPool(6)
    assert pool.take(3) == [0, 1, 2] and pool.free == 3
    pool.give_back([1, 0])
    assert pool.take(3) == [0, 1, 3] and pool.used == 4
    assert pool.check([0, 1, 2, 3]) == []
    assert pool.check([0, 1, 2]) and pool.check([0, 1, 2, 2]) and pool.check([0, 1, 2, 5])
    claimed = HostPool(4)
    claimed.claim([[2], []])
    assert claimed.take(3) == [0, 1, 3] and claimed.free == 0
