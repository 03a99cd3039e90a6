"""The supervisor's decisions, driven by hand: no process, no socket, no clock."""

from __future__ import annotations

from signal import SIGKILL, SIGTERM

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.proto.frame import Header
from accelgen.proto.messages import (
    Abort,
    Assume,
    Directory,
    Facts,
    Failure,
    Heartbeat,
    Hello,
    Query,
    Role,
    Stop,
)
from accelgen.supervisor.actions import Action, Drain, Finish, Send, Signal, Spawn
from accelgen.supervisor.core import BROADCAST_S, FAILURE_GRACE_S, SILENCE_MARGIN_S, SupervisorCore
from accelgen.supervisor.members import Seat, all_seats
from accelgen.supervisor.restarts import BACK_OFF_S, INTENSITY, PERIOD_S
from accelgen.supervisor.spare import QUIET_S

WORKER, KV = Seat(Role.WORKER, 0), Seat(Role.KVMANAGER, 0)
SCHEDULER, FRONTEND = Seat(Role.SCHEDULER, 0), Seat(Role.FRONTEND, 0)
SEATS = [WORKER, KV, SCHEDULER, FRONTEND]
FACTS = Facts("m", "MForCausalLM", "cpu", "float32", "torch", 128, 1000, 16, 64, 2**20, 2**21)


class Bench:
    """A core with its surroundings: processes that live, a clock that is set, everything that was sent."""

    def __init__(self, frontends: int = 1, replicas: int = 1) -> None:
        self.now_s = 100.0
        self.seats = all_seats(frontends, replicas)
        self.core = SupervisorCore(self.seats, pid=1, started_s=100.0, drain_s=5.0)
        self.sent: list[Send] = []
        self.started: list[tuple[Seat, int]] = []
        self.signals: list[tuple[Seat, int]] = []
        self.drained = False
        self.finish: Finish | None = None
        self.do(self.core.start(self.now_s))

    def do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Spawn(seat, epoch):
                    self.started.append((seat, epoch))
                    self.core.spawned(seat, epoch, self.pid(seat), self.now_s)
                case Send():
                    self.sent.append(action)
                case Signal(seat, signum):
                    self.signals.append((seat, signum))
                case Drain():
                    self.drained = True
                case Finish():
                    assert self.finish is None
                    self.finish = action

    def pid(self, seat: Seat) -> int:
        return 1000 + (self.seats.index(seat) if seat in self.seats else 99)

    def take_office(self, seat: Seat) -> None:
        """As a scheduler does: it stands by, and is ready when it has been told to assume."""
        self.hello(seat, "standby")
        self.tick()
        assert self.core.office.holder == seat and self.told(Assume)[-1] == self.peer(seat)
        self.beat(seat)
        self.tick()

    def peer(self, seat: Seat) -> bytes:
        return seat.name.encode()

    def says(self, seat: Seat, body: object, peer: bytes | None = None) -> None:
        header = Header(1, 0, 1, 77, 0)
        self.do(self.core.heard(peer or self.peer(seat), header, body, self.now_s))  # type: ignore

    def hello(self, seat: Seat, phase: str = "starting", facts: Facts | None = None) -> None:
        self.says(seat, Hello(seat.role, seat.index, self.pid(seat), "ipc://x", phase, facts))

    def beat(self, seat: Seat, phase: str = "ready", bound_s: float = 5.0) -> None:
        self.says(seat, Heartbeat(3, phase, bound_s, 2**20, {}))

    def tick(self, later_s: float = 0.0) -> None:
        self.now_s += later_s
        self.do(self.core.tick(self.now_s))

    def exit(self, seat: Seat, status: int, words: str = "") -> None:
        self.core.exited(seat, status, words, self.now_s)
        self.tick()

    def killed(self) -> list[Seat]:
        """Whom the core has had killed and who lives on paper."""
        seats = [seat for seat, signum in self.signals if signum == SIGKILL]
        self.signals.clear()
        return [seat for seat in seats if self.core.occupants[seat].alive]

    def alive(self) -> set[Seat]:
        """Whose processes run."""
        return {seat for seat, occupant in self.core.occupants.items() if occupant.alive}

    def use_up(self, seat: Seat) -> None:
        """It has died so often that the next time is the last."""
        for _ in range(INTENSITY):
            self.core.restarts.delay_s(seat, self.now_s)

    def come_up(self, seat: Seat) -> None:
        """A process that has been started gets ready."""
        if seat.role is Role.SCHEDULER:
            self.take_office(seat)
        else:
            self.hello(seat, "ready", FACTS if seat.role is Role.WORKER else None)
            self.tick()

    def get_ready(self) -> None:
        for seat in self.seats:
            self.come_up(seat)

    def stand_by(self, seat: Seat) -> None:
        """The spare is started, and does."""
        self.tick()
        self.tick(QUIET_S + 0.01)
        assert self.core.occupants[seat].alive and self.core.occupants[seat].phase == "starting"
        self.hello(seat, "standby")
        self.tick()

    def told(self, kind: type) -> list[bytes]:
        return [send.peer for send in self.sent if isinstance(send.body, kind)]

    def stops(self) -> list[bytes]:
        return [send.peer for send in self.sent if isinstance(send.body, Stop)]

    def last_directory(self) -> Directory:
        return next(s.body for s in reversed(self.sent) if isinstance(s.body, Directory))


