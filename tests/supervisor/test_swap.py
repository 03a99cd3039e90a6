"""A planned change of the scheduler, driven by hand: what is done when, and what a failure at each stage means."""

from __future__ import annotations

import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from accelgen.proto.messages import (
    Assume,
    Directory,
    Failure,
    Handoff,
    Heartbeat,
    Prepare,
    Role,
    Swap,
    Swapped,
    Yield,
)
from accelgen.proto.policies import InOffice, in_office
from accelgen.supervisor.members import Assignment, Seat
from accelgen.supervisor.spare import QUIET_S
from accelgen.supervisor.swap import ASSUME_S, PREPARE_S, PROBATION_S, RETIRE_S, YIELD_S

sys.path.insert(0, str(Path(__file__).parent))
from test_supervisor_core import SCHEDULER, WORKER, Bench

NEW = Seat(Role.SCHEDULER, 1)


class Changing(Bench):
    """A ready server that has been asked for another policy, with a spare or (still) without."""

    def __init__(self, dry_run: bool = False, spare: bool = True, asked: bool = True) -> None:
        super().__init__()
        self.get_ready()
        if spare:
            self.stand_by(NEW)
        if asked:
            self.ask(dry_run)

    def ask(self, dry_run: bool = False, ticket: int = 0) -> None:
        self.says(WORKER, Swap("other", {"x": 1}, dry_run, ticket), peer=b"client")
        self.tick()

    def office(self) -> InOffice:
        return in_office(self.core.directory(self.now_s))

    def answers(self) -> list[Swapped]:
        return [send.body for send in self.sent if isinstance(send.body, Swapped)]

    def orders(self, seat: Seat) -> list[object]:
        """What this scheduler has been told."""
        kinds = (Prepare, Assume, Yield)
        mine = [send for send in self.sent if send.peer == self.peer(seat)]
        return [send.body for send in mine if isinstance(send.body, kinds)]

    def become(self, seat: Seat, phase: str) -> None:
        if phase == "yielded":
            self.says(seat, Handoff(b"learnt"))
        self.beat(seat, phase)
        self.tick()

    def go_through(self) -> None:
        for seat, phase in ((NEW, "prepared"), (SCHEDULER, "yielded"), (NEW, "ready")):
            self.become(seat, phase)

    def wait(self, seconds: float) -> None:
        for _ in range(10):
            for occupant in self.core.occupants.values():
                if occupant.alive:
                    self.beat(occupant.seat, occupant.phase, bound_s=60.0)
            self.tick(seconds / 10)


def test_step_by_step() -> None:
    bench = Changing()
    assert bench.orders(NEW) == [Prepare("other", {"x": 1})]
    assert bench.core.ready and not bench.told(Yield)
    bench.become(NEW, "prepared")
    assert bench.told(Yield) == [bench.peer(SCHEDULER)]
    assert len(bench.orders(NEW)) == 1
    bench.become(SCHEDULER, "yielded")
    assert bench.core.ready and bench.orders(NEW)[1:] == [Assume(2, b"learnt")]
    assert not bench.answers()
    bench.become(NEW, "ready")
    [answer] = bench.answers()
    assert answer.done and "has taken over in epoch 2" in answer.line
    assert bench.core.ready and bench.core.facts["policy"] == "other"
    assert bench.core.occupants[NEW].epoch == 2 and not bench.signals


def test_the_memory_policy_stays_unless_another_one_is_named() -> None:
    bench = Changing()
    chosen = bench.core.office.assignment = Assignment("first", {}, "cacheopt", {"reserve": 7})
    bench.core.office.exchange = None
    bench.ask()
    assert bench.orders(NEW)[-1] == Prepare("other", {"x": 1}, "cacheopt", {"reserve": 7})
    bench.go_through()
    assert bench.core.office.before == chosen
    assert bench.core.facts["memory"] == "cacheopt"
    assert bench.core.facts["memory_params"] == {"reserve": 7}
    named = Swap("other", {}, memory="on-demand", memory_params={"x": 1})
    assert bench.core.office._aim(named) == Assignment("other", {}, "on-demand", {"x": 1})
    assert bench.core.office._aim(Swap("b", {"y": 2})) == Assignment(
        "b", {"y": 2}, "cacheopt", {"reserve": 7}
    )


