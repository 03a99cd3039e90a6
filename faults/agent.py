"""Faults inside a process, ordered from outside: what runs in every process of a server under test.

The program that tests starts the server with PYTHONPATH naming a folder with a `sitecustomize.py` that calls `arm`.
An order is a small JSON object, written into `<pid>.order` and announced with SIGUSR2; what was done goes into
`<pid>.proof`, one JSON object a line. Both files are opened when the process starts, and the proofs are written through
memory, so that this works even when the process has no file descriptor or disk space left. An order found in
`<role>.start` is carried out before the process does anything else.

Only the standard library is imported here: this comes before everything the process does itself.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SIGNAL = signal.SIGUSR2
STEPS = {  # what each component does once per iteration: module, class, method
    "worker": ("accelgen.worker.core", "WorkerCore", "execute"),
    "kvmanager": ("accelgen.kvmanager.core", "KvCore", "on_plan"),
    "scheduler": ("accelgen.scheduler.core", "SchedulerCore", "tick"),
    "frontend": ("accelgen.frontend.journal", "Journal", "take"),
    "supervisor": ("accelgen.supervisor.core", "SupervisorCore", "tick"),
    "forward": ("accelgen.worker.runner", "Runner", "forward"),  # inside the worker's step
}
PROOF_BYTES = 1 << 20
HOG_BYTES = 1 << 30
LOGGED_STEPS = 5
HELD_FILES = 16  # descriptors that may have come free meanwhile
PROBE_LOG = "a line on a full disk"


class Agent:
    """One process's end of the orders."""

    def __init__(self, folder: Path, role: str) -> None:
        self.role = role
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._orders = os.open(folder / f"{os.getpid()}.order", flags, 0o600)
        proofs = os.open(folder / f"{os.getpid()}.proof", flags, 0o600)
        os.truncate(proofs, PROOF_BYTES)
        self._proofs = mmap.mmap(proofs, PROOF_BYTES)
        os.close(proofs)
        self._last = 0  # number of the order carried out last

    def obey(self, *_: object) -> None:
        """Carries out the order that waits, once."""
        order = json.loads(os.pread(self._orders, 65536, 0) or b"{}")
        if order.get("number", 0) <= self._last:
            return
        self._last = order["number"]
        self.carry_out(order)

    def carry_out(self, order: dict[str, Any]) -> None:
        """What is asked for; raises KeyError for an order that does not exist."""
        number, seconds = order["number"], order.get("seconds", 0.0)
        match order["do"]:
            case "hang":
                self.prove(number, "holds the interpreter")
                ctypes.PyDLL(None).usleep(int(seconds * 1e6))  # PyDLL: the lock is not released
                self.prove(number, "goes on")
            case "sleep":
                self.prove(number, "sleeps")
                time.sleep(seconds)
                self.prove(number, "goes on")
            case "exit":
                self.prove(number, "exits with status 0")
                os._exit(0)
            case "slow":
                self._slow(number, order, seconds)
            case "raise" | "hog":
                self._fail_next(number, order)
            case "open":
                self._open(number)
            case "log":
                self._log(number, order)
            case "clock":
                self._step_clock(number, seconds)
            case _:
                raise KeyError(order["do"])

    def prove(self, number: int, what: str) -> None:
        """One line in the file of proofs, while there is room."""
        line = json.dumps({"number": number, "at_s": time.time(), "what": what}) + "\n"
        if self._proofs.tell() + len(line) <= PROOF_BYTES:
            self._proofs.write(line.encode())

    # --- the orders --------------------------------------------------------------------------------------------

    def _slow(self, number: int, order: dict[str, Any], seconds: float) -> None:
        """Every step takes `by_s` longer, for `seconds`."""
        until_s, by_s = time.monotonic() + seconds, order["by_s"]

        def slowed(step: Callable[..., Any], *args: Any) -> Any:
            if time.monotonic() < until_s:
                self.prove(number, "a slower step")
                time.sleep(by_s)
            return step(*args)

        self._wrap(order, slowed)

    def _fail_next(self, number: int, order: dict[str, Any]) -> None:
        """The next step fails: with an exception, or for want of memory."""
        left = [1]

        def failing(step: Callable[..., Any], *args: Any) -> Any:
            if not left:
                return step(*args)
            left.clear()
            if order["do"] == "raise":
                self.prove(number, f"raises {order['exception']}")
                raise exception_named(order["exception"])("a fault on purpose")
            try:
                bytearray(HOG_BYTES)
            except MemoryError:
                self.prove(number, "has no memory left")
                raise
            return step(*args)

        self._wrap(order, failing)

    def _wrap(self, order: dict[str, Any], around: Callable[..., Any]) -> None:
        module, class_name, name = STEPS[order.get("step", self.role)]
        owner = getattr(sys.modules[module], class_name)
        step = getattr(owner, name)
        setattr(owner, name, lambda *args: around(step, *args))

    def _open(self, number: int) -> None:
        """Tries to get a file descriptor. Keeps the few that it gets: somebody has closed them since the limit was set
        to what was in use."""
        try:
            for _ in range(HELD_FILES):
                os.dup(self._orders)
            self.prove(number, "could open files")
        except OSError as error:
            self.prove(number, errno.errorcode[error.errno or 0])

    def _log(self, number: int, order: dict[str, Any]) -> None:
        """Writes a line to standard error, which is a file; and lets the next steps write with the process's own
        logger, which may fail in another way."""
        try:
            os.write(2, (json.dumps({"event": PROBE_LOG}) + "\n").encode())
            self.prove(number, "could write")
        except OSError as error:
            self.prove(number, errno.errorcode[error.errno or 0])
        structlog = sys.modules.get("structlog")
        if structlog is None:
            return
        left = list(range(LOGGED_STEPS))

        def logging(step: Callable[..., Any], *args: Any) -> Any:
            if left:
                left.pop()
                structlog.get_logger().warning(PROBE_LOG)
            return step(*args)

        self._wrap(order, logging)

    def _step_clock(self, number: int, seconds: float) -> None:
        """The wall clock, as this process sees it, jumps."""
        wall_s = time.time
        time.time = lambda: wall_s() + seconds
        self.prove(number, f"the clock has jumped by {time.time() - wall_s():.0f} s")


def exception_named(name: str) -> type[BaseException]:
    """`ValueError`, or `torch.OutOfMemoryError` of a module that is loaded."""
    module, _, attribute = name.rpartition(".")
    found: type[BaseException] = getattr(sys.modules[module or "builtins"], attribute)
    return found


def role_of(command: list[str]) -> str:
    """The component that a command line starts: the one module of ours in it; the command itself is the supervisor."""
    modules = [word.removeprefix("accelgen.") for word in command if word.startswith("accelgen.")]
    return modules[0] if modules and modules[0] in STEPS else "supervisor"


def arm(folder: str) -> None:
    """Listens for orders in this process, and carries out the one that waits for its role at the start."""
    path, role = Path(folder), role_of(sys.orig_argv)
    agent = Agent(path, role)
    signal.signal(SIGNAL, agent.obey)
    waiting = path / f"{role}.start"
    if waiting.exists():
        agent.carry_out(json.loads(waiting.read_text()))