def test_ready_when_everybody_is() -> None:
    bench = Bench()
    for seat in SEATS:
        assert not bench.core.ready
        bench.come_up(seat)
    directory = bench.last_directory()
    assert directory.ready and bench.core.ready_s == 100.0
    assert [member.role for member in directory.members] == [
        Role.SUPERVISOR, Role.WORKER, Role.KVMANAGER, Role.SCHEDULER, Role.FRONTEND,
    ]  # fmt: skip


def test_directory_goes_out_at_every_change_and_once_a_second() -> None:
    bench = Bench()
    bench.get_ready()
    bench.sent.clear()
    bench.beat(WORKER)
    bench.tick(0.1)
    assert not bench.sent  # progress alone is no change
    bench.tick(BROADCAST_S)
    assert {send.peer for send in bench.sent} == {bench.peer(seat) for seat in SEATS}
    assert bench.last_directory().members[1].progress == 3
    assert bench.last_directory().members[1].facts == FACTS
    bench.sent.clear()
    bench.beat(WORKER, "compiling")
    bench.tick(0.1)
    assert len(bench.sent) == 4 and not bench.last_directory().ready


def test_a_query_is_answered_at_once() -> None:
    bench = Bench()
    bench.says(WORKER, Query(), peer=b"client")
    assert bench.sent[-1].peer == b"client" and isinstance(bench.sent[-1].body, Directory)


def test_strangers_and_nonsense_change_nothing() -> None:
    bench = Bench()
    bench.get_ready()
    before = bench.core.directory(bench.now_s)
    bench.says(WORKER, Hello(Role.WORKER, 0, 4711, "ipc://elsewhere", "dead"), peer=b"old life")
    bench.says(WORKER, Hello(Role.WORKER, 9, 1, "ipc://elsewhere", "dead"), peer=b"nobody")
    bench.says(WORKER, Heartbeat(9, "dead", 1.0, 1), peer=b"old life")
    pid = bench.pid(WORKER)  # the right one, but it has said who it is already
    bench.says(WORKER, Hello(Role.WORKER, 0, pid, "ipc://elsewhere", "evil"), peer=b"stranger")
    bench.says(WORKER, Failure("no"), peer=b"old life")
    bench.says(WORKER, Abort([1]))
    assert bench.core.directory(bench.now_s) == before


@pytest.mark.parametrize("seat", [WORKER, KV, FRONTEND])
def test_a_death_is_fatal(seat: Seat) -> None:
    """When it comes too often."""
    bench = Bench()
    bench.get_ready()
    for _ in range(INTENSITY):
        bench.exit(seat, -SIGKILL)
        for other in bench.killed():
            bench.exit(other, -SIGKILL)
        for other in SEATS:
            bench.beat(other, bound_s=60.0)
        bench.tick(BACK_OFF_S * 2**INTENSITY)
        for other in SEATS:
            if bench.core.occupants[other].phase != "ready":
                bench.come_up(other)
            bench.beat(other, bound_s=60.0)
        assert bench.core.shutdown is None and bench.core.ready
    bench.exit(seat, -SIGKILL)
    assert bench.drained and bench.core.draining and not bench.core.ready
    for other in [o.seat for o in bench.core.occupants.values() if o.alive]:
        bench.exit(other, 0)
    assert bench.finish is not None and bench.finish.status == 1
    assert bench.finish.line.startswith(
        f"{seat.name} (pid {bench.pid(seat)}) was killed by SIGKILL"
    )