def test_the_routing_stays_unless_another_one_is_named() -> None:
    bench = Changing()
    chosen = Assignment("first", {"z": 3}, routing="round-robin")
    bench.core.office.assignment, bench.core.office.exchange = chosen, None
    bench.ask()
    assert bench.orders(NEW)[-1] == Prepare("other", {"x": 1}, routing="round-robin")
    bench.go_through()
    assert bench.core.facts["routing"] == "round-robin"
    assert bench.office().routing == "round-robin"
    named = Swap("", {}, routing="prefix-affinity:share=0.5")
    assert bench.core.office._aim(named) == Assignment(
        "other", {"x": 1}, routing="prefix-affinity:share=0.5"
    )


def says_which(bench: Changing, seat: Seat, memory: str) -> None:
    """The scheduler of this seat is ready, and tells its memory policy."""
    gauges = {f'accelgen:scheduler_memory_info{{memory="{memory}"}}': 1.0}
    bench.says(seat, Heartbeat(3, "ready", 5.0, 2**20, gauges))
    bench.tick()


@pytest.mark.parametrize(
    ("swap", "tells", "line"),
    [
        (Swap("", {}, memory="cacheopt", memory_params={"reserve": 7}), "cacheopt",
         "memory policy cacheopt:reserve=7 in place of on-demand: has taken over in epoch 2, "),
        (Swap("", {}, routing="round-robin"), "on-demand",
         "routing round-robin in place of planned: has taken over in epoch 2, "),
        (Swap("cacheopt", {"chunk_size": 64}), "cacheopt",
         "policy cacheopt:chunk_size=64 in place of vllm, memory policy cacheopt in place of on-demand: has"),
        (Swap("vllm", {}), "on-demand", "policy vllm anew: has taken over in epoch 2, "),
        (Swap("", {}, dry_run=True, memory="cacheopt"), "",
         "memory policy cacheopt in place of on-demand: could take over now"),
    ],
)  # fmt: skip
def test_the_line_says_what_was_changed_from_and_to(swap: Swap, tells: str, line: str) -> None:
    bench = Changing(asked=False)
    bench.core.office.assignment = Assignment("vllm")
    says_which(bench, SCHEDULER, "on-demand")
    bench.says(WORKER, swap, peer=b"client")
    bench.tick()
    bench.become(NEW, "prepared")
    if not swap.dry_run:
        bench.become(SCHEDULER, "yielded")
        says_which(bench, NEW, tells)
    assert bench.answers()[-1].line.startswith(line)


def test_before_the_scheduler_tells_its_memory_policy_is_that_of_the_policy() -> None:
    bench = Changing(asked=False)
    bench.says(WORKER, Swap("", {}, memory="cacheopt"), peer=b"client")
    bench.tick()
    bench.go_through()
    words = "memory policy cacheopt in place of the one of the policy: has taken over"
    assert bench.answers()[-1].line.startswith(words)


def test_without_a_spare_a_process_is_started() -> None:
    bench = Changing(spare=False)
    assert bench.started[-1] == (NEW, 0) and not bench.told(Yield)
    bench.hello(NEW)
    bench.tick()
    assert not bench.orders(NEW)
    bench.become(NEW, "standby")
    bench.go_through()
    assert bench.answers()[0].done


