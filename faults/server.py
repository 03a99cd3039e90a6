"""A server of one's own to be broken: `accelgen up` as a process, armed with the agent, in a private folder."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from accelgen.faults.orders import Orders
from accelgen.faults.processes import is_gone
from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Directory, Member, Role
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError

UP = [sys.executable, "-P", "-m", "accelgen.scripts.cli", "up"]
OPTIONS = ("--port", "0", "--dtype", "float32", "--kv-blocks", "2048")  # texts can be compared
READY_S = 120.0
SUPERVISOR = "supervisor-0"
GONE_S = 2.0  # contract C8: after so long nothing is left
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class ServerGone(RuntimeError):
    """It has ended, or is not getting ready; the text has what it said last."""


@dataclass(frozen=True)
class Shape:
    """How many processes, and which policy."""

    frontends: int = 2
    replicas: int = 1
    policy: str = "accelgen"

    def options(self) -> tuple[str, ...]:
        """For the command line of `accelgen up`."""
        return (
            *("--frontends", str(self.frontends)),
            *("--replicas", str(self.replicas)),
            *("--policy", self.policy),
        )

    def __str__(self) -> str:
        return f"{self.policy}, {self.frontends} frontends, {self.replicas} replicas"


class Server:
    """Use it as a context: it is taken down at the end, with everything that belongs to it. Start it in the main
    thread: it dies with the thread that started it. `run_dir`, `orders` are there before it is started."""

    def __init__(self, shape: Shape = Shape(), *options: str, start: bool = True) -> None:
        self.shape = shape
        self.folder = Path(
            tempfile.mkdtemp(prefix="ag-")
        )  # a short name: sockets' paths have a limit
        self.run_dir = self.folder / "run"
        self.output = self.folder / "output"
        self.orders = Orders(self.folder / "agent")
        self._options = (*OPTIONS, *shape.options(), "--run-dir", str(self.run_dir), *options)
        self.pids: set[int] = set()  # all that were ever seen
        self.url = ""
        self._process: subprocess.Popen[bytes] | None = None
        if start:
            self.start()
            self.wait_ready()

    def start(self) -> None:
        """Starts `accelgen up`; once more only after it has ended."""
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.folder)}
        with self.output.open("wb") as stream:
            self._process = subprocess.Popen(
                [*UP, *self._options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self.orders.environment(environment),
                start_new_session=True,
                preexec_fn=lambda: _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM),
            )
        self.pids = {self._process.pid}

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it, kindly at first, and removes its folder."""
        self.terminate()
        self.wait_end(15.0)
        for process in self.remains():
            process.kill()
        self.wait_end(5.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- its life ----------------------------------------------------------------------------------------------

    @property
    def exit_status(self) -> int | None:
        """As in subprocess; None as long as it runs, or has not been started."""
        return self._process.poll() if self._process is not None else None

    def terminate(self) -> None:
        """The operator's SIGTERM: finish what there is, and end."""
        if self._process is not None and self.exit_status is None:
            self._process.terminate()

    def wait_end(self, timeout_s: float) -> bool:
        """Waits until it has ended; False if it has not in time."""
        with suppress(subprocess.TimeoutExpired):
            if self._process is not None:
                self._process.wait(max(0.0, timeout_s))
        return self._process is None or self.exit_status is not None

    # --- what there is -----------------------------------------------------------------------------------------

    def see(self, timeout_s: float = 5.0) -> Directory:
        """The supervisor's Directory. Raises StartError if it does not answer."""
        return self.note(ask_directory(self.run_dir, timeout_s))

    def note(self, directory: Directory) -> Directory:
        """Remembers whose processes were seen."""
        self.pids |= {member.pid for member in directory.members}
        return directory

    def member(self, name: str) -> Member:
        """Who fills a seat: `worker-0`; `scheduler` is the one in office, `spare` another one. Raises ServerGone if it
        is empty."""
        member = find(self.see(), name)
        if member is None:
            raise ServerGone(f"there is no {name}")
        return member

    def pid(self, name: str) -> int:
        """The process in a seat. Raises ServerGone if it is empty."""
        return self.member(name).pid

    def await_pid(self, name: str, timeout_s: float = 20.0) -> int:
        """The same for a seat that may be empty just now."""
        until_s = now_s() + timeout_s
        while now_s() < until_s and self.exit_status is None:
            with suppress(StartError, OSError):  # its socket is not there yet
                if member := find(self.see(), name):
                    return member.pid
            time.sleep(0.01)
        raise ServerGone(f"there is no {name} after {timeout_s:g} s")

    def is_whole(self) -> bool:
        """Everybody serves or stands by: with several replicas a server is ready even while one of them is away."""
        with suppress(StartError, OSError):
            directory = self.see(timeout_s=1.0)
            return directory.ready and all(
                member.phase in ("ready", "standby") and not is_gone(member.pid)
                for member in directory.members
            )
        return False

    def gauges(self, since_s: float = 0.0) -> dict[str, float]:
        """What the processes behind the frontends have reported, and none of it before `since_s`; nothing, if one has
        not spoken since. Fresher than /metrics, where it arrives with the Directory once a second."""
        found: dict[str, float] = {}
        with suppress(StartError, OSError):
            for member in self.see(timeout_s=1.0).members:
                if member.role in (Role.SCHEDULER, Role.KVMANAGER, Role.WORKER):
                    if now_s() - member.heard_s < since_s:
                        return {}
                    found |= member.gauges
        return found

    def wait_ready(self, timeout_s: float = READY_S) -> Directory:
        """Until all serve. Raises ServerGone with the last words if they do not."""
        until_s = now_s() + timeout_s
        while now_s() < until_s:
            if self.exit_status is not None:
                raise ServerGone(self.last_words())
            with suppress(StartError, OSError):  # its socket is not there yet
                directory = self.see(timeout_s=1.0)
                if directory.ready:
                    self.url = str(directory.config["url"])
                    return directory
            time.sleep(0.03)
        raise ServerGone(f"not ready after {timeout_s:g} s: {self.last_words()}")

    def socket_path(self, name: str) -> Path:
        """Where the process of a seat binds its socket."""
        own = "supervisor" if name == SUPERVISOR else name
        return self.run_dir / f"{own}.sock"

    def last_words(self) -> str:
        """The last line that `accelgen up` printed."""
        lines = self.output.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"

    def events(self, since: float = 0.0) -> list[dict[str, Any]]:
        """What the supervisor has logged since then (`time.time()`); `at_s` is added."""
        found = []
        path = self.run_dir / "logs" / "supervisor.log"
        for line in path.read_text().splitlines() if path.exists() else ():
            with suppress(json.JSONDecodeError):  # the last line may be half written
                event = json.loads(line)
                event["at_s"] = datetime.fromisoformat(event["timestamp"]).timestamp()
                if event["at_s"] >= since:
                    found.append(event)
        return found

    # --- what may be left --------------------------------------------------------------------------------------

    def remains(self) -> list[psutil.Process]:
        """Processes that work for this server, by their command line."""
        mark, found = str(self.run_dir), []
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if mark in process.cmdline() and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def orphans(self) -> list[psutil.Process]:
        """Processes of this server that its supervisor knows nothing of."""
        known = {member.pid for member in self.see().members}
        return [process for process in self.remains() if process.pid not in known]

    def wait_gone(self, timeout_s: float = GONE_S) -> list[psutil.Process]:
        """Waits until none of its processes is left; those that are, after `timeout_s`."""
        until_s = now_s() + timeout_s
        while (left := self.remains()) and now_s() < until_s:
            time.sleep(0.02)
        return left


def name_of(member: Member) -> str:
    """`worker-0`."""
    return f"{member.role.name.lower()}-{member.index}"


def find(directory: Directory, name: str) -> Member | None:
    """Who fills a seat of this Directory, see `Server.member`; None for nobody."""
    alive = [member for member in directory.members if member.phase != "dead"]
    if name not in ("scheduler", "spare"):
        return next((member for member in alive if name_of(member) == name), None)
    schedulers = [member for member in alive if member.role is Role.SCHEDULER]
    serving = [member for member in schedulers if member.phase in ("ready", "yielded")]
    office = max(serving or schedulers, key=lambda member: member.epoch, default=None)
    if name == "scheduler":
        return office
    return next((member for member in schedulers if member is not office), None)