@pytest.mark.parametrize("seat, along", [(WORKER, [KV]), (KV, [])])
def test_who_builds_on_the_dead_is_started_again_with_it(seat: Seat, along: list[Seat]) -> None:
    bench = Bench()
    bench.get_ready()
    bench.exit(seat, -SIGKILL)
    assert bench.core.occupants[seat].alive  # the first restart is immediate
    assert bench.killed() == along
    for other in along:
        bench.exit(other, -SIGKILL)
        assert bench.core.occupants[other].alive
    for other in (seat, *along):
        bench.hello(other, "ready")
    bench.tick()
    assert bench.core.ready and bench.core.office.term == 1
    bench.exit(SCHEDULER, -SIGKILL)  # its first death of its own: no back-off
    assert bench.core.occupants[SCHEDULER].alive


@pytest.mark.parametrize("seat", [SCHEDULER, FRONTEND])
def test_a_dead_scheduler_or_frontend_is_replaced(seat: Seat) -> None:
    bench = Bench()
    bench.get_ready()
    bench.exit(seat, 0, "it looked clean")
    assert bench.core.occupants[seat].alive and not bench.core.ready and not bench.drained
    bench.come_up(seat)
    assert bench.core.ready and bench.core.occupants[seat].epoch == (2 if seat is SCHEDULER else 1)
    bench.exit(seat, -SIGKILL)  # again: not at once
    assert not bench.core.occupants[seat].alive
    assert bench.core.next_look_s() == bench.now_s + BACK_OFF_S
    bench.tick(BACK_OFF_S)
    assert bench.core.occupants[seat].alive


def test_deaths_long_ago_are_forgiven() -> None:
    bench = Bench()
    bench.get_ready()
    for _ in range(3 * INTENSITY):
        bench.exit(FRONTEND, -SIGKILL)
        bench.tick(BACK_OFF_S * 2**INTENSITY)
        bench.come_up(FRONTEND)
        for seat in SEATS:
            bench.beat(seat, bound_s=PERIOD_S)
        bench.tick(PERIOD_S / 3)
        bench.tick(PERIOD_S / 3)
    assert bench.core.ready and bench.core.shutdown is None


def test_nobody_is_replaced_before_the_server_was_ready_or_while_it_stops() -> None:
    bench = Bench()
    bench.exit(SCHEDULER, -SIGKILL)
    assert bench.core.shutdown is not None
    other = Bench()
    other.get_ready()
    other.do(other.core.signalled("SIGTERM", other.now_s))
    other.exit(FRONTEND, -SIGKILL)
    assert not other.core.occupants[FRONTEND].alive


def test_the_childs_own_word_is_the_last_line() -> None:
    bench = Bench()
    bench.hello(WORKER)
    bench.exit(WORKER, 1, "whatever the log says")
    bench.tick(FAILURE_GRACE_S / 2)
    assert bench.core.shutdown is None  # a last word may be on its way
    bench.says(WORKER, Failure("no such model"))
    bench.tick()
    assert bench.core.shutdown is not None
    assert bench.core.shutdown.line == "worker-0: no such model"


def test_without_a_word_the_log_is_quoted() -> None:
    bench = Bench()
    bench.exit(KV, 3, "ImportError: x")
    assert bench.core.next_look_s() <= bench.now_s + FAILURE_GRACE_S
    bench.tick(FAILURE_GRACE_S)
    assert bench.core.shutdown is not None
    line = bench.core.shutdown.line
    assert line == (
        "kvmanager-0 (pid 1001) ended by itself with status 3 in phase 'starting': ImportError: x"
    )


def test_the_first_death_is_the_cause() -> None:
    bench = Bench()
    bench.get_ready()
    bench.use_up(KV)
    bench.use_up(WORKER)
    bench.core.exited(KV, -SIGKILL, "", bench.now_s)
    bench.core.exited(WORKER, -SIGTERM, "", bench.now_s + 0.01)
    bench.tick(0.02)
    assert bench.core.shutdown is not None and "kvmanager-0" in bench.core.shutdown.line


def test_the_out_of_memory_killer_is_named() -> None:
    bench = Bench()
    bench.get_ready()
    bench.use_up(WORKER)
    bench.beat(WORKER)
    bench.core.oom_kills = 1
    bench.exit(WORKER, -SIGKILL)
    assert bench.core.shutdown is not None
    assert "out-of-memory killer struck" in bench.core.shutdown.line
    assert "1 MiB resident" in bench.core.shutdown.line