def test_the_directory_says_how_far_it_is() -> None:
    bench = Changing()
    for become, stage in (
        (None, "preparing"),
        ((NEW, "prepared"), "yielding"),
        ((SCHEDULER, "yielded"), "assuming"),
    ):
        if become:
            bench.become(*become)
        swap = bench.office().swap
        assert swap == {"policy": "other", "dry_run": False, "stage": stage}
        assert (
            swap == [s.body for s in bench.sent if isinstance(s.body, Directory)][-1].config["swap"]
        )
    before = bench.office()
    assert (before.policy, before.epoch) == ("", 1)
    bench.wait(2.0)
    assert bench.office().for_s >= 2.0
    bench.become(NEW, "ready")
    after = bench.office()
    assert (after.swap, after.policy, after.params, after.epoch) == (None, "other", {"x": 1}, 2)
    assert after.for_s < 1.0
    bench.wait(1.0)
    assert 0.9 < bench.office().for_s < 2.0


def test_each_answer_has_the_ticket_of_its_question() -> None:
    bench = Changing()
    bench.ask(ticket=7)
    bench.ask(ticket=8)
    bench.go_through()
    assert [answer.ticket for answer in bench.answers()] == [7, 8, 0]
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.ask(ticket=9)
    assert bench.answers()[-1].ticket == 9


def test_the_one_before_stands_by_and_the_next_swap_is_to_it() -> None:
    bench = Changing()
    bench.go_through()
    bench.become(SCHEDULER, "standby")
    bench.ask()
    bench.become(SCHEDULER, "prepared")
    bench.become(NEW, "yielded")
    assert bench.orders(SCHEDULER)[-2:] == [Prepare("other", {"x": 1}), Assume(3, b"learnt")]
    bench.become(SCHEDULER, "ready")
    assert [answer.done for answer in bench.answers()] == [True, True] and bench.core.ready
    assert len(bench.started) == 5 and not bench.signals


def test_after_probation_a_process_that_knows_nothing_stands_by() -> None:
    bench = Changing()
    bench.go_through()
    bench.become(SCHEDULER, "standby")
    bench.wait(PROBATION_S - 0.1)
    assert not bench.signals
    bench.wait(0.2)
    assert bench.signals == [(SCHEDULER, SIGTERM)]
    bench.exit(SCHEDULER, 0)
    assert bench.started[-1] == (SCHEDULER, 0) and bench.core.ready
    bench.wait(3 * PROBATION_S)
    assert len(bench.signals) == 1


def test_a_dry_run_changes_nothing_and_a_fresh_spare_takes_the_place() -> None:
    bench = Changing(dry_run=True)
    bench.become(NEW, "prepared")
    assert bench.answers()[0].done and not bench.told(Yield)
    assert bench.signals == [(NEW, SIGTERM)]
    bench.exit(NEW, 0)
    assert bench.core.ready and bench.core.facts.get("policy", "") == ""
    bench.wait(QUIET_S + 0.1)
    assert bench.started[-1] == (NEW, 0)


def test_one_at_a_time() -> None:
    bench = Changing()
    bench.ask()
    [refusal] = bench.answers()
    assert not refusal.done and "another swap" in refusal.line


def test_what_the_spare_cannot_load_a_fresh_process_tries_before_it_is_refused() -> None:
    bench = Changing()
    bench.says(NEW, Failure("not installed"))
    bench.exit(NEW, 1)
    assert bench.started[-1][0] == NEW and not bench.answers()
    bench.hello(NEW, "standby")
    bench.tick()
    assert bench.orders(NEW) == [Prepare("other", {"x": 1})] * 2
    bench.says(NEW, Failure("no such pivot"))
    bench.exit(NEW, 1)
    [refusal] = bench.answers()
    assert not refusal.done and refusal.line == "scheduler-1: no such pivot"
    assert bench.core.ready and bench.core.shutdown is None and not bench.told(Yield)
    assert "no_spare" not in bench.core.facts


