"""Orders reach a process, are carried out and proved there, and are not believed without proof."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from accelgen.faults import processes
from accelgen.faults.agent import role_of
from accelgen.faults.orders import NotArmed, Orders

# A stand-in for a component, with a step that the agent can wrap: it calls it again and again.
COMPONENT = """
import sys, time, types
module = types.ModuleType("accelgen.worker.core")
class WorkerCore:
    def execute(self, batch): return batch
module.WorkerCore = WorkerCore
sys.modules["accelgen.worker.core"] = module
core = WorkerCore()
print("up", flush=True)
while True:
    time.sleep(0.01)
    assert core.execute(7) == 7
"""


class Process:
    """A process that is started with the orders' environment, as `accelgen.worker` would be."""

    def __init__(self, orders: Orders, folder: Path) -> None:
        package = folder / "packages" / "accelgen.worker"  # in the command line, for the role
        package.parent.mkdir(exist_ok=True)
        package.write_text(COMPONENT)
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.popen = subprocess.Popen(
                [sys.executable, "-P", "accelgen.worker"],
                cwd=package.parent,
                stdout=subprocess.PIPE,
                stderr=log,
                env=orders.environment(dict(os.environ)),
            )
        self.pid = self.popen.pid
        assert self.popen.stdout is not None
        assert self.popen.stdout.readline() == b"up\n", self.log.read_text()

    def close(self) -> None:
        self.popen.kill()
        self.popen.communicate()


@pytest.fixture
def orders(folder: Path) -> Orders:
    return Orders(folder / "agent")


@pytest.fixture
def start(orders: Orders, folder: Path) -> Iterator[Callable[[], Process]]:
    started: list[Process] = []

    def launch() -> Process:
        started.append(Process(orders, folder))
        return started[-1]

    yield launch
    for process in started:
        process.close()


@pytest.fixture
def process(start: Callable[[], Process]) -> Process:
    return start()


def until(condition: Callable[[], Any], limit_s: float = 10.0) -> Any:
    until_s = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < until_s
        time.sleep(0.005)
    return found


def proved(orders: Orders, pid: int, do: str, **details: Any) -> str:
    """Gives an order and waits for its proof."""
    number = orders.give(pid, do, **details)
    return str(until(lambda: orders.proofs(number, pid))[0])


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def test_roles_by_command_line() -> None:
    assert role_of(["python", "-P", "-m", "accelgen.kvmanager", "--index", "0"]) == "kvmanager"
    assert role_of(["python", "-P", "-m", "accelgen.scripts.cli", "up"]) == "supervisor"


def test_hang_holds_the_interpreter(orders: Orders, process: Process) -> None:
    number = orders.give(process.pid, "hang", seconds=0.4)
    until(lambda: orders.proofs(number, process.pid) == ["holds the interpreter"])
    before_s = cpu_s(process.pid)
    begin_s = time.monotonic()
    until(lambda: orders.proofs(number, process.pid)[1:] == ["goes on"])
    assert time.monotonic() - begin_s > 0.25 and cpu_s(process.pid) - before_s < 0.1


def test_slow_steps_and_an_end_of_them(orders: Orders, process: Process) -> None:
    number = orders.give(process.pid, "slow", by_s=0.02, seconds=0.15)
    until(lambda: len(orders.proofs(number)) >= 3)
    time.sleep(0.2)  # past its end
    count = len(orders.proofs(number))
    time.sleep(0.1)
    assert len(orders.proofs(number)) == count


def test_an_exception_in_the_next_step(orders: Orders, process: Process) -> None:
    number = orders.give(process.pid, "raise", exception="ZeroDivisionError")
    assert process.popen.wait(10) == 1
    assert orders.proofs(number) == ["raises ZeroDivisionError"]
    assert "ZeroDivisionError: a fault on purpose" in process.log.read_text()


def test_a_death_that_looks_clean(orders: Orders, process: Process) -> None:
    number = orders.give(process.pid, "exit")
    assert process.popen.wait(10) == 0 and orders.proofs(number) == ["exits with status 0"]


def test_no_memory(orders: Orders, process: Process) -> None:
    before = psutil.Process(process.pid).memory_info().vms
    processes.limit_memory(process.pid, 64 << 20)
    soft, _ = psutil.Process(process.pid).rlimit(psutil.RLIMIT_AS)
    assert 64 << 20 <= soft - before < 65 << 20
    number = orders.give(process.pid, "hog")
    assert process.popen.wait(10) == 1 and "MemoryError" in process.log.read_text()
    assert orders.proofs(number) == ["has no memory left"]


def test_no_memory_is_not_proved_where_there_is_some(orders: Orders, process: Process) -> None:
    number = orders.give(process.pid, "hog")
    time.sleep(0.3)
    assert process.popen.poll() is None and orders.proofs(number) == []


def test_no_file_and_no_disk(orders: Orders, process: Process) -> None:
    """Orders arrive and proofs are written even so; and both limits can be lifted."""
    processes.limit_files(process.pid)
    processes.limit_file_size(process.pid, max(1, process.log.stat().st_size))
    opened, logged = (proved(orders, process.pid, do) for do in ("open", "log"))
    assert (opened, logged) == ("EMFILE", "could write")  # one byte was left
    assert proved(orders, process.pid, "log") == "EFBIG"
    processes.lift_limits(process.pid)
    opened, logged = (proved(orders, process.pid, do) for do in ("open", "log"))
    assert (opened, logged) == ("could open files", "could write")


def test_the_clock_jumps(orders: Orders, process: Process) -> None:
    assert "-3600 s" in proved(orders, process.pid, "clock", seconds=-3600.0)


def test_orders_for_those_who_start_later(
    orders: Orders, start: Callable[[], Process], process: Process
) -> None:
    number = orders.give_at_start("worker", "sleep", seconds=0.1)
    late = start()
    assert orders.proofs(number, late.pid) == ["sleeps", "goes on"]
    assert orders.proofs(number, process.pid) == []
    orders.forget()
    assert orders.proofs(number, start().pid) == []


def test_nobody_is_hit_who_does_not_listen(orders: Orders) -> None:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        try:
            with pytest.raises(NotArmed):
                orders.give(stranger.pid, "exit", armed_s=0.05)
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_states_of_processes(process: Process) -> None:
    pid = process.pid
    assert processes.state_of(pid) in "RS" and not processes.is_gone(pid)
    assert processes.catches(pid, signal.SIGUSR2) and not processes.catches(pid, signal.SIGUSR1)
    processes.freeze(pid)
    until(lambda: processes.state_of(pid) == "T")
    processes.thaw(pid)
    until(lambda: processes.state_of(pid) in "RS")
    processes.send(pid, signal.SIGKILL)
    until(lambda: processes.is_gone(pid))
    process.popen.wait()
    assert processes.is_gone(pid) and processes.state_of(pid) == ""
    processes.send(pid, signal.SIGKILL)  # gone: nothing happens