def test_silence_beyond_the_announced_bound_is_a_hang() -> None:
    bench = Bench()
    bench.get_ready()
    bench.use_up(KV)
    due_s = 0.0
    while due_s < 20:  # within its bound, however long that is
        for seat in SEATS:
            if seat != KV:
                bench.beat(seat)
            elif due_s == 0:
                bench.beat(seat, bound_s=20.0)
        bench.tick(1.0)
        due_s += 1.0
    assert not bench.signals
    for seat in (WORKER, SCHEDULER, FRONTEND):
        bench.beat(seat)
    bench.tick(SILENCE_MARGIN_S + 0.1)
    assert bench.signals == [(KV, SIGKILL)]
    bench.exit(KV, -SIGKILL)
    assert bench.core.shutdown is not None
    assert "silent for 21.6 s in phase 'ready'" in bench.core.shutdown.line


def test_our_own_sleep_is_nobodys_silence() -> None:
    bench = Bench()
    bench.get_ready()
    bench.tick(3600.0)  # the terminal's Ctrl-Z, then fg
    assert not bench.signals
    bench.tick(0.5)
    assert not bench.signals


def test_an_orderly_end_goes_stage_by_stage() -> None:
    bench = Bench(frontends=2)
    bench.get_ready()
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick()
    assert bench.drained and bench.stops() == [b"frontend-0", b"frontend-1"]
    bench.exit(Seat(Role.FRONTEND, 0), 0)
    assert len(bench.stops()) == 2
    bench.exit(Seat(Role.FRONTEND, 1), 0)
    assert bench.stops()[2:] == [b"scheduler-0"]
    bench.exit(SCHEDULER, 0)
    assert bench.stops()[3:] == [b"kvmanager-0"]
    bench.exit(KV, 0)
    assert bench.stops()[4:] == [b"worker-0"]
    assert bench.finish is None
    bench.exit(WORKER, 0)
    assert bench.finish == Finish(0, "stopped (SIGINT)") and not bench.signals


def drain_is_through(bench: Bench) -> None:
    """The frontends have finished; everybody else ends when told, and the shutdown is still the operator's."""
    bench.exit(FRONTEND, 0)
    while bench.finish is None:
        told = [seat for seat, o in bench.core.occupants.items() if o.alive and o.told]
        assert told
        for seat in told:
            bench.exit(seat, 0)
    assert bench.finish == Finish(0, "stopped (SIGINT)") and not bench.signals


@pytest.mark.parametrize("has_spare", [True, False])
def test_while_requests_are_finished_a_dead_scheduler_is_replaced(has_spare: bool) -> None:
    bench = Bench()
    bench.get_ready()
    successor = Seat(Role.SCHEDULER, 1) if has_spare else SCHEDULER
    if has_spare:
        bench.stand_by(successor)
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick()
    bench.sent.clear()
    bench.exit(SCHEDULER, -SIGKILL)
    if not has_spare:
        bench.take_office(successor)
    assert bench.told(Assume) == [bench.peer(successor)]
    bench.beat(successor)
    bench.tick()
    listed = [member for member in bench.last_directory().members if member.role is Role.SCHEDULER]
    assert [member.phase for member in listed if member.index == successor.index] == ["ready"]
    assert bench.peer(FRONTEND) in bench.told(Directory)  # or it would not believe the new one
    assert bench.stops() == [] and bench.core.draining and not bench.core.ready
    started = len(bench.started)
    bench.tick(QUIET_S + 0.1)
    assert len(bench.started) == started  # nobody stands by any more
    drain_is_through(bench)


def test_while_requests_are_finished_a_dead_worker_is_replaced() -> None:
    bench = Bench()
    bench.get_ready()
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick()
    bench.exit(WORKER, -SIGKILL)
    assert bench.killed() == [KV]
    bench.exit(KV, -SIGKILL)
    for seat in (WORKER, KV):
        assert bench.core.occupants[seat].alive
        bench.come_up(seat)
    drain_is_through(bench)


def test_a_worker_that_was_to_start_again_does_so_though_the_server_stops() -> None:
    bench = Bench()
    bench.get_ready()
    for _ in range(2):  # the second restart waits
        bench.exit(WORKER, -SIGKILL)
        for seat in bench.killed():
            bench.exit(seat, -SIGKILL)
    assert not bench.core.occupants[WORKER].alive
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick(BACK_OFF_S)
    assert bench.core.occupants[WORKER].alive and bench.finish is None


def test_a_frontend_that_dies_while_others_finish_stays_dead() -> None:
    bench = Bench(frontends=2)
    bench.get_ready()
    bench.exit(FRONTEND, -SIGKILL)
    bench.exit(FRONTEND, -SIGKILL)  # to be started after a moment
    started = len(bench.started)
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.exit(Seat(Role.FRONTEND, 1), -SIGKILL)
    bench.tick(BACK_OFF_S)
    assert len(bench.started) == started and bench.stops() == [b"scheduler-0"]


