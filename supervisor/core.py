"""The supervisor's decisions, sans I/O: messages, exits and time go in; actions come out.

What it decides: who is started; what the Directory says and when it is sent; when the server is ready; who has been
silent for too long; what a death means. Who is the scheduler is decided in `office`, how it all ends in `shutdown`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from signal import SIGKILL
from typing import Any

from accelgen.proto.frame import Header
from accelgen.proto.messages import (
    Body,
    Directory,
    Dump,
    Dumped,
    Failure,
    Handoff,
    Heartbeat,
    Hello,
    Query,
    Role,
    Stop,
    Swap,
    Swapped,
)
from accelgen.supervisor import shutdown
from accelgen.supervisor.actions import Action, Drain, Record, Send, Signal, Spawn
from accelgen.supervisor.members import Assignment, Occupant, Seat, own_member
from accelgen.supervisor.office import Office
from accelgen.supervisor.readiness import can_serve, has_started
from accelgen.supervisor.restarts import Restarts, dependents
from accelgen.supervisor.shutdown import Shutdown
from accelgen.supervisor.verdict import describe_death, describe_silence

BROADCAST_S = 1.0
START_BOUND_S = 60.0  # silence allowed before the first Hello: starting Python, importing
SILENCE_MARGIN_S = 1.5  # three heartbeats, on top of what the process announced
FAILURE_GRACE_S = 0.1  # a last word may still be on its way when the exit is seen
_MESSAGES = 'accelgen:messages_total{{process="supervisor",kind="{}"}}'
ASLEEP_S = 2.0  # a gap this long between two looks means that we were asleep ourselves


@dataclass
class SupervisorCore:
    """State of a whole server. `seats`: who is started first, in the order of readiness; `facts` is what the Directory
    carries as config.

    The process keeps `oom_kills` (of the kernel, since the start), `rss_bytes` and `wire` up to date."""

    seats: list[Seat]
    pid: int
    started_s: float
    facts: dict[str, Any] = field(default_factory=dict)
    drain_s: float = 5.0
    oom_kills: int = 0
    rss_bytes: int = 0
    wire: Mapping[str, int] = field(default_factory=dict)  # what became of messages
    occupants: dict[Seat, Occupant] = field(default_factory=dict)
    shutdown: Shutdown | None = None
    draining: bool = False
    ready_s: float | None = None  # when it became ready for the first time
    assignment: Assignment = Assignment("")  # of the first scheduler
    office: Office = field(init=False)
    restarts: Restarts = field(default_factory=Restarts)
    _rounds: int = 0
    _looked_s: float = 0.0
    _broadcast_s: float = 0.0
    _changed: bool = True
    _seat_of: dict[bytes, Seat] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.office = Office(
            self.occupants, self.facts, self.assignment, self.restarts, self.started_s
        )

    # --- inputs ------------------------------------------------------------------------------------------------

    def start(self, now_s: float) -> list[Action]:
        """Everything starts at once; each waits for what it needs by itself. A scheduler has no term yet."""
        self._looked_s = now_s
        return [Spawn(seat, int(seat.role is not Role.SCHEDULER)) for seat in self.seats]

    def spawned(self, seat: Seat, epoch: int, pid: int, now_s: float) -> None:
        """The process has been started."""
        self.occupants[seat] = Occupant(seat, epoch, pid, now_s, now_s, START_BOUND_S)
        self._changed = True

    def heard(self, peer: bytes, header: Header, body: Body, now_s: float) -> list[Action]:
        """A message from a child or from the command line."""
        match body:
            case Query():
                return [Send(peer, self.directory(now_s))]
            case Dump():
                reached = [o.peer for o in self._living() if o.peer is not None]
                return [Record(peer), *(Send(to, Dump(peer), self.office.term) for to in reached)]
            case Dumped(client=client):
                return [Send(client, body)]
            case Swap():
                return self._asked_to_swap(peer, body, now_s)
            case Stop(timeout_s=timeout_s, why=why):
                return self._asked_to_stop(why or "asked to stop", now_s, timeout_s)
            case Hello():
                self._hello(peer, header, body)
        if occupant := self._occupant_at(peer):
            occupant.heard_s = now_s
            self._changed |= self._take_word(occupant, body)
        return []

    def _take_word(self, occupant: Occupant, body: Body) -> bool:
        """What a child says of itself; whether the Directory changes with it."""
        match body:
            case Heartbeat():
                return occupant.note(body)
            case Handoff(snapshot=snapshot):
                self.office.keep(occupant.seat, snapshot)
            case Failure(line=line):
                occupant.failure = occupant.failure or line
        return False  # no child says anything else; the wire has counted it

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
        return self.shutdown.end_now(self._living())

    def tick(self, now_s: float) -> list[Action]:
        """Everything that time decides. Call it after each batch of input and at `next_look_s`, messages read first."""
        self._rounds += 1
        if now_s - self._looked_s > ASLEEP_S:  # suspended: the silence was ours, not theirs
            for occupant in self._living():
                occupant.heard_s = now_s
        self._looked_s = now_s
        actions = self._judge_deaths(now_s)
        actions += self.office.proceed(now_s, self.shutdown is not None)
        if self._replaces:
            due = self.restarts.take_due(now_s)
            actions += [Spawn(seat, self.office.term) for seat in due if self._is_wanted(seat)]
            wants_spare = self.ready_s is not None and self.shutdown is None
            actions += self.office.fill(now_s, wants_spare)
            actions += self._judge_silence(now_s)
        if self.ready and self.ready_s is None:
            self.ready_s, self._changed = now_s, True
        if self.shutdown is not None:
            actions += self.shutdown.proceed(self._living(), self.office.term, now_s)
        self._changed |= self.office.take_change()
        if self._changed or now_s >= self._broadcast_s + BROADCAST_S:
            actions += self._broadcast(now_s)
        return actions

    def next_look_s(self) -> float:
        """When `tick` wants to be called again at the latest."""
        times = [self._broadcast_s + BROADCAST_S]
        if self.shutdown is not None:
            times.append(self.shutdown.next_look_s())
        if not self._replaces:
            return min(times)
        times.append(self.office.next_look_s())
        for occupant in self.occupants.values():
            if self._is_missed(occupant):
                times.append(occupant.exited_s + FAILURE_GRACE_S)
            elif occupant.alive and not occupant.killed_for:
                times.append(occupant.heard_s + occupant.bound_s + SILENCE_MARGIN_S)
        return min(*times, self.restarts.next_s())

    # --- views -------------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Nobody wants to stop, and everybody is ready; after the first time: whoever is needed to serve."""
        if self.shutdown is not None:
            return False
        if self.ready_s is None:
            return has_started(self.seats, self.occupants)
        return self.office.serving and can_serve(self.seats, self.occupants)

    @property
    def _replaces(self) -> bool:
        """Whoever dies is replaced, and whoever is silent for too long is killed: as long as there are requests."""
        return self.shutdown is None or self.shutdown.finishing

    @property
    def phase(self) -> str:
        """The server's own phase, which is the supervisor's, too."""
        if self.shutdown is not None:
            return "stopping"
        return "ready" if self.ready else "starting"

    def directory(self, now_s: float) -> Directory:
        """The supervisor and everybody in a seat."""
        uptime_s = max(0.0, now_s - self.started_s)
        gauges = {_MESSAGES.format(kind): float(n) for kind, n in self.wire.items()}
        own = own_member(
            self.pid, self.office.term, self.phase, self._rounds, uptime_s, self.rss_bytes, gauges
        )
        seated = sorted(self.occupants.values(), key=lambda o: (-o.seat.role, o.seat.index))
        members = [own, *(occupant.member(now_s) for occupant in seated)]
        facts = {**self.facts, "policy_s": max(0.0, now_s - self.office.since_s)}
        return Directory(members, self.ready, self.draining, facts)

    # --- messages ----------------------------------------------------------------------------------------------

    def _hello(self, peer: bytes, header: Header, hello: Hello) -> None:
        seat = Seat(hello.role, hello.index)
        occupant = self.occupants.get(seat)
        if occupant is None or occupant.pid != hello.pid or occupant.peer not in (None, peer):
            return  # a life that is over, or nobody of ours
        self._seat_of[peer] = seat
        occupant.greet(peer, header.incarnation, hello)
        self._changed = True

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
            Send(occupant.peer, directory, self.office.term)
            for occupant in self._living()
            if occupant.peer is not None and (self._replaces or not occupant.told)
        ]

    def _is_wanted(self, seat: Seat) -> bool:
        """A frontend that begins while the others finish has nothing to do."""
        return self.shutdown is None or seat.role is not Role.FRONTEND

    # --- judgements --------------------------------------------------------------------------------------------

    def _judge_deaths(self, now_s: float) -> list[Action]:
        """A death that nobody asked for: the seat is filled again, or the server ends."""
        actions: list[Action] = []
        dead: list[Occupant] = []
        for occupant in filter(self._is_missed, [*self.occupants.values()]):
            if self._can_go_on(occupant, now_s):
                actions += self._take_along(occupant.seat)
            else:
                dead.append(occupant)
        if not dead:
            return actions
        first = min(dead, key=lambda occupant: occupant.exited_s)
        explained = first.failure or (first.exit_status or 0) < 0
        if not explained and now_s < first.exited_s + FAILURE_GRACE_S:
            return actions
        line = describe_death(first, self.oom_kills)
        self._begin(shutdown.unready(1, line) if self.ready_s is None else shutdown.fatal(line))
        return [*actions, Drain()]

    def _is_missed(self, occupant: Occupant) -> bool:
        """It has died, and that has yet to have consequences."""
        if occupant.alive or occupant.judged:
            return False
        if occupant.seat.role is Role.SCHEDULER:
            if not self.office.is_missed(occupant):
                return False
            if self.office.is_spare(occupant.seat):
                return not occupant.told
        return self.shutdown is None or not self.shutdown.covers(occupant)

    def _can_go_on(self, dead: Occupant, now_s: float) -> bool:
        """Whether the server goes on without it or with another in its place; sees to that."""
        is_scheduler = dead.seat.role is Role.SCHEDULER
        can_be_replaced = self._replaces and self.ready_s is not None
        if not can_be_replaced and not (is_scheduler and self.office.is_spare(dead.seat)):
            return False
        if is_scheduler:
            return self.office.lose(dead, describe_death(dead, self.oom_kills), now_s)
        dead.judged = self.restarts.plan(dead.seat, now_s)
        return dead.judged

    def _take_along(self, seat: Seat) -> list[Action]:
        """Ends those that build on what has died; they start again with it."""
        actions: list[Action] = []
        for other in dependents(seat, self.seats):
            occupant = self.occupants[other]
            if occupant.alive and self.restarts.sacrifice(other, seat):
                occupant.killed_for = f"was ended because {seat.name} had died"
                actions.append(Signal(other, SIGKILL))
        return actions

    def _judge_silence(self, now_s: float) -> list[Action]:
        actions: list[Action] = []
        for occupant in self._living():
            silence_s = now_s - occupant.heard_s
            if silence_s > occupant.bound_s + SILENCE_MARGIN_S and not occupant.killed_for:
                occupant.killed_for = describe_silence(occupant, silence_s)
                actions.append(Signal(occupant.seat, SIGKILL))  # judged when its exit is seen
        return actions

    def _asked_to_swap(self, client: bytes, swap: Swap, now_s: float) -> list[Action]:
        if not self.ready and not self.office.busy:
            return [Send(client, Swapped(False, f"the server is {self.phase}", swap.ticket))]
        return self.office.ask(client, swap, now_s)

    def _asked_to_stop(self, why: str, now_s: float, timeout_s: float) -> list[Action]:
        plan = self.shutdown
        if plan is not None:
            plan.hurry(now_s, timeout_s)
            return []
        if self.ready_s is None:
            self._begin(shutdown.unready(0, f"stopped before it was ready ({why})"))
        else:
            self._begin(shutdown.orderly(f"stopped ({why})", timeout_s))
        return [Drain()]

    def _begin(self, plan: Shutdown) -> None:
        self.shutdown, self.draining, self._changed = plan, True, True
