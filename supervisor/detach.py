"""`accelgen up --detach`: the server leaves the terminal's session, and whoever called waits until it is ready."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from accelgen.proto.messages import Directory
from accelgen.supervisor.display import LineDisplay

_PID, _READY, _FAILED = "\0pid", "\0ready", "\0failed"  # no line for people begins like this


class _PipeDisplay(LineDisplay):
    """Lines into the pipe to the waiting caller, until the server is ready."""

    detached = True

    def __init__(self, out: TextIO) -> None:
        super().__init__(out)
        self._print(f"{_PID} {os.getpid()}")

    def ready(self, directory: Directory, took_s: float) -> None:
        super().ready(directory, took_s)
        self._print(_READY)
        self._let_go()

    def end(self, status: int, line: str, logs: Path | None) -> None:
        super().end(status, line, logs)
        self._print(f"{_FAILED} {status}")
        self._let_go()

    def _let_go(self) -> None:
        if self._out is not None:
            self._out.close()
            self._out = None


def detach(run: Callable[[LineDisplay], int]) -> int:
    """Runs `run` in a grandchild with a session of its own; returns 0 once that is ready, its status if it fails.

    Call it before threads or sockets of ZeroMQ exist: it forks. Ctrl-C while waiting ends the server, too."""
    read_fd, write_fd = os.pipe()
    intermediate = os.fork()
    if intermediate == 0:
        os.close(read_fd)
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        _leave_terminal()
        status = 1
        try:
            status = run(_PipeDisplay(os.fdopen(write_fd, "w")))
        finally:
            os._exit(status)  # this copy of the command line must not go on as such
    os.close(write_fd)
    os.waitpid(intermediate, 0)
    with os.fdopen(read_fd) as lines:
        return _wait(lines)


def _wait(lines: TextIO) -> int:
    server = 0
    try:
        for line in lines:
            if line.startswith(_PID):
                server = int(line.split()[1])
            elif line.startswith(_READY):
                return 0
            elif line.startswith(_FAILED):
                return int(line.split()[1])
            else:
                print(line, end="", flush=True)
    except KeyboardInterrupt:
        if server:
            os.kill(server, signal.SIGTERM)
        raise
    print("accelgen: the server ended without a word", file=sys.stderr)
    return 1


def _leave_terminal() -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.close(null)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
