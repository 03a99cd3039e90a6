"""A server with fake components, started as a user starts it: a process of its own, found by its run directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from accelgen.proto.messages import Directory
from accelgen.supervisor import rundir
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError

SERVER = Path(__file__).with_name("fake_server.py")
DEADLINE_S = 20.0


def wait_until(what: Callable[[], Any], timeout_s: float = DEADLINE_S) -> Any:
    """The first true value of `what()`, asked again and again."""
    until_s = time.monotonic() + timeout_s
    while not (value := what()):
        assert time.monotonic() < until_s, "waited in vain"
        time.sleep(0.02)
    return value


class Launched:
    """`accelgen up` with fake components in a process of its own."""

    wait_until = staticmethod(wait_until)

    def __init__(self, output: Path, arguments: list[str], traits: dict[str, str]) -> None:
        self.output = output
        environment = {**os.environ, **{f"FAKE_{name}": what for name, what in traits.items()}}
        with output.open("wb") as stream:
            self.process = subprocess.Popen(
                [sys.executable, str(SERVER), "--port", "0", *arguments],
                stdout=stream,
                stderr=stream,
                env=environment,
                start_new_session=True,
            )

    @property
    def text(self) -> str:
        return self.output.read_text()

    @property
    def last_lines(self) -> list[str]:
        return self.text.splitlines()[-2:]

    @property
    def run_dir(self) -> Path:
        """Its run directory, once it has one."""
        return wait_until(
            lambda: next(
                (p for p in rundir.entries() if rundir.holder_of(p) == self.process.pid), None
            )
        )

    def directory(self) -> Directory:
        """What its supervisor answers, once it can."""

        def ask() -> Directory | None:
            assert self.process.poll() is None, self.text
            try:
                return ask_directory(self.run_dir)
            except (StartError, OSError):
                return None

        return wait_until(ask)

    def wait_ready(self) -> Directory:
        """The Directory of the server that has become ready."""
        return wait_until(lambda: d if (d := self.directory()).ready else None)

    def wait_for_spare(self) -> Directory:
        """The Directory once a scheduler stands by, too."""
        self.wait_ready()
        wait_until(lambda: "standby" in [member.phase for member in self.directory().members])
        return self.directory()

    def children(self) -> list[psutil.Process]:
        """Its components, told from anything else by their command line."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def child(self, role: str) -> psutil.Process:
        return next(child for child in self.children() if role in child.cmdline())

    def end(self, signum: int = 0) -> int:
        """Waits for the end, after a signal if one is given; the exit status."""
        if signum:
            self.process.send_signal(signum)
        return self.process.wait(DEADLINE_S)

    def wait_gone(self, processes: list[psutil.Process], timeout_s: float) -> None:
        """None of these runs any more (a zombie does not run)."""
        wait_until(
            lambda: all(
                not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
                for process in processes
            ),
            timeout_s,
        )


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A private XDG_RUNTIME_DIR with a short name: the sockets' paths have a limit."""
    path = Path(tempfile.mkdtemp(prefix="ag-"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(path))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def launch(runtime: Path, tmp_path: Path) -> Iterator[Callable[..., Launched]]:
    """Starts servers; whatever a failed test leaves running is killed in the end."""
    started: list[Launched] = []

    def start(*arguments: str, **traits: str) -> Launched:
        output = tmp_path / f"output-{len(started)}"
        started.append(Launched(output, list(arguments), traits))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.send_signal(signal.SIGKILL)
            server.process.wait()
