"""Two scheduler processes and one office, under any order of events."""

from __future__ import annotations

import sys
from collections import deque
from pathlib import Path
from signal import SIGKILL, SIGTERM

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.messages import Assume, Directory, Handoff, Prepare, Role, Swap, Swapped, Yield
from accelgen.supervisor.actions import Action, Send, Signal, Spawn
from accelgen.supervisor.members import Assignment, Seat
from accelgen.supervisor.office import SEATS
from accelgen.supervisor.restarts import BACK_OFF_S, INTENSITY
from accelgen.supervisor.spare import QUIET_S

sys.path.insert(0, str(Path(__file__).parent))
from test_supervisor_core import KV, SCHEDULER, WORKER, Bench

NEW = Seat(Role.SCHEDULER, 1)
BROKEN = "broken"  # a policy that cannot be made


class Scheduler:
    """One life of a scheduler process, as the supervisor knows it: it does one thing at a time, when it is its turn."""

    def __init__(self, bench: Schedulers, seat: Seat, pid: int) -> None:
        self.bench, self.seat, self.pid = bench, seat, pid
        self.peer = f"{seat.name}:{pid}".encode()
        self.alive, self.phase, self.term = True, "", 0
        self.inbox: deque[object] = deque()
        self.told_to_end = False
        self.claims = False  # told to assume, and not since to yield

    def says(self, body: object) -> None:
        self.bench.says(self.seat, body, self.peer)

    def be(self, phase: str) -> None:
        if not self.phase:
            self.bench.hello(self.seat)
        self.phase = phase
        self.bench.beat(self.seat, phase, bound_s=60.0)

    def turn(self) -> None:
        """Whatever is next."""
        if not self.alive:
            return
        if self.told_to_end:
            self.die(0)
        elif not self.phase:
            self.be("standby")
        else:
            self.be(self.phase)
            while self.inbox and isinstance(self.inbox[0], Directory):
                self.take(self.inbox.popleft())
            if self.inbox:
                self.take(self.inbox.popleft())

    def take(self, body: object) -> None:
        match body:
            case Prepare(policy=policy) if policy == BROKEN:
                self.die(1)
            case Prepare():
                self.be("prepared")
            case Assume(term=term):
                self.term = term
                self.be("ready")
            case Yield() if self.phase == "ready":
                self.says(Handoff(b"learnt"))
                self.be("yielded")
            case Directory(members=members) if self.phase == "yielded":
                mine = [m for m in members if m.role is Role.SCHEDULER]
                if any(m.epoch > self.term and m.phase == "ready" for m in mine):
                    self.be("standby")

    def die(self, status: int) -> None:
        if self.alive:
            self.alive = self.claims = False
            self.bench.core.exited(self.seat, status, "the end", self.bench.now_s)


class Schedulers(Bench):
    """A server whose schedulers do as they are told, in their own time."""

    def __init__(self) -> None:
        self.lives: dict[Seat, Scheduler] = {}
        self.terms: list[int] = []
        self.asked = 0
        super().__init__()
        self.core.assignment = self.core.office.assignment = Assignment("first")
        self.run_for(0.5)
        assert self.core.ready

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(seat) if seat in SEATS:
                    assert seat not in self.lives or not self.lives[seat].alive
                    self.lives[seat] = Scheduler(self, seat, 2000 + len(self.started))
                case Send(peer, body):
                    self.deliver(peer, body)
                case Signal(seat, signum) if seat in SEATS:
                    self.lives[seat].told_to_end, self.lives[seat].claims = True, False
                    if signum == SIGKILL:
                        self.lives[seat].die(-SIGKILL)
        super().do(actions)

    def deliver(self, peer: bytes, body: object) -> None:
        found = [life for life in self.lives.values() if life.peer == peer and life.alive]
        for life in found:
            life.inbox.append(body)
            if isinstance(body, Assume):
                self.terms.append(body.term)
                life.claims = True
            elif isinstance(body, Yield):
                life.claims = False

    def pid(self, seat: Seat) -> int:
        return self.lives[seat].pid if seat in self.lives else super().pid(seat)

    def peer(self, seat: Seat) -> bytes:
        return self.lives[seat].peer if seat in self.lives else super().peer(seat)

    def swap(self, policy: str, dry_run: bool) -> None:
        self.asked += 1
        self.says(WORKER, Swap(policy, {}, dry_run), peer=b"client")

    def answers(self) -> list[Swapped]:
        return [send.body for send in self.sent if isinstance(send.body, Swapped)]

    def check(self) -> None:
        """What must hold at any time."""
        assert self.terms == sorted(set(self.terms))
        assert sum(life.claims for life in self.lives.values()) <= 1
        assert len(self.answers()) <= self.asked
        if self.core.shutdown is None:
            self.tick()
            assert self.core.next_look_s() > self.now_s  # or it would spin

    def run_for(self, seconds: float, step_s: float = 0.05) -> None:
        """Everybody goes on."""
        until_s = self.now_s + seconds
        while self.now_s < until_s and self.finish is None:
            for seat in self.seats:
                if seat not in SEATS and self.core.occupants[seat].alive:
                    if self.core.occupants[seat].phase != "ready":
                        self.hello(seat, "ready")
                    self.beat(seat, "ready", bound_s=60.0)
            for life in list(self.lives.values()):
                life.turn()
            self.tick(step_s)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["turn", "turn", "turn", "tick", "wait", "quiet", "die", "swap", "dry", "broken"]
        ),
        st.sampled_from(SEATS),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(EVENTS)
