"""A planned change of the scheduler, driven by hand: what is done when, and what a failure at each stage means."""

from __future__ import annotations

import sys
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest

from accelgen.proto.messages import Assume, Directory, Failure, Role, Swap, Swapped, Yield
from accelgen.proto.policies import InOffice, in_office
from accelgen.supervisor.members import Seat
from accelgen.supervisor.swap import ASSUME_S, PREPARE_S, PROBATION_S, RETIRE_S, YIELD_S

sys.path.insert(0, str(Path(__file__).parent))
from test_supervisor_core import FRONTEND, KV, SCHEDULER, WORKER, Bench

NEW = Seat(Role.SCHEDULER, 1)
OTHERS = [WORKER, KV, FRONTEND]


class Changing(Bench):
    """A ready server that has been asked for another policy."""

    def __init__(self, dry_run: bool = False) -> None:
        super().__init__()
        self.get_ready()
        self.ask(dry_run)

    def ask(self, dry_run: bool = False, ticket: int = 0) -> None:
        self.says(WORKER, Swap("other", {"x": 1}, dry_run, ticket), peer=b"client")
        self.tick()

    def office(self) -> InOffice:
        return in_office(self.core.directory(self.now_s))

    def answers(self) -> list[Swapped]:
        return [send.body for send in self.sent if isinstance(send.body, Swapped)]

    def told(self, kind: type) -> list[bytes]:
        return [send.peer for send in self.sent if isinstance(send.body, kind)]

    def become(self, seat: Seat, phase: str) -> None:
        self.hello(seat, phase)
        self.beat(seat, phase)
        self.tick()

    def go_through(self) -> None:
        for seat, phase in ((NEW, "standby"), (SCHEDULER, "yielded"), (NEW, "ready")):
            self.become(seat, phase)

    def wait(self, seconds: float, *silent: Seat) -> None:
        for seat in (*OTHERS, SCHEDULER, NEW):
            occupant = self.core.occupants.get(seat)
            if occupant is not None and occupant.alive and seat not in silent:
                self.beat(seat, occupant.phase, bound_s=60.0)
        for _ in range(10):
            self.tick(seconds / 10)


def test_step_by_step() -> None:
    bench = Changing()
    arguments = ("--policy", "other", "--params", '{"x":1}', "--standby")
    assert bench.started[-1] == (NEW, 2, arguments)
    assert bench.core.ready and not bench.told(Yield)
    bench.become(NEW, "standby")
    assert bench.told(Yield) == [bench.peer(SCHEDULER)] and not bench.told(Assume)
    bench.become(SCHEDULER, "yielded")
    assert bench.told(Assume) == [bench.peer(NEW)] and not bench.answers()
    bench.become(NEW, "ready")
    [answer] = bench.answers()
    assert answer.done and "other has taken over in epoch 2" in answer.line
    assert bench.core.ready and bench.core.facts["policy"] == "other"
    assert bench.signals == [(SCHEDULER, SIGTERM)]
    bench.exit(SCHEDULER, 0)
    bench.tick()
    assert SCHEDULER not in bench.core.occupants and bench.core.ready
    assert bench.core.shutdown is None


def test_the_directory_says_how_far_it_is() -> None:
    bench = Changing()
    for become, stage in (
        (None, "preparing"),
        ((NEW, "standby"), "yielding"),
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


def test_back_again_waits_for_the_seat() -> None:
    bench = Changing()
    bench.go_through()
    bench.ask()
    assert bench.started[-1][0] == NEW  # the old one has not left its seat
    bench.exit(SCHEDULER, 0)
    bench.tick()
    bench.tick()
    assert bench.started[-1][:2] == (SCHEDULER, 3)


def test_a_dry_run_changes_nothing() -> None:
    bench = Changing(dry_run=True)
    bench.become(NEW, "standby")
    assert bench.answers()[0].done and not bench.told(Yield)
    assert bench.signals == [(NEW, SIGTERM)]
    bench.exit(NEW, 0)
    bench.tick()
    assert NEW not in bench.core.occupants and bench.core.ready
    assert bench.core.facts.get("policy", "") == ""


def test_one_at_a_time() -> None:
    bench = Changing()
    bench.ask()
    [refusal] = bench.answers()
    assert not refusal.done and "another swap" in refusal.line


def test_one_that_cannot_start_is_refused_with_its_own_word() -> None:
    bench = Changing()
    bench.hello(NEW)
    bench.says(NEW, Failure("no such pivot"))
    bench.exit(NEW, 1)
    bench.tick()
    [refusal] = bench.answers()
    assert not refusal.done and refusal.line == "scheduler-1: no such pivot"
    assert bench.core.ready and bench.core.shutdown is None and not bench.told(Yield)


@pytest.mark.parametrize("stage", ["starting", "standby", "yielded"])
def test_one_that_hangs_is_given_up(stage: str) -> None:
    """Before it assumes, the old one never knows; after that the old policy is started afresh."""
    bench = Changing()
    if stage != "starting":
        bench.become(NEW, "standby")
    if stage == "yielded":
        bench.become(SCHEDULER, "yielded")
    if stage == "standby":  # the old one does not yield: it is fenced out all the same
        bench.wait(YIELD_S + 0.1)
        assert bench.told(Assume)
    bench.wait((PREPARE_S if stage == "starting" else ASSUME_S) + 0.1)
    assert not bench.answers()[-1].done
    bench.wait(RETIRE_S + 0.1)
    assert (NEW, SIGKILL) in bench.signals
    bench.exit(NEW, -SIGKILL)
    if stage != "starting":
        assert (SCHEDULER, SIGKILL) in bench.signals
        bench.exit(SCHEDULER, -SIGKILL)
        assert bench.started[-1][:2] == (SCHEDULER, 3)
        bench.become(SCHEDULER, "ready")
    bench.tick()
    assert bench.core.ready and bench.core.shutdown is None


@pytest.mark.parametrize(("later_s", "policy"), [(1.0, ""), (PROBATION_S + 1, "other")])
def test_a_death_on_probation_brings_the_policy_before_back(later_s: float, policy: str) -> None:
    bench = Changing()
    bench.go_through()
    bench.exit(SCHEDULER, 0)
    bench.wait(later_s)
    bench.exit(NEW, -SIGKILL)
    bench.tick()
    assert bench.started[-1][:2] == (NEW, 3)
    assert ("other" in bench.started[-1][2]) == (policy == "other")
    assert bench.core.office.assignment.policy == policy
    assert ("rolled_back" in bench.core.facts) == (policy == "")
    bench.become(NEW, "ready")
    assert bench.core.ready


def test_the_old_one_may_die_while_it_yields_but_not_before() -> None:
    bench = Changing()
    bench.become(NEW, "standby")
    bench.exit(SCHEDULER, -SIGKILL)
    bench.tick()
    assert bench.told(Assume)
    bench.become(NEW, "ready")
    assert bench.answers()[-1].done and bench.core.ready
    early = Changing()
    early.exit(SCHEDULER, -SIGKILL)
    early.tick()
    assert not early.answers()[-1].done and early.core.occupants[SCHEDULER].alive


def test_a_server_that_stops_refuses() -> None:
    bench = Changing()
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.tick()
    assert not bench.answers()[-1].done
