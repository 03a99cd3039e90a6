"""The supervisor's loop: moves messages, exits, signals and time between the world and the core."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import Protocol

import structlog
import zmq

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.dumps import FOLDER, Dumps
from accelgen.proto.ids import new_incarnation
from accelgen.proto.memory import ResidentMemory
from accelgen.proto.messages import Directory, Role
from accelgen.proto.recorder import fact
from accelgen.proto.sockets import Router, raise_file_limit
from accelgen.supervisor.actions import Action, Drain, Finish, Record, Send, Signal, Spawn
from accelgen.supervisor.children import Child, Children
from accelgen.supervisor.core import SupervisorCore
from accelgen.supervisor.linux import oom_kills
from accelgen.supervisor.members import Seat
from accelgen.supervisor.rundir import RunDir

log = structlog.get_logger()
DUMP_LOOK_S = 0.05  # while the recorder is written down beside the loop
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Display(Protocol):
    """Who watches the server come up: a terminal, a log, or the process that detached it."""

    def show(self, directory: Directory) -> None:
        """The picture has changed; called often."""

    def ready(self, directory: Directory, took_s: float) -> None:
        """Everything serves, `took_s` seconds after the start."""

    def end(self, status: int, line: str, logs: Path | None) -> None:
        """The last words: `line`, and where the logs are if they were kept."""


def socket_path(run_dir: Path, seat: Seat) -> Path:
    """Where the process of a seat binds its Router."""
    return Path(endpoint_of(run_dir, seat.role, seat.index).removeprefix("ipc://"))


class Supervisor:
    """One server's life, from the first spawn to the last exit. Runs in the main thread."""

    def __init__(
        self,
        core: SupervisorCore,
        children: Children,
        run_dir: RunDir,
        listener: socket.socket,
        display: Display,
    ) -> None:
        self._core, self._children, self._listener = core, children, listener
        self._display, self._run_dir = display, run_dir.path
        raise_file_limit()
        incarnation = new_incarnation()
        self._router = Router(endpoint_of(run_dir.path, Role.SUPERVISOR), incarnation)
        self._dumps = Dumps(run_dir.path / FOLDER, "supervisor-0", incarnation)
        self._poller = zmq.Poller()
        self._poller.register(self._router.socket, zmq.POLLIN)
        self._by_pidfd: dict[int, Child] = {}
        self._signals: list[signal.Signals] = []
        self._shown_ready = False
        self._finish: Finish | None = None
        self._oom_kills_before = oom_kills()
        self._memory = ResidentMemory()

    def run(self) -> Finish:
        """Serves until the end; returns how that came. Whatever happens, no child stays behind."""
        wake_fd = self._catch_signals()
        try:
            self._do(self._core.start(now_s()))
            while self._finish is None:
                self._round(wake_fd)
        except BaseException:
            log.exception("the supervisor failed")
            self._children.kill_all()
            self._dumps.write_last()
            raise
        finally:
            self._router.close()
        return self._finish

    def _round(self, wake_fd: int) -> None:
        timeout_s = max(0.0, self._core.next_look_s() - now_s())
        if self._dumps.busy:
            timeout_s = min(timeout_s, DUMP_LOOK_S)
        readable = {source for source, _ in self._poller.poll(int(1000 * timeout_s) + 1)}
        if wake_fd in readable:
            os.read(wake_fd, 4096)
        for message in self._router.messages():
            self._do(self._core.heard(*message, now_s()))
        for answer in self._dumps.answers():
            self._router.send(answer.client, answer)
        for pidfd in readable & self._by_pidfd.keys():
            self._reap(pidfd)
        while self._signals:
            name = self._signals.pop(0).name
            log.info("signal", name=name)
            self._do(self._core.signalled(name, now_s()))
        self._core.wire = self._router.codec.counters
        self._core.rss_bytes = self._memory.bytes()
        self._do(self._core.tick(now_s()))
        self._show()

    def _reap(self, pidfd: int) -> None:
        child = self._by_pidfd.pop(pidfd)
        self._poller.unregister(pidfd)
        status, last_words = self._children.reap(child)
        socket_path(self._run_dir, child.seat).unlink(
            missing_ok=True
        )  # the next life binds it anew
        log.info("exit", child=child.seat.name, pid=child.process.pid, status=status)
        fact("exit", child=child.seat.name, pid=child.process.pid, status=status)
        self._core.oom_kills = oom_kills() - self._oom_kills_before
        self._core.exited(child.seat, status, last_words, now_s())

    def _do(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Send(peer, body, epoch):
                    self._router.send(peer, body, epoch)
                case Spawn(seat, epoch):
                    self._spawn(seat, epoch)
                case Signal(seat, signum):
                    log.info("kill", child=seat.name, signal=signal.Signals(signum).name)
                    fact("kill", child=seat.name, signal=signal.Signals(signum).name)
                    self._children.send_signal(seat, signum)
                case Record(client):
                    self._dumps.ask(client)
                case Drain():
                    self._listener.close()
                case Finish(status=status, line=line):
                    log.info("end", status=status, line=line)
                    self._finish = action

    def _spawn(self, seat: Seat, epoch: int) -> None:
        child = self._children.spawn(seat, epoch)
        self._by_pidfd[child.pidfd] = child
        self._poller.register(child.pidfd, zmq.POLLIN)
        log.info("start", child=seat.name, pid=child.process.pid, epoch=epoch)
        fact("start", child=seat.name, pid=child.process.pid, epoch=epoch)
        self._core.spawned(seat, epoch, child.process.pid, now_s())

    def _show(self) -> None:
        directory = self._core.directory(now_s())
        if not self._shown_ready:
            self._display.show(directory)
        if self._core.ready_s is not None and not self._shown_ready:
            self._shown_ready = True
            self._display.ready(directory, self._core.ready_s - self._core.started_s)

    def _catch_signals(self) -> int:
        """Stop signals are queued; a byte in a pipe wakes the loop up, whatever it waits for."""
        read_fd, write_fd = os.pipe()
        for fd in (read_fd, write_fd):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` mean it
                signal.signal(number, self._on_signal)
        self._poller.register(read_fd, zmq.POLLIN)
        return read_fd

    def _on_signal(self, number: int, _frame: object) -> None:
        self._signals.append(signal.Signals(number))
