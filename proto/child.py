"""What every child process does besides its work: say hello, beat, obey Stop, die with its parent.

A child is started as `python -P -m accelgen.<component> --run-dir DIR --index N --epoch E --parent PID`; everything
else it reads from `DIR/config.json`. It talks to the supervisor over `ipc://DIR/supervisor.sock`.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import signal
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import structlog
import zmq

from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, load_config
from accelgen.proto.dumps import FOLDER, Dumps
from accelgen.proto.ids import new_incarnation
from accelgen.proto.logs import configure_logs
from accelgen.proto.memory import ResidentMemory
from accelgen.proto.messages import (
    Assume,
    Body,
    Directory,
    Dump,
    Facts,
    Failure,
    Heartbeat,
    Hello,
    Prepare,
    Role,
    Stop,
    Swapped,
    Yield,
)
from accelgen.proto.recorder import fact, start_recorder
from accelgen.proto.sockets import LINGER_MS, Dealer, raise_file_limit

HEARTBEAT_S = 0.5
_PR_SET_PDEATHSIG = 1


def endpoint_of(run_dir: Path, role: Role, index: int = 0) -> str:
    """Where a component binds its Router. Names are short: the path limit of ipc is 107 bytes."""
    name = role.name.lower() if role is Role.SUPERVISOR else f"{role.name.lower()}-{index}"
    return f"ipc://{run_dir}/{name}.sock"


def die_with_parent(parent_pid: int) -> None:
    """Asks the kernel for SIGKILL when the parent dies (Linux), whatever kills the parent."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it died before we asked
        os._exit(1)


class Child:
    """The link of one component to its supervisor, and the facts of its life.

    Call `beat()` in every round of the main loop, and `phase(...)` when the kind of work changes. `stopping` turns
    true when Stop (or SIGTERM) came; `directory` is the newest Directory; `epoch` changes with a scheduler's term."""

    def __init__(self, role: Role, run_dir: Path, index: int, epoch: int) -> None:
        self.role, self.run_dir, self.index, self.epoch = role, run_dir, index, epoch
        self.config: Config = load_config(run_dir / "config.json")
        self.name = f"{role.name.lower()}-{index}"
        configure_logs(self.name, self.config.log_level)
        start_recorder(self.config.recorder_events, self.config.recorder_bytes)
        raise_file_limit()
        self.incarnation = new_incarnation()
        self.dumps = Dumps(run_dir / FOLDER, self.name, self.incarnation)
        self.endpoint = endpoint_of(run_dir, role, index)
        self.directory: Directory | None = None
        self.stopping = False
        self.stop_timeout_s = 0.0
        # of a scheduler, to be obeyed in turn
        self.orders: deque[Prepare | Assume | Yield] = deque()
        self.swapped: list[Swapped] = []  # answers to what a frontend has asked for
        self.gauges: Callable[[], dict[str, float]] = dict  # asked for each Heartbeat
        self._phase = "starting"
        self._progress = 0
        self._bound_s = self._said_bound_s = 60.0
        self._next_beat_s = 0.0
        self._memory = ResidentMemory()
        self.link = Dealer(
            endpoint_of(run_dir, Role.SUPERVISOR),
            f"{self.name}:{self.incarnation}",
            self.incarnation,
        )
        self._hello(None)
        signal.signal(signal.SIGTERM, self._on_sigterm)
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # Ctrl-C reaches the whole group; the supervisor decides

    @classmethod
    def from_command_line(cls, role: Role) -> Child:
        """Parses the arguments that the supervisor gives every child."""
        parser = argparse.ArgumentParser(prog=f"accelgen.{role.name.lower()}")
        parser.add_argument("--run-dir", type=Path, required=True)
        parser.add_argument("--index", type=int, default=0)
        parser.add_argument("--epoch", type=int, default=1)
        parser.add_argument("--parent", type=int, default=0)
        given = parser.parse_args()
        if given.parent:
            die_with_parent(given.parent)
        child = cls(role, given.run_dir, given.index, given.epoch)
        sys.excepthook = child.dumps.on_exception
        return child

    def phase(self, name: str, bound_s: float | None = None, facts: Facts | None = None) -> None:
        """Announces a new phase and how long it may be silent (by default 5 s when ready, else 60 s); `facts` travel
        in a Hello, which comes first: who is ready has told all. Gauges of the phase are known with it likewise."""
        self._phase = name
        self._bound_s = bound_s or (5.0 if name == "ready" else 60.0)
        structlog.get_logger().info("phase", phase=name)
        fact("phase", phase=name)
        if facts is not None:
            self._hello(facts)
        self._send_heartbeat(now_s())
        if facts is None and name == "ready":  # the first one may have been lost
            self._hello(None)

    @property
    def current_phase(self) -> str:
        """What was announced last."""
        return self._phase

    def beat(self, bound_s: float = 5.0, progress: bool = True) -> None:
        """Call once per loop round: counts progress, sends a Heartbeat when due, reads what the supervisor says."""
        self._progress += progress
        self._bound_s = bound_s
        now = now_s()
        if (
            now >= self._next_beat_s or bound_s > self._said_bound_s
        ):  # a longer silence is announced first
            self._send_heartbeat(now)
        self.hear()

    def hear(self) -> None:
        """Reads what the supervisor says, between two beats."""
        while (message := self.link.recv()) is not None:
            self._obey(message[1])
        for answer in self.dumps.answers():
            self.link.send(answer)

    def fail(self, line: str) -> NoReturn:
        """Says the one clear last line of a fatal fault and ends the process with status 1."""
        structlog.get_logger().error("fatal", line=line)
        self.link.send(Failure(line[:2000]))
        self.dumps.write_last()
        zmq.Context.instance().destroy(linger=LINGER_MS)  # closes every socket: term alone waits
        sys.exit(1)

    def _obey(self, body: Body) -> None:
        match body:
            case Directory():
                self.directory = body
            case Stop(timeout_s=timeout_s):
                self.stopping, self.stop_timeout_s = True, timeout_s
            case Prepare() | Assume() | Yield():
                self.orders.append(body)
            case Dump(client=client):
                self.dumps.ask(client)
            case Swapped():
                self.swapped.append(body)
            case _:
                structlog.get_logger().warning("unexpected message", kind=type(body).__name__)

    def _hello(self, facts: Facts | None) -> None:
        self.link.send(
            Hello(self.role, self.index, os.getpid(), self.endpoint, self._phase, facts), self.epoch
        )

    def _send_heartbeat(self, now: float) -> None:
        self._next_beat_s, self._said_bound_s = now + HEARTBEAT_S, self._bound_s
        rss_bytes = self._memory.bytes()
        self.link.send(
            Heartbeat(self._progress, self._phase, self._bound_s, rss_bytes, self.gauges()),
            self.epoch,
        )

    def _on_sigterm(self, *_: object) -> None:
        self.stopping = True
