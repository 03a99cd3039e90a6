"""Child processes: how they are started, watched, signalled and reaped. Use it from the main thread only:
PDEATHSIG strikes when the *thread* that started a child ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from accelgen.proto.messages import Role
from accelgen.supervisor.linux import usable_cores
from accelgen.supervisor.members import Seat

Command = Callable[[Role], list[str]]
_TAIL_BYTES = 8192


def component_command(role: Role) -> list[str]:
    """How the process of a role is started; -P keeps the current folder out of the import path."""
    return [sys.executable, "-P", "-m", f"accelgen.{role.name.lower()}"]


@dataclass
class Child:
    """A running process with its pidfd (readable when it has ended) and its log file."""

    seat: Seat
    process: subprocess.Popen[bytes]
    pidfd: int
    log: Path


class Children:
    """All child processes of one server. `command` says how a role is started; `listen_fd` goes to frontends."""

    def __init__(
        self, run_dir: Path, listen_fd: int, replicas: int, command: Command = component_command
    ) -> None:
        self._run_dir, self._listen_fd, self._command = run_dir, listen_fd, command
        self._replicas = replicas
        self._of: dict[Seat, Child] = {}

    def spawn(self, seat: Seat, epoch: int) -> Child:
        """Starts the process of `seat`: own process group (the terminal's Ctrl-C is the supervisor's), output to
        its log, environment as the role needs it."""
        assert seat not in self._of, f"{seat.name} is taken"
        log = self._run_dir / "logs" / f"{seat.name}.log"
        arguments = ["--run-dir", str(self._run_dir), "--index", str(seat.index)]
        arguments += ["--epoch", str(epoch), "--parent", str(os.getpid())]
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*self._command(seat.role), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=environment(seat.role, self._replicas, self._listen_fd),
                pass_fds=(self._listen_fd,) if seat.role is Role.FRONTEND else (),
                process_group=0,
            )
        child = Child(seat, process, os.pidfd_open(process.pid), log)
        self._of[seat] = child
        return child

    def send_signal(self, seat: Seat, signum: int) -> None:
        """Signals the process of `seat`, if it is there; SIGKILL reaches what it started, too."""
        child = self._of.get(seat)
        if child is None:
            return
        if signum == signal.SIGKILL:
            os.killpg(child.process.pid, signum)  # not reaped yet: the number is still its own
        else:
            signal.pidfd_send_signal(child.pidfd, signum)

    def reap(self, child: Child) -> tuple[int, str]:
        """Exit status (negative: signal) and the last line of the log of a child whose pidfd became readable."""
        status = child.process.wait()
        os.close(child.pidfd)
        del self._of[child.seat]
        return status, last_line(child.log)

    def kill_all(self) -> None:
        """The last resort of a supervisor that fails itself: nobody stays behind."""
        for child in list(self._of.values()):
            self.send_signal(child.seat, signal.SIGKILL)
            self.reap(child)


def environment(role: Role, replicas: int, listen_fd: int) -> dict[str, str]:
    """Environment of a child. What the user has set himself stays (thread counts among it)."""
    mine = dict(os.environ)
    defaults = {
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # glibc gives each thread an arena of its own, which the small processes pay for in resident memory.
        "MALLOC_ARENA_MAX": "2",
    }
    if role is Role.WORKER:
        # GNU OpenMP spins for long before it sleeps: with other processes on the same cores that costs
        # up to ten times the step; this count keeps the fast path and ends the pathology.
        defaults["GOMP_SPINCOUNT"] = "10000"
        defaults["OMP_NUM_THREADS"] = str(max(1, usable_cores() // replicas))
    else:
        mine["OMP_NUM_THREADS"] = "1"
    mine["HF_HUB_OFFLINE"] = (
        "1"  # the supervisor has found (or fetched) the model: children stay local
    )
    if role is Role.FRONTEND:
        mine["ACCELGEN_LISTEN_FD"] = str(listen_fd)
    return {**defaults, **mine}


def last_line(log: Path) -> str:
    """The last line with content of a log file, shortened for people; "" if there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")
