"""Faults of a whole process that its own code knows nothing of: signals, and files that should not be there."""

from __future__ import annotations

import signal
import socket
from abc import abstractmethod
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil

from accelgen.faults import processes
from accelgen.faults.contract import Allowance
from accelgen.faults.fault import Decoy, Fault, Site
from accelgen.faults.server import ServerGone
from accelgen.proto.clocks import now_s
from accelgen.supervisor.errors import StartError

TERM_S = 8.0  # a frontend finishes what it has before it obeys SIGTERM
ENDING = Allowance(any_port=True, refusals=frozenset({0, 503}), errors=frozenset({"draining"}))
UNSEEN_S = 0.5  # between two looks at the connections of a process


def client_ports(pid: int) -> frozenset[int]:
    """The clients' ports of the TCP connections that a process serves."""
    with suppress(psutil.Error):
        connections = psutil.Process(pid).net_connections("tcp")
        return frozenset(c.raddr.port for c in connections if c.raddr)
    return frozenset()


class ProcessFault(Fault):
    """Done to one process. A frontend takes its own connections with it, and no others."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.target_pid = 0
        self._ports: set[int] = set()
        self._gone_s = 0.0

    def inject(self, decoy: Decoy | None = None) -> None:
        self.target_pid = self.site.server.await_pid(self.site.target)
        if decoy is not None:
            self.strike(decoy.pid)
            return
        self.watch()
        self.strike(self.target_pid)

    def watch(self) -> None:
        """Whose connections a frontend holds: those it takes along, if it dies now."""
        if self.site.target.startswith("frontend") and not self._gone_s:
            self._ports |= client_ports(self.target_pid)
            if processes.is_gone(self.target_pid):
                self._gone_s = now_s()

    @abstractmethod
    def strike(self, pid: int) -> None:
        """What is done."""

    def allowance(self) -> Allowance:
        if not (self.ends_target and self._ports):
            return Allowance()
        # What came in between the last look at the connections and the death may have been its, too.
        from_s, to_s = self._gone_s - UNSEEN_S, self._gone_s + UNSEEN_S
        near = {h.port for h in self.site.load.histories if from_s < h.sent_s < to_s}
        return Allowance(ports=frozenset(self._ports | near))


class Kill(ProcessFault):
    """A signal that ends it."""

    ends_target = True

    def __init__(self, site: Site, number: int = signal.SIGKILL) -> None:
        super().__init__(site)
        self._number = number
        if number == signal.SIGTERM:
            self.proof_s = TERM_S

    def strike(self, pid: int) -> None:
        if pid == self.target_pid and self._number == signal.SIGKILL:
            processes.freeze(pid)  # it takes nothing more: what it holds now is what dies with it
            self.watch()
        processes.send(pid, self._number)

    def proof(self) -> str:
        if processes.is_gone(self.target_pid):
            return f"process {self.target_pid} is gone"
        return ""

    def allowance(self) -> Allowance:
        allowed = super().allowance()
        if self._number != signal.SIGTERM or not self.site.target.startswith("frontend"):
            return allowed
        return replace(allowed, refusals=frozenset({503}), errors=frozenset({"draining"}))


class CrashLoop(Kill):
    """Whoever takes the seat is ended, until the supervisor gives up."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._killed: set[int] = set()

    def strike(self, pid: int) -> None:
        super().strike(pid)
        if pid != self.target_pid:
            return
        server = self.site.server
        while server.exit_status is None:
            with suppress(StartError, ServerGone):
                pid = server.pid(self.site.target)
                processes.send(pid, signal.SIGKILL)
                self._killed.add(pid)

    def proof(self) -> str:
        gone = super().proof()
        return f"{len(self._killed)} lives ended" if gone and len(self._killed) > 1 else ""

    def allowance(self) -> Allowance:
        """The server ends, and says so to whoever it can."""
        return ENDING


class Freeze(ProcessFault):
    """SIGSTOP, and SIGCONT after a while, unless the supervisor has ended it before."""

    def __init__(self, site: Site, seconds: float) -> None:
        super().__init__(site)
        self.lasts_s = seconds
        self.ends_target = seconds > 10.0

    def strike(self, pid: int) -> None:
        processes.freeze(pid)

    def proof(self) -> str:
        return "state T" if processes.state_of(self.target_pid) == "T" else ""

    def lift(self) -> None:
        processes.thaw(self.target_pid)


class StaleSocket(Kill):
    """It dies, and a socket file that nobody listens at lies where its successor wants to bind."""

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._path = site.server.socket_path(site.target)
        self._decoy_path = site.server.socket_path("decoy")
        self._laid_there = False

    def strike(self, pid: int) -> None:
        super().strike(pid)
        hit = pid == self.target_pid
        laid = lay_stale_socket(self._path if hit else self._decoy_path, limit_s=5.0)
        self._laid_there = hit and laid

    def lift(self) -> None:
        self._decoy_path.unlink(missing_ok=True)

    def proof(self) -> str:
        there = super().proof() and self._laid_there
        return f"a dead socket file lay at {self._path.name}" if there else ""


def lay_stale_socket(path: Path, limit_s: float) -> bool:
    """Binds a socket at `path` as soon as the name is free, and closes it: the file stays. False if it was not
    possible in time."""
    until_s = now_s() + limit_s
    while now_s() < until_s:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as leftover, suppress(OSError):
            leftover.bind(str(path))
            return True
    return False


class Leftovers(Fault):
    """The run directory has what a server that was killed has left: sockets, a lock that nobody holds, old logs."""

    names = ("supervisor.sock", "worker-0.sock", "kvmanager-0.sock", "frontend-0.sock")

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._left: dict[str, tuple[int, int]] = {}
        self._checked = site.server.run_dir

    def prepare(self) -> None:
        """Leaves them there."""
        folder = self.site.server.run_dir
        folder.mkdir(mode=0o700)
        (folder / "lock").write_text("1")
        for name in self.names:
            assert lay_stale_socket(folder / name, limit_s=1.0)
            self._left[name] = _life_of(folder / name)

    def inject(self, decoy: Decoy | None = None) -> None:
        """They are there already; a control looks at a folder where nothing was."""
        self._checked = decoy.folder / "nothing" if decoy else self.site.server.run_dir

    def proof(self) -> str:
        """All of them were there before the start, and others are there now."""
        now = {name: self._checked / name for name in self.names}
        replaced = [
            path.exists() and _life_of(path) != self._left[name] for name, path in now.items()
        ]
        if not all(replaced):
            return ""
        return f"{len(now)} dead sockets were replaced"


def _life_of(path: Path) -> tuple[int, int]:
    """Tells a file from another one of the same name; inode numbers are used again."""
    status = path.stat()
    return status.st_ino, status.st_ctime_ns
