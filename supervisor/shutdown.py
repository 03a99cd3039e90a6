"""The plan of a shutdown: who is told to stop when, and how long each may take before it is made to. Sans I/O."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from signal import SIGKILL, SIGTERM

from accelgen.proto.messages import Role, Stop
from accelgen.supervisor.actions import Action, Finish, Send, Signal
from accelgen.supervisor.members import Occupant

TERM_AFTER_S = 0.5  # what a process gets on top of the time that Stop named, before SIGTERM
KILL_AFTER_S = 0.5  # and after SIGTERM, before SIGKILL


@dataclass(frozen=True)
class Stage:
    """Processes of these roles stop together, within `timeout_s` seconds."""

    roles: tuple[Role, ...]
    timeout_s: float


@dataclass
class Shutdown:
    """A shutdown on its way. `status` is the exit status of `accelgen up`, `line` the last thing it says."""

    status: int
    line: str
    stages: list[Stage]
    orderly: bool = False  # the operator's wish, with requests to finish
    told: bool = False  # the first stage has its Stop
    term_s: float = 0.0  # when the first stage gets SIGTERM, and SIGKILL
    kill_s: float = 0.0
    termed: bool = False
    killed: bool = False
    finished: bool = False

    @property
    def finishing(self) -> bool:
        """Frontends finish their requests on the operator's wish. So long the others must live: who of them dies is
        replaced, as ever."""
        return self.orderly and bool(self.stages) and self.stages[0].roles == (Role.FRONTEND,)

    def covers(self, dead: Occupant) -> bool:
        """Its end is part of this."""
        return not self.finishing or dead.seat.role is Role.FRONTEND

    def proceed(self, living: list[Occupant], epoch: int, now_s: float) -> list[Action]:
        """One look at it: the next stage if this one is through, the next measure if it is late."""
        while self.stages and not self._left(living):
            self.stages.pop(0)
            self.told = self.termed = self.killed = False
        if not self.stages:
            finish = [] if self.finished else [Finish(self.status, self.line)]
            self.finished = True
            return [*finish]
        left = self._left(living)
        if not self.told:
            return self._tell(left, epoch, now_s)
        if not self.termed and now_s >= self.term_s:
            self.termed, self.kill_s = True, now_s + KILL_AFTER_S
            return [Signal(occupant.seat, SIGTERM) for occupant in left]
        if self.termed and not self.killed and now_s >= self.kill_s:
            self.killed = True
            return [Signal(occupant.seat, SIGKILL) for occupant in left]
        return []

    def hurry(self, now_s: float, timeout_s: float) -> None:
        """Asked for again: only ever sooner."""
        self.term_s = min(self.term_s, now_s + timeout_s + TERM_AFTER_S)

    def end_now(self, living: list[Occupant]) -> list[Action]:
        """No more patience; its exit status and its line stay."""
        self.stages = [Stage(tuple(Role), 0.0)]
        self.told = self.termed = self.killed = True
        return [Signal(occupant.seat, SIGKILL) for occupant in living]

    def next_look_s(self) -> float:
        """When `proceed` wants to be called again at the latest."""
        if not self.told or self.killed:
            return inf
        return self.kill_s if self.termed else self.term_s

    def _left(self, living: list[Occupant]) -> list[Occupant]:
        return [occupant for occupant in living if occupant.seat.role in self.stages[0].roles]

    def _tell(self, left: list[Occupant], epoch: int, now_s: float) -> list[Action]:
        self.told = True
        timeout_s = self.stages[0].timeout_s
        self.term_s = now_s + timeout_s + TERM_AFTER_S
        actions: list[Action] = []
        for occupant in left:
            occupant.told = True
            if occupant.peer is None:  # not born yet: there is nobody to listen to a Stop
                actions.append(Signal(occupant.seat, SIGTERM))
            else:
                actions.append(Send(occupant.peer, Stop(timeout_s, self.line), epoch))
        return actions


def orderly(line: str, drain_s: float) -> Shutdown:
    """Asked for by the operator: frontends finish what they have within `drain_s`, the others follow one by one."""
    later = [Stage((role,), 1.0) for role in (Role.SCHEDULER, Role.KVMANAGER, Role.WORKER)]
    return Shutdown(0, line, [Stage((Role.FRONTEND,), drain_s), *later], orderly=True)


def unready(status: int, line: str) -> Shutdown:
    """Before the server was ready: there is nothing to finish."""
    return Shutdown(status, line, [Stage(tuple(Role), 0.0)])


def fatal(line: str) -> Shutdown:
    """After a fatal fault: frontends tell their clients, then the rest ends at once."""
    rest = (Role.SCHEDULER, Role.KVMANAGER, Role.WORKER)
    return Shutdown(1, line, [Stage((Role.FRONTEND,), 1.0), Stage(rest, 0.0)])