def test_any_order_of_events(events: list[tuple[str, Seat]]) -> None:
    """At most one scheduler is in office, terms only grow, every swap is answered once; and when everything has calmed
    down somebody is in office and somebody stands by."""
    bench = Schedulers()
    for what, seat in events:
        match what:
            case "turn" if seat in bench.lives:
                bench.lives[seat].turn()
            case "tick":
                bench.tick(0.01)
            case "wait":
                bench.tick(1.0)
            case "quiet":
                bench.run_for(QUIET_S + 0.5)
            case "die" if seat in bench.lives:
                bench.lives[seat].die(-SIGKILL)
            case "swap" | "dry":
                bench.swap("second", what == "dry")
            case "broken":
                bench.swap(BROKEN, False)
        bench.check()
    bench.run_for(60.0, step_s=0.5)
    bench.check()
    if bench.finish is None and bench.core.shutdown is None:
        assert bench.core.ready and not bench.core.office.busy
        phases = sorted(life.phase for life in bench.lives.values() if life.alive)
        given_up = "no_spare" in bench.core.facts
        assert phases == (["ready"] if given_up and len(phases) == 1 else ["ready", "standby"])
        assert len(bench.answers()) == bench.asked
    else:
        assert bench.core.shutdown is not None and bench.core.shutdown.status == 1


@settings(max_examples=100, deadline=None, derandomize=True)
@given(EVENTS, st.integers(0, 40))
def test_a_stop_amid_anything_answers_every_swap(events: list[tuple[str, Seat]], at: int) -> None:
    bench = Schedulers()
    for what, seat in events[:at]:
        if what in ("swap", "dry", "broken"):
            bench.swap(BROKEN if what == "broken" else "second", what == "dry")
        elif what == "die" and seat in bench.lives:
            bench.lives[seat].die(-SIGKILL)
        else:
            bench.run_for(0.05)
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.tick()
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    for seat in bench.seats:
        if seat not in SEATS and bench.core.occupants[seat].alive:
            bench.core.exited(seat, -SIGKILL, "", bench.now_s)
    for _ in range(10):
        bench.tick(0.1)
    assert bench.finish is not None and not any(life.alive for life in bench.lives.values())
    assert len(bench.answers()) == bench.asked


def test_a_crash_is_taken_over_by_the_spare_at_once() -> None:
    bench = Schedulers()
    bench.run_for(QUIET_S + 1)
    assert bench.lives[NEW].phase == "standby" and bench.core.ready
    bench.lives[SCHEDULER].die(-SIGKILL)
    bench.tick()
    assert bench.core.office.holder == NEW and bench.terms == [1, 2]
    bench.lives[NEW].turn()
    assert not bench.core.ready
    bench.lives[NEW].turn()
    bench.lives[NEW].turn()
    bench.tick()
    assert bench.core.ready and len(bench.started) == 5
    bench.run_for(QUIET_S + 1)
    assert bench.started[-1][0] == SCHEDULER and bench.lives[SCHEDULER].phase == "standby"