def test_who_dies_too_often_while_requests_are_finished_ends_the_server() -> None:
    bench = Bench()
    bench.get_ready()
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick()
    bench.use_up(WORKER)
    bench.exit(WORKER, -SIGKILL)
    assert bench.core.shutdown is not None and bench.core.shutdown.status == 1
    assert not bench.core.shutdown.finishing


def test_who_does_not_stop_is_made_to() -> None:
    bench = Bench()
    bench.get_ready()
    bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    bench.tick()
    for seat in (WORKER, KV, SCHEDULER):
        bench.beat(seat, bound_s=60.0)
    while FRONTEND not in [seat for seat, _ in bench.signals]:
        bench.tick(0.25)
    assert bench.signals == [(FRONTEND, SIGTERM)] and 105 <= bench.now_s <= 106
    while len(bench.signals) == 1:
        bench.tick(0.25)
    assert bench.signals[1] == (FRONTEND, SIGKILL) and bench.now_s <= 107
    bench.tick(1.0)
    assert len(bench.signals) == 2


def test_a_second_signal_kills_and_keeps_the_status() -> None:
    bench = Bench()
    bench.get_ready()
    bench.use_up(WORKER)
    bench.exit(WORKER, -SIGKILL)
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    assert bench.signals == [(seat, SIGKILL) for seat in (KV, SCHEDULER, FRONTEND)]
    for seat in (KV, SCHEDULER, FRONTEND):
        bench.exit(seat, -SIGKILL)
    assert bench.finish is not None and bench.finish.status == 1
    assert bench.finish.line.startswith("worker-0")


def test_down_asked_again_only_shortens() -> None:
    bench = Bench()
    bench.get_ready()
    bench.says(WORKER, Stop(3600.0, "down"), peer=b"client")
    bench.tick()
    bench.says(WORKER, Stop(7200.0, "down"), peer=b"client")
    bench.says(WORKER, Stop(1.0, "down"), peer=b"client")
    for _ in range(3):
        bench.tick(0.5)
    assert bench.signals == [(FRONTEND, SIGTERM)]


def test_who_has_not_said_hello_cannot_be_told_to_stop() -> None:
    bench = Bench()
    bench.hello(WORKER)
    bench.do(bench.core.signalled("SIGINT", bench.now_s))
    bench.tick()
    assert bench.stops() == [b"worker-0"]
    assert bench.signals == [(seat, SIGTERM) for seat in (KV, SCHEDULER, FRONTEND)]


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["hello", "ready", "beat", "exit", "fail", "signal", "down", "wait"]),
        st.sampled_from(SEATS),
        st.sampled_from([0, 1, -9]),
    ),
    max_size=40,
)


@given(EVENTS)
def test_whatever_happens_it_ends_once_and_tells_the_truth(
    events: list[tuple[str, Seat, int]],
) -> None:
    """Any order of events: ready only with everybody ready; one Finish; status 0 only if the operator asked; after
    a bounded time nobody is left who was not sent a SIGKILL or has not ended."""
    bench = Bench()
    asked = False
    for what, seat, status in events:
        alive = bench.alive()
        if bench.finish is not None:
            break
        if what in ("signal", "down"):
            asked = True
        match what:
            case "signal":
                bench.do(bench.core.signalled("SIGINT", bench.now_s))
            case "down":
                bench.says(seat, Stop(2.0), peer=b"client")
            case "exit" if seat in alive:
                bench.core.exited(seat, status, "", bench.now_s)
            case "hello" | "ready" if seat in alive:
                bench.hello(seat, what)
                if seat == SCHEDULER and what == "ready":
                    bench.hello(seat, "standby")
                    bench.tick()
                    bench.beat(seat)
            case "beat" if seat in alive:
                bench.beat(seat)
            case "fail":
                bench.says(seat, Failure("because"))
        bench.tick(0.05)
        assert not bench.core.ready or {seat.role for seat in bench.alive()} >= set(Role) - {
            Role.SUPERVISOR
        }
        assert bench.core.next_look_s() < bench.now_s + 2
    if bench.finish is None and bench.core.shutdown is None:
        asked = True
        bench.do(bench.core.signalled("SIGTERM", bench.now_s))
    for _ in range(200):
        if bench.finish is not None:
            break
        bench.tick(0.1)
        for seat in set(bench.killed()):
            bench.exit(seat, -SIGKILL)
    assert bench.finish is not None and not bench.alive()
    assert bench.finish.status == 1 or asked
