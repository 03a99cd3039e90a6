"""A whole server of real processes with the bundled model, started and stopped by its own commands."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from accelgen.proto.messages import Directory, Member
from accelgen.supervisor import rundir
from accelgen.supervisor.client import ask_directory
from accelgen.supervisor.errors import StartError

CLI = [sys.executable, "-P", "-m", "accelgen.scripts.cli"]
READY_S = 90.0  # it takes a tenth of that on an idle machine
# float32, so that greedy answers can be compared; room for 64 requests of up to 4,000 tokens
OPTIONS = ["--port", "0", "--dtype", "float32", "--kv-blocks", "4096"]


@pytest.fixture(scope="session")
def profiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder with a profile of the bundled model, measured once for all processes of a test run: servers of it
    need not measure, each for seconds on all cores, and find no profiles of whoever runs the tests."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "profiled"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "done").exists():
            subprocess.run(
                [*CLI, "profile", "--budget-s", "3", "--dtype", "float32", "--kv-blocks", "512"],
                env={**os.environ, "XDG_CACHE_HOME": str(home)},
                check=True,
                capture_output=True,
                timeout=READY_S,
            )
            (home / "done").touch()
    return home


class Server:
    """`accelgen up` as a process. `url` ends without a path; `pids` are the components', by name."""

    def __init__(self, folder: Path, cache_home: Path, *options: str) -> None:
        self.folder = folder
        self.output = folder / "output"
        self.environment = {
            **os.environ,
            "XDG_RUNTIME_DIR": str(folder),
            "XDG_CACHE_HOME": str(cache_home),
        }
        with self.output.open("wb") as stream:
            self.process = subprocess.Popen(
                [*CLI, "up", *OPTIONS, *options],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                env=self.environment,
                start_new_session=True,
            )
        directory = self._wait_ready()
        self.url: str = directory.config["url"]
        self.model: str = directory.config["model"]
        self.pids = {
            f"{member.role.name.lower()}-{member.index}": member.pid for member in directory.members
        }

    def directory(self) -> Directory:
        """What its supervisor says now."""
        return ask_directory(self.run_dir)

    def call(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """A verb of the command line against this server, its run directory given."""
        command = [*CLI, *arguments, "--run-dir", str(self.run_dir)]
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60
        )

    def member(self, name: str) -> Member:
        """What the Directory says of "kvmanager-0"."""
        members = self.directory().members
        return next(m for m in members if f"{m.role.name.lower()}-{m.index}" == name)

    def gauge(self, name: str) -> float:
        """A metric as it is shown, summed over its labels."""
        return self.gauges(name)[0]

    def gauges(self, *names: str) -> list[float]:
        """Metrics as they are shown at one moment, each summed over its labels."""
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        samples = [line.rpartition(" ") for line in lines if not line.startswith("#")]
        return [
            sum(float(x) for one, _, x in samples if one.partition("{")[0] == f"accelgen:{name}")
            for name in names
        ]

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everybody it has started."""
        supervisor = psutil.Process(self.process.pid)
        return [supervisor, *supervisor.children(recursive=True)]

    def wait_for_spare(self) -> Directory:
        """The Directory once a scheduler stands by: it is started when the server has been ready for a moment."""
        until_s = time.monotonic() + READY_S
        while not any(member.phase == "standby" for member in self.directory().members):
            assert time.monotonic() < until_s, self.directory()
            time.sleep(0.02)
        return self.directory()

    def down(self) -> None:
        """Ends it; asserts exit status 0 and that nothing is left of it: no process, no file."""
        processes = self.processes()
        done = self.call("down")
        assert done.returncode == 0, done.stderr + self.output.read_text()
        assert self.process.wait(10) == 0, self.output.read_text()
        _, left = psutil.wait_procs(processes, timeout=2)
        assert not left, f"orphans: {left}"
        assert not self.run_dir.exists()

    def _wait_ready(self) -> Directory:
        until_s = time.monotonic() + READY_S
        while time.monotonic() < until_s:
            assert self.process.poll() is None, self.output.read_text()
            if found := self._found():
                self.run_dir = found
                try:
                    directory = self.directory()
                except (StartError, OSError):  # its socket is not there yet
                    continue
                if directory.ready:
                    return directory
            time.sleep(0.05)
        raise AssertionError(f"not ready after {READY_S} s: {self.output.read_text()}")

    def _found(self) -> Path | None:
        folders = (self.folder / "accelgen").glob("[!.]*")
        return next((path for path in folders if rundir.is_live(path)), None)


@pytest.fixture(scope="session")
def launch_server(profiled_home: Path) -> Iterator[Callable[..., Server]]:
    """Starts servers with further options of `accelgen up`. All that still run are ended at the end of the session,
    with the checks of `down`; end yours with `down()` as soon as you are through."""
    servers: list[Server] = []

    def start(*options: str) -> Server:
        # a short name: the sockets' paths have a limit
        server = Server(Path(tempfile.mkdtemp(prefix="ag-")), profiled_home, *options)
        servers.append(server)
        return server

    yield start
    try:
        for server in servers:
            if server.process.poll() is None:
                server.down()
    finally:
        for server in servers:
            if server.process.poll() is None:
                server.process.kill()
                server.process.wait()
            shutil.rmtree(server.folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(launch_server: Callable[..., Server]) -> Server:
    """The one server that most tests share; leave it as it was."""
    return launch_server()