@pytest.mark.parametrize("stage", ["starting", "preparing", "prepared", "yielded"])
def test_one_that_hangs_is_given_up(stage: str) -> None:
    """Before the old one has been told to yield it never knows; after that it takes office again."""
    bench = Changing(spare=stage != "starting")
    if stage in ("prepared", "yielded"):
        bench.become(NEW, "prepared")
    if stage == "yielded":
        bench.become(SCHEDULER, "yielded")
    if stage == "prepared":  # the old one does not yield: it is fenced out all the same
        bench.wait(YIELD_S + 0.1)
        assert bench.orders(NEW)[-1] == Assume(2)
    bench.wait((PREPARE_S if stage in ("starting", "preparing") else ASSUME_S) + 0.1)
    assert not bench.answers()[-1].done
    if stage != "starting":  # that one may stand by when it gets there
        bench.wait(RETIRE_S + 0.1)
        assert (NEW, SIGKILL) in bench.signals
        bench.exit(NEW, -SIGKILL)
    if stage in ("prepared", "yielded"):
        assert bench.orders(SCHEDULER)[-1] == Assume(3, b"learnt" if stage == "yielded" else b"")
        bench.become(SCHEDULER, "ready")
    bench.tick()
    assert bench.core.ready and bench.core.shutdown is None
    assert SCHEDULER not in [seat for seat, _ in bench.signals]


def test_one_that_dies_while_it_takes_over_is_refused_and_the_old_one_goes_on() -> None:
    bench = Changing()
    bench.become(NEW, "prepared")
    bench.become(SCHEDULER, "yielded")
    bench.says(NEW, Failure("out of luck"))
    bench.exit(NEW, 1)
    [refusal] = bench.answers()
    assert refusal == Swapped(False, "scheduler-1: out of luck")
    assert bench.orders(SCHEDULER)[-1] == Assume(3, b"learnt")
    bench.become(SCHEDULER, "ready")
    assert bench.core.ready and bench.core.office.assignment == Assignment("")


@pytest.mark.parametrize(("later_s", "policy"), [(1.0, ""), (PROBATION_S + 1, "other")])
def test_a_death_on_probation_brings_the_policy_before_back(later_s: float, policy: str) -> None:
    bench = Changing()
    bench.go_through()
    bench.become(SCHEDULER, "standby")
    bench.wait(later_s)
    if (SCHEDULER, SIGTERM) in bench.signals:
        bench.exit(SCHEDULER, 0)
        bench.hello(SCHEDULER, "standby")
    bench.sent.clear()
    bench.exit(NEW, -SIGKILL)
    # on probation it has the policy before still; after that it is another process, and the policy the new one
    preparation = [Prepare("other", {"x": 1})] if policy else []
    assert bench.orders(SCHEDULER) == [*preparation, Assume(3)]
    assert bench.core.office.assignment.policy == policy
    assert ("rolled_back" in bench.core.facts) == (policy == "")
    assert not bench.core.ready
    bench.become(SCHEDULER, "ready")
    assert bench.core.ready


def test_the_old_one_may_die_while_it_yields_but_not_before() -> None:
    bench = Changing()
    bench.become(NEW, "prepared")
    bench.exit(SCHEDULER, -SIGKILL)
    assert bench.orders(NEW)[-1] == Assume(2)
    bench.become(NEW, "ready")
    assert bench.answers()[-1].done and bench.core.ready
    early = Changing(spare=False)
    early.exit(SCHEDULER, -SIGKILL)
    assert not early.answers()[-1].done
    early.hello(NEW, "standby")
    early.tick()
    assert early.orders(NEW) == [Prepare(""), Assume(2)]  # it takes the vacant office


def test_a_server_that_stops_refuses() -> None:
    bench = Changing()
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.tick()
    assert not bench.answers()[-1].done


def test_a_takeover_that_has_begun_is_completed_although_the_server_stops() -> None:
    """Requests are finished meanwhile."""
    bench = Changing()
    bench.become(NEW, "prepared")
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.become(SCHEDULER, "yielded")
    bench.become(NEW, "ready")
    assert bench.answers()[-1].done and bench.core.shutdown is not None
    bench.exit(SCHEDULER, -SIGKILL)
    assert bench.core.shutdown.status == 0  # nobody misses it