def test_crashes_of_the_office_count_in_whatever_seat() -> None:
    bench = Schedulers()
    for _ in range(INTENSITY):
        bench.run_for(QUIET_S + 1)
        holder = bench.core.office.holder
        assert holder is not None and bench.core.shutdown is None
        bench.lives[holder].die(-SIGKILL)
        bench.run_for(0.5)
        assert bench.core.office.holder == SEATS[1 - holder.index]
    bench.run_for(QUIET_S + 1)
    bench.lives[bench.core.office.holder or NEW].die(-SIGKILL)
    bench.tick()
    assert bench.core.shutdown is not None and bench.core.shutdown.status == 1


def test_a_spare_that_dies_too_often_is_done_without() -> None:
    bench = Schedulers()
    bench.run_for(QUIET_S + 1)
    for i in range(INTENSITY):
        bench.lives[NEW].die(-SIGKILL)
        bench.tick()
        assert bench.lives[NEW].alive == (i == 0)  # the first is replaced at once
        bench.run_for(BACK_OFF_S * 2**i)
        assert bench.lives[NEW].phase == "standby"
    bench.lives[NEW].die(-SIGKILL)
    bench.run_for(60.0)
    assert not bench.lives[NEW].alive and bench.core.ready
    assert bench.core.facts["no_spare"].endswith("was killed by SIGKILL in phase 'standby'")
    bench.lives[SCHEDULER].die(-SIGKILL)
    bench.run_for(1.0)
    assert bench.core.ready  # a process was started, as without a spare
    bench.swap("second", False)
    bench.run_for(2.0)
    assert bench.answers()[0].done and "no_spare" not in bench.core.facts
    assert sorted(life.phase for life in bench.lives.values()) == ["ready", "standby"]


def test_one_that_was_only_tried_out_leaves_and_that_is_no_death() -> None:
    bench = Schedulers()
    bench.run_for(QUIET_S + 1)
    for i in range(2 * INTENSITY):
        tried = next(life for life in bench.lives.values() if life.phase == "standby")
        bench.swap("second", True)
        bench.tick()
        tried.turn()
        bench.tick()
        assert len(bench.answers()) == 2 * i + 1 and tried.told_to_end
        bench.swap("second", True)  # waits for the seat
        bench.tick()
        assert not any(isinstance(body, Prepare) for body in tried.inbox)
        bench.run_for(QUIET_S + 1)
    assert all(answer.done for answer in bench.answers()) and len(bench.answers()) == bench.asked
    assert "no_spare" not in bench.core.facts


def test_no_spare_before_the_server_is_ready() -> None:
    bench = Bench()
    bench.take_office(SCHEDULER)
    bench.tick(5.0)
    assert NEW not in bench.core.occupants


def test_a_spare_that_never_stands_by_holds_up_nobody() -> None:
    """The office is vacant, and the one that was to be the spare hangs in its start: it is killed for its silence."""
    bench = Bench()
    bench.get_ready()
    bench.tick()
    bench.tick(QUIET_S + 0.1)
    assert bench.core.occupants[NEW].phase == "starting"
    bench.exit(SCHEDULER, -SIGKILL)
    for _ in range(100):
        for seat in bench.seats:
            bench.beat(seat, bound_s=60.0)
        bench.tick(1.0)
        for seat in bench.killed():
            bench.exit(seat, -SIGKILL)
    assert [seat for seat, *_ in bench.started[4:6]] == [NEW, SCHEDULER]


@pytest.mark.parametrize("lost", [WORKER, KV])
def test_the_server_stays_ready_while_one_of_two_replicas_is_away(lost: Seat) -> None:
    bench = Bench(frontends=2, replicas=2)
    bench.get_ready()
    bench.exit(lost, -SIGKILL)
    for other in bench.killed():
        bench.exit(other, -SIGKILL)
    assert bench.core.ready and bench.last_directory().ready
    other = WORKER if lost == KV else KV  # of the other replica: then none is whole
    bench.exit(Seat(other.role, 1), -SIGKILL)
    assert not bench.core.ready and not bench.last_directory().ready


def test_the_server_stays_ready_with_one_frontend_of_two() -> None:
    bench = Bench(frontends=2)
    bench.get_ready()
    for index in (0, 1):
        assert bench.core.ready
        bench.exit(Seat(Role.FRONTEND, index), -SIGKILL)
    assert not bench.core.ready


def test_a_spare_that_is_told_to_stop_is_not_missed() -> None:
    bench = Schedulers()
    bench.run_for(QUIET_S + 1)
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.tick()
    bench.lives[NEW].die(-SIGTERM)
    bench.tick()
    assert bench.core.shutdown is not None and bench.core.shutdown.status == 0
