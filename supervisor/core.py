"""The supervisor's decisions, sans I/O: messages, exits and time go in; actions come out.

What it decides: who is started in which epoch; what the Directory says and when it is sent; when the server is
ready; who has been silent for too long; what a death means; and how a shutdown proceeds, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from signal import SIGKILL, SIGTERM
from typing import Any

from accelgen.proto.frame import Header
from accelgen.proto.messages import (
    Body,
    Directory,
    Failure,
    Heartbeat,
    Hello,
    Member,
    Query,
    Role,
    Stop,
    Swap,
    Swapped,
)
from accelgen.supervisor import shutdown
from accelgen.supervisor.actions import Action, Drain, Finish, Send, Signal, Spawn
from accelgen.supervisor.members import Occupant, Seat
from accelgen.supervisor.office import Office
from accelgen.supervisor.restarts import Restarts, dependents
from accelgen.supervisor.shutdown import Shutdown
from accelgen.supervisor.swap import Assignment
from accelgen.supervisor.verdict import describe_death, describe_silence

BROADCAST_S = 1.0
START_BOUND_S = 60.0  # silence allowed before the first Hello: starting Python, importing
SILENCE_MARGIN_S = 1.5  # three heartbeats, on top of what the process announced
FAILURE_GRACE_S = 0.1  # a last word may still be on its way when the exit is seen
ASLEEP_S = 2.0  # a gap this long between two looks means that we were asleep ourselves


@dataclass
class SupervisorCore:
    """State of a whole server. `seats` in the order of readiness; `facts` is what the Directory carries as config.

    `oom_kills` is kept up to date by the process: kernel out-of-memory kills since the start."""

    seats: list[Seat]
    pid: int
    started_s: float
    facts: dict[str, Any] = field(default_factory=dict)
    drain_s: float = 5.0
    oom_kills: int = 0
    rss_bytes: int = 0
    occupants: dict[Seat, Occupant] = field(default_factory=dict)
    shutdown: Shutdown | None = None
    draining: bool = False
    finished: bool = False
    ready_s: float | None = None  # when it became ready for the first time
    assignment: Assignment = Assignment("")  # of the first scheduler; "": as configured
    office: Office = field(init=False)
    restarts: Restarts = field(default_factory=Restarts)
    _sacrificed: dict[Seat, float] = field(
        default_factory=dict
    )  # ended by us, to start again at that time
    _due_s: dict[Seat, float] = field(default_factory=dict)  # dead, to be filled again at that time
    _epoch: int = 0
    _rounds: int = 0
    _looked_s: float = 0.0
    _broadcast_s: float = 0.0
    _changed: bool = True
    _seat_of: dict[bytes, Seat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.office = Office(
            self.seats, self.occupants, self.facts, self.assignment, self.started_s
        )

    # --- inputs ------------------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """Everything starts at once; each waits for what it needs by itself."""
        self._epoch += 1
        self._looked_s = now_s
        return [Spawn(seat, self._epoch) for seat in self.seats]

    def spawned(self, seat: Seat, epoch: int, pid: int, now_s: float) -> None:
        """The process has been started."""
        self.occupants[seat] = Occupant(seat, epoch, pid, now_s, now_s, START_BOUND_S)
        self._changed = True

    def heard(self, peer: bytes, header: Header, body: Body, now_s: float) -> list[Action]:
        """A message from a child or from the command line."""
        match body:
            case Query():
                return [Send(peer, self.directory(now_s))]
            case Swap():
                return self._asked_to_swap(peer, body, now_s)
            case Stop(timeout_s=timeout_s, why=why):
                return self._asked_to_stop(why or "asked to stop", now_s, timeout_s)
            case Hello():
                self._hello(peer, header, body)
            case Heartbeat():
                self._heartbeat(peer, body)
            case Failure(line=line):
                if occupant := self._occupant_at(peer):
                    occupant.failure = occupant.failure or line
            case _:
                return []  # no child says anything else; the wire has counted it
        if occupant := self._occupant_at(peer):
            occupant.heard_s = now_s
        return []

    def exited(self, seat: Seat, status: int, last_words: str, now_s: float) -> None:
        """A process has ended (`status` as in subprocess). `tick` judges what that means."""
        occupant = self.occupants[seat]
        assert occupant.alive, f"{seat.name} ended twice"
        occupant.exit_status, occupant.exited_s = status, now_s
        occupant.last_words = last_words
        self._changed = True

    def signalled(self, name: str, now_s: float) -> list[Action]:
        """The operator's signal `name`: the first asks for an orderly end, the next one ends everything at once."""
        if self.shutdown is None:
            return self._asked_to_stop(name, now_s, self.drain_s)
        plan = self.shutdown  # keeps its exit status and its line
        plan.stages = [shutdown.Stage(tuple(Role), 0.0)]
        plan.told = plan.termed = plan.killed = True
        return [Signal(occupant.seat, SIGKILL) for occupant in self._living()]

    def tick(self, now_s: float) -> list[Action]:
        """Everything that time decides. Call it after each batch of input and at `next_look_s`, messages read first."""
        self._rounds += 1
        if now_s - self._looked_s > ASLEEP_S:  # suspended: the silence was ours, not theirs
            for occupant in self._living():
                occupant.heard_s = now_s
        self._looked_s = now_s
        actions = (
            self.office.proceed(now_s, self.shutdown is not None)
            + self._judge_deaths(now_s)
            + self._refill(now_s)
        )
        actions += self._judge_silence(now_s)
        if self.ready and self.ready_s is None:
            self.ready_s, self._changed = now_s, True
        if self.shutdown is not None:
            actions += self._proceed(self.shutdown, now_s)
        self._changed |= self.office.take_change()
        if self._changed or now_s >= self._broadcast_s + BROADCAST_S:
            actions += self._broadcast(now_s)
        return actions

    def next_look_s(self) -> float:
        """When `tick` wants to be called again at the latest."""
        times = [self._broadcast_s + BROADCAST_S]
        if self.shutdown is None:
            for occupant in self.occupants.values():
                if not occupant.alive:
                    due_s = self._due_s.get(occupant.seat)
                    times.append(occupant.exited_s + FAILURE_GRACE_S if due_s is None else due_s)
                elif not occupant.killed_for:
                    times.append(occupant.heard_s + occupant.bound_s + SILENCE_MARGIN_S)
        if self.shutdown is not None and self.shutdown.told and not self.shutdown.killed:
            times.append(self.shutdown.kill_s if self.shutdown.termed else self.shutdown.term_s)
        return min(times)

    # --- views -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Every seat is filled and says so, and nobody wants to stop."""
        return self.shutdown is None and all(
            (o := self.occupants.get(seat)) and o.alive and o.phase in ("ready", "yielded")
            for seat in self.seats
        )

    @property
    def phase(self) -> str:
        """The server's own phase, which is the supervisor's, too."""
        if self.shutdown is not None:
            return "stopping"
        return "ready" if self.ready else "starting"

    def directory(self, now_s: float) -> Directory:
        """The supervisor and everybody in a seat."""
        own = Member(
            role=Role.SUPERVISOR,
            index=0,
            pid=self.pid,
            endpoint="",
            incarnation=0,
            epoch=self._epoch,
            phase=self.phase,
            progress=self._rounds,
            uptime_s=max(0.0, now_s - self.started_s),
            heard_s=0.0,
            rss_bytes=self.rss_bytes,
            facts=None,
            gauges={},
        )
        members = [own, *(o.member(now_s) for o in self.occupants.values())]
        facts = {**self.facts, "policy_s": max(0.0, now_s - self.office.since_s)}
        return Directory(members, self.ready, self.draining, facts)

    # --- messages ----------------------------------------------------------------------------------------------

    def _hello(self, peer: bytes, header: Header, hello: Hello) -> None:
        seat = Seat(hello.role, hello.index)
        occupant = self.occupants.get(seat)
        if occupant is None or occupant.pid != hello.pid or occupant.peer not in (None, peer):
            return  # a life that is over, or nobody of ours
        self._seat_of[peer] = seat
        occupant.peer, occupant.incarnation = peer, header.incarnation
        occupant.endpoint, occupant.phase = hello.endpoint, hello.phase
        occupant.facts = hello.facts or occupant.facts
        self._changed = True

    def _heartbeat(self, peer: bytes, beat: Heartbeat) -> None:
        occupant = self._occupant_at(peer)
        if occupant is None:
            return
        self._changed |= occupant.phase != beat.phase
        occupant.phase, occupant.progress = beat.phase, beat.progress
        occupant.bound_s, occupant.rss_bytes = beat.bound_s, beat.rss_bytes
        occupant.gauges = beat.gauges

    def _occupant_at(self, peer: bytes) -> Occupant | None:
        seat = self._seat_of.get(peer)
        occupant = None if seat is None else self.occupants.get(seat)
        return occupant if occupant is not None and occupant.peer == peer else None

    def _living(self) -> list[Occupant]:
        return [occupant for occupant in self.occupants.values() if occupant.alive]

    def _broadcast(self, now_s: float) -> list[Action]:
        self._changed, self._broadcast_s = False, now_s
        directory = self.directory(now_s)
        return [
            Send(occupant.peer, directory, self._epoch)
            for occupant in self._living()
            if occupant.peer is not None and not occupant.told  # who is told hangs up when it likes
        ]

    # --- judgements --------------------------------------------------------------------------------------------

    def _judge_deaths(self, now_s: float) -> list[Action]:
        """A death that nobody asked for: the seat is filled again, or the server ends."""
        dead = [
            o for o in self.occupants.values()
            if not o.alive and not self._was_told(o) and o.seat not in self._due_s
            and o.seat in self.seats and not self.office.is_leaving(o.seat)
        ]  # fmt: skip
        actions: list[Action] = []
        for occupant in list(dead):
            delay_s = self._delay_s(occupant.seat, now_s)
            if delay_s is not None:
                self._due_s[occupant.seat] = now_s + delay_s
                dead.remove(occupant)
                actions += self._take_along(occupant.seat, now_s + delay_s)
        if not dead:
            return actions
        first = min(dead, key=lambda occupant: occupant.exited_s)
        explained = first.failure or (first.exit_status or 0) < 0
        if not explained and now_s < first.exited_s + FAILURE_GRACE_S:
            return actions
        line = describe_death(first, self.oom_kills)
        self._begin(shutdown.unready(1, line) if self.ready_s is None else shutdown.fatal(line))
        return [Drain()]

    def _take_along(self, seat: Seat, due_s: float) -> list[Action]:
        """Ends those that build on what has died; they start again with it."""
        actions: list[Action] = []
        for other in dependents(seat, self.seats):
            occupant = self.occupants[other]
            if occupant.alive and other not in self._sacrificed:
                occupant.killed_for = f"was ended because {seat.name} had died"
                self._sacrificed[other] = due_s
                actions.append(Signal(other, SIGKILL))
        return actions

    def _delay_s(self, seat: Seat, now_s: float) -> float | None:
        """After how long a dead process is replaced; None: not at all, the server ends with it."""
        if self.shutdown is not None or self.ready_s is None:
            return None
        due_s = self._sacrificed.pop(seat, None)
        if due_s is not None:  # not a death of its own
            return max(0.0, due_s - now_s)
        if seat.role is Role.SCHEDULER:
            self.office.note_death(describe_death(self.occupants[seat], self.oom_kills), now_s)
        return self.restarts.delay_s(seat, now_s)

    def _refill(self, now_s: float) -> list[Action]:
        """Starts what is due; a new scheduler is a new epoch."""
        if self.shutdown is not None:
            self._due_s.clear()
        due = [seat for seat, at_s in self._due_s.items() if at_s <= now_s]
        for seat in due:
            del self._due_s[seat]
            self._epoch += seat.role is Role.SCHEDULER
        return [Spawn(seat, self._epoch, self.office.arguments(seat)) for seat in due]

    def _was_told(self, occupant: Occupant) -> bool:
        """Its end is part of a shutdown. While frontends finish their requests on the operator's wish, the others
        must live: the death of one of them makes an orderly shutdown a fatal one."""
        plan = self.shutdown
        if plan is None:
            return False
        finishing = plan.orderly and plan.stages and plan.stages[0].roles == (Role.FRONTEND,)
        return not finishing or occupant.seat.role is Role.FRONTEND

    def _judge_silence(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for occupant in self._living() if self.shutdown is None else []:
            silence_s = now_s - occupant.heard_s
            if silence_s > occupant.bound_s + SILENCE_MARGIN_S and not occupant.killed_for:
                occupant.killed_for = describe_silence(occupant, silence_s)
                actions.append(Signal(occupant.seat, SIGKILL))  # judged when its exit is seen
        return actions

    def _asked_to_swap(self, client: bytes, swap: Swap, now_s: float) -> list[Action]:
        if not self.ready and not self.office.busy:
            return [Send(client, Swapped(False, f"the server is {self.phase}", swap.ticket))]
        self._epoch += 1
        return self.office.ask(client, swap, self._epoch, now_s)

    def _asked_to_stop(self, why: str, now_s: float, timeout_s: float) -> list[Action]:
        plan = self.shutdown
        if plan is not None:  # asked again: only ever sooner
            plan.term_s = min(plan.term_s, now_s + timeout_s + shutdown.TERM_AFTER_S)
            return []
        if self.ready_s is None:
            self._begin(shutdown.unready(0, f"stopped before it was ready ({why})"))
        else:
            self._begin(shutdown.orderly(f"stopped ({why})", timeout_s))
        return [Drain()]

    def _begin(self, plan: Shutdown) -> None:
        self.shutdown, self.draining, self._changed = plan, True, True

    # --- shutdown ----------------------------------------------------------------------------------------------

    def _proceed(self, plan: Shutdown, now_s: float) -> list[Action]:
        """One look at the shutdown: the next stage if this one is through, the next measure if it is late."""
        actions: list[Action] = []
        while plan.stages and not self._left(plan):
            plan.stages.pop(0)
            plan.told = plan.termed = plan.killed = False
        if not plan.stages:
            if not self.finished:
                self.finished = True
                actions.append(Finish(plan.status, plan.line))
            return actions
        left = self._left(plan)
        if not plan.told:
            actions += self._tell(plan, left, now_s)
        elif not plan.termed and now_s >= plan.term_s:
            plan.termed, plan.kill_s = True, now_s + shutdown.KILL_AFTER_S
            actions += [Signal(occupant.seat, SIGTERM) for occupant in left]
        elif plan.termed and not plan.killed and now_s >= plan.kill_s:
            plan.killed = True
            actions += [Signal(occupant.seat, SIGKILL) for occupant in left]
        return actions

    def _left(self, plan: Shutdown) -> list[Occupant]:
        return [o for o in self._living() if o.seat.role in plan.stages[0].roles]

    def _tell(self, plan: Shutdown, left: Iterable[Occupant], now_s: float) -> list[Action]:
        plan.told = True
        stage = plan.stages[0]
        plan.term_s = now_s + stage.timeout_s + shutdown.TERM_AFTER_S
        actions: list[Action] = []
        for occupant in left:
            occupant.told = True
            if occupant.peer is None:  # not born yet: there is nobody to listen to a Stop
                actions.append(Signal(occupant.seat, SIGTERM))
            else:
                actions.append(Send(occupant.peer, Stop(stage.timeout_s, plan.line), self._epoch))
        return actions
