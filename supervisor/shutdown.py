"""The plan of a shutdown: who is told to stop when, and how long each may take before it is made to."""

from __future__ import annotations

from dataclasses import dataclass

from accelgen.proto.messages import Role

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
