"""Faults inside a process, carried out by its agent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelgen.faults import processes
from accelgen.faults.contract import Allowance
from accelgen.faults.fault import Decoy, Site
from accelgen.faults.process_faults import ProcessFault
from accelgen.faults.server import SUPERVISOR, find
from accelgen.supervisor.errors import StartError

MIB = 1 << 20
SILENT_S = 0.8  # a heartbeat is due every 0.5 s; the supervisor answers at once
HUNG_S = 600.0  # a hang that only a kill ends


class Ordered(ProcessFault):
    """Carried out by the agent in the process, whose proof counts only if it is the target's."""

    def __init__(self, site: Site, do: str, **details: Any) -> None:
        super().__init__(site)
        self._do, self._details = do, details
        self._number = 0

    def strike(self, pid: int) -> None:
        self._number = self.site.server.orders.give(pid, self._do, **self._details)

    def proof(self) -> str:
        proofs = self.site.server.orders.proofs(self._number, self.target_pid)
        return proofs[0] if proofs else ""


class Hang(Ordered):
    """Holds the interpreter, as a loop in a C extension does: no thread of the process runs any more. A hang that is
    longer than the process may be silent is proved by its heartbeats, too: they have stopped."""

    def __init__(self, site: Site, seconds: float = HUNG_S) -> None:
        super().__init__(site, "hang", seconds=seconds)
        self.lasts_s = min(seconds, 12.0)
        self.ends_target = seconds >= HUNG_S

    def proof(self) -> str:
        said = super().proof()
        if not said:
            return ""
        try:
            directory = self.site.server.see(SILENT_S)
        except StartError:
            dumb = self.site.target == SUPERVISOR
            return f"{said}; no answer for {SILENT_S:g} s" if dumb else ""
        member = find(directory, self.site.target)
        if member is None or member.pid != self.target_pid or member.heard_s < SILENT_S:
            return ""
        return f"{said}; no heartbeat for {member.heard_s:.1f} s"


class Slow(Ordered):
    """Every step takes longer for a while."""

    lasts_s = 2.0

    def __init__(self, site: Site) -> None:
        super().__init__(site, "slow", by_s=0.05, seconds=self.lasts_s)

    def proof(self) -> str:
        proofs = self.site.server.orders.proofs(self._number, self.target_pid)
        return f"{len(proofs)} slower steps" if len(proofs) > 1 else ""


class Raise(Ordered):
    """An exception in the next step. One that the worker survives costs the requests of that step."""

    def __init__(self, site: Site, exception: str, step: str = "") -> None:
        super().__init__(site, "raise", exception=exception, **({"step": step} if step else {}))
        self.ends_target = not step
        self._survived = bool(step)

    def allowance(self) -> Allowance:
        if self._survived:
            return Allowance(errors=frozenset({"worker_failed"}), refusals=frozenset({500}))
        return super().allowance()


class Exit(Ordered):
    """os._exit(0): a death that looks clean."""

    ends_target = True

    def __init__(self, site: Site) -> None:
        super().__init__(site, "exit")

    def proof(self) -> str:
        said = super().proof()
        return said if said and processes.is_gone(self.target_pid) else ""


class OutOfMemory(Ordered):
    """No address space left, when the next step wants some."""

    ends_target = True

    def __init__(self, site: Site) -> None:
        super().__init__(site, "hog")

    def strike(self, pid: int) -> None:
        processes.limit_memory(pid, 64 * MIB)
        super().strike(pid)

    def lift(self) -> None:
        processes.lift_limits(self.target_pid)


class OutOfFiles(Ordered):
    """No file descriptor left for a while."""

    lasts_s = 2.0

    def __init__(self, site: Site) -> None:
        super().__init__(site, "open")

    def strike(self, pid: int) -> None:
        processes.limit_files(pid)
        super().strike(pid)

    def proof(self) -> str:
        return "EMFILE" if super().proof() == "EMFILE" else ""

    def lift(self) -> None:
        processes.lift_limits(self.target_pid)

    def allowance(self) -> Allowance:
        """A frontend without descriptors cannot take connections: those it drops are none of its requests."""
        if not self.site.target.startswith("frontend"):
            return Allowance()
        return Allowance(unanswered=True)


class DiskFull(Ordered):
    """Nothing more can be written to its log for a while."""

    lasts_s = 2.0

    def __init__(self, site: Site) -> None:
        super().__init__(site, "log")

    def strike(self, pid: int) -> None:
        log = Path(f"/proc/{pid}/fd/2")
        processes.limit_file_size(pid, max(1, log.stat().st_size))
        super().strike(pid)

    def proof(self) -> str:
        return "EFBIG" if super().proof() == "EFBIG" else ""

    def lift(self) -> None:
        processes.lift_limits(self.target_pid)


class ClockStep(Ordered):
    """The wall clock jumps, as the process sees it; nothing may depend on it."""

    lasts_s = 1.0

    def __init__(self, site: Site, seconds: float) -> None:
        super().__init__(site, "clock", seconds=seconds)


class SlowStart(Ordered):
    """The processes of a role take their time when they start, as one does that loads a large model."""

    def __init__(self, site: Site) -> None:
        super().__init__(site, "sleep", seconds=8.0)
        self._role = site.target.partition("-")[0]

    def prepare(self) -> None:
        """The order waits for the process."""
        orders = self.site.server.orders
        self._number = orders.give_at_start(self._role, self._do, **self._details)

    def inject(self, decoy: Decoy | None = None) -> None:
        """It has got it at its start; a control asks a process for whom there was none."""
        self.target_pid = decoy.pid if decoy else self.site.server.await_pid(self.site.target)

    def proof(self) -> str:
        proofs = self.site.server.orders.proofs(self._number, self.target_pid)
        return " and ".join(proofs)

    def remove(self) -> None:
        self.site.server.orders.forget()
