"""The matrix: which fault hits whom, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatch
from functools import partial
from signal import SIGKILL, SIGTERM

from accelgen.faults.agent_faults import (
    ClockStep,
    DiskFull,
    Exit,
    Hang,
    OutOfFiles,
    OutOfMemory,
    Raise,
    Slow,
    SlowStart,
)
from accelgen.faults.client import Manner
from accelgen.faults.client_faults import ClientFault, IdleConnections
from accelgen.faults.fault import Fault, Site
from accelgen.faults.link_faults import LINKS, LinkCut, LinkFault
from accelgen.faults.process_faults import CrashLoop, Freeze, Kill, Leftovers, StaleSocket
from accelgen.faults.server import SUPERVISOR
from accelgen.faults.tamper import Effect
from accelgen.faults.wire_faults import DuplicateIdentity, Garbage, OldEpoch, Usurper, WrongVersion

Make = Callable[[Site], Fault]

FAULTS: dict[str, Make] = {
    "sigkill": partial(Kill, number=SIGKILL),
    "sigterm": partial(Kill, number=SIGTERM),
    "sigstop-0.5": partial(Freeze, seconds=0.5),
    "sigstop-3": partial(Freeze, seconds=3.0),
    "sigstop-60": partial(Freeze, seconds=60.0),
    "hang": Hang,
    "hang-2": partial(Hang, seconds=2.0),
    "slow": Slow,
    "raise": partial(Raise, exception="ValueError"),
    "exit-0": Exit,
    "out-of-memory": OutOfMemory,
    "out-of-files": OutOfFiles,
    "disk-full": DiskFull,
    "clock-back": partial(ClockStep, seconds=-3600.0),
    "clock-forward": partial(ClockStep, seconds=86400.0),
    "stale-socket": StaleSocket,
    "slow-start": SlowStart,
    "leftovers": Leftovers,
    "model-raises": partial(Raise, exception="RuntimeError", step="forward"),
    "device-out-of-memory": partial(Raise, exception="torch.OutOfMemoryError", step="forward"),
    "crash-loop": CrashLoop,
    "duplicate-identity": DuplicateIdentity,
    "wrong-version": WrongVersion,
    "old-epoch": OldEpoch,
    "usurper": Usurper,
    "garbage": Garbage,
    "link-cut": LinkCut,
    **{f"link-{effect}": partial(LinkFault, effect=effect) for effect in Effect},
    "leaves-at-once": partial(ClientFault, manner=Manner.LEAVES_AT_ONCE),
    "leaves-midway": partial(ClientFault, manner=Manner.LEAVES_MIDWAY),
    "reads-slowly": partial(ClientFault, manner=Manner.SLOW),
    "half-closes": partial(ClientFault, manner=Manner.HALF_CLOSED),
    "idle-connections": IdleConnections,
}
"""Every kind of fault by name."""

COMPONENTS = ("frontend-0", "scheduler", "kvmanager-0", "worker-0")
BOUND = ("frontend-0", "kvmanager-0", "worker-0")  # have a socket that others connect to


class Moment(StrEnum):
    """When a fault strikes."""

    LOAD = "load"
    START = "start"  # while the server comes up
    SWAP = "swap"  # while the policy is replaced
    DRAIN = "drain"  # while it finishes what it has, after SIGTERM
    RECOVERY = "recovery"  # while it recovers from another fault
    END = "end"  # the fault is the end of the server


@dataclass(frozen=True)
class Case:
    """One case. `first`: what it is to recover from when the fault strikes, at the moment `recovery`."""

    fault: str
    target: str
    moment: Moment = Moment.LOAD
    first: tuple[str, str] | None = None

    @property
    def name(self) -> str:
        """`sigkill/worker-0`, `sigkill/worker-0@swap`, `sigkill/worker-0+sigkill/scheduler`."""
        name = f"{self.fault}/{self.target}"
        if self.first is not None:
            return f"{'/'.join(self.first)}+{name}"
        return name if self.moment is Moment.LOAD else f"{name}@{self.moment}"

    @property
    def ends_server(self) -> bool:
        """The server is gone afterwards."""
        return self.moment in (Moment.DRAIN, Moment.END)


def _matrix() -> list[Case]:
    done_to_all = [
        "sigkill", "sigterm", "sigstop-0.5", "sigstop-3", "sigstop-60", "hang", "hang-2", "slow", "raise", "exit-0",
        "out-of-memory", "out-of-files", "disk-full", "clock-back", "clock-forward",
    ]  # fmt: skip
    done_to_supervisor = [
        "sigstop-0.5", "sigstop-3", "hang-2", "slow", "out-of-files", "disk-full", "clock-back", "clock-forward",
    ]  # fmt: skip
    wire = ["duplicate-identity", "wrong-version", "old-epoch", "usurper", "garbage"]
    link = ["link-cut", *(f"link-{effect}" for effect in Effect)]
    client = ["leaves-at-once", "leaves-midway", "reads-slowly", "half-closes", "idle-connections"]
    return [
        *(Case(fault, target) for fault in done_to_all for target in COMPONENTS),
        *(Case(fault, SUPERVISOR) for fault in done_to_supervisor),
        *(Case(fault, "spare") for fault in ("sigkill", "hang")),
        *(Case("stale-socket", target) for target in BOUND),
        Case("model-raises", "worker-0"),
        Case("device-out-of-memory", "worker-0"),
        *(Case(fault, target) for fault in wire for target in BOUND),
        *(Case(fault, SUPERVISOR) for fault in ("wrong-version", "garbage")),
        *(Case(fault, target) for fault in link for target in LINKS),
        *(Case(fault, "clients") for fault in client),
        *(Case("sigkill", target, Moment.START) for target in COMPONENTS),
        *(Case("exit-0", target, Moment.START) for target in COMPONENTS),
        *(Case("slow-start", target, Moment.START) for target in COMPONENTS),
        Case("leftovers", SUPERVISOR, Moment.START),
        *(Case("sigkill", target, Moment.SWAP) for target in (*COMPONENTS, "spare")),
        *(Case("hang", target, Moment.SWAP) for target in ("scheduler", "spare")),
        *(Case(f"link-{Effect.DROP}", target, Moment.SWAP) for target in LINKS),
        *(Case("sigkill", target, Moment.DRAIN) for target in COMPONENTS),
        *(Case("sigstop-0.5", target, Moment.DRAIN) for target in COMPONENTS),
        *(
            Case("sigkill", target, Moment.RECOVERY, ("sigkill", first))
            for first in COMPONENTS
            for target in COMPONENTS
        ),
        Case("hang", "scheduler", Moment.RECOVERY, ("sigkill", "worker-0")),
        Case(f"link-{Effect.DROP}", LINKS[1], Moment.RECOVERY, ("sigkill", "scheduler")),
        *(Case(fault, SUPERVISOR, Moment.END) for fault in ("sigkill", "sigterm")),
        *(Case("crash-loop", target, Moment.END) for target in ("scheduler", "worker-0")),
    ]


MATRIX: list[Case] = _matrix()


def chosen(pattern: str) -> list[Case]:
    """The cases whose names match a shell pattern."""
    return [case for case in MATRIX if fnmatch(case.name, pattern)]
