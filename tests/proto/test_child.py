"""The life of a child process: hello, heartbeats, obedience, one last line, and death with its parent."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from hostile_frames import HOSTILE

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, save_config
from accelgen.proto.messages import Abort, Directory, Failure, Heartbeat, Hello, Role, Stop
from accelgen.proto.sockets import IPC_PATH_LIMIT, MAX_OPEN_FILES, Dealer, Router, check_endpoint

FEW_FILES = 200
MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
DEADLINE_S = 20.0

CHILD = """
from accelgen.proto.child import Child
from accelgen.proto.messages import Query, Role
from accelgen.proto.sockets import Dealer, Router
child = Child.from_command_line(Role.FRONTEND)
router = Router(child.endpoint, child.incarnation)  # open sockets must not keep it from ending
lost = Dealer("ipc://" + str(child.run_dir) + "/nobody.sock", "x", 1)
lost.send(Query())
child.phase("working", bound_s=3.0)
child.gauges = lambda: {"g": 1.5}
while not child.stopping:
    child.link.socket.poll(50)
    child.beat(bound_s=2.0)
    if child.directory is not None:
        child.fail("it cannot go on: 1 of 2 " + "x" * 5000)
child.phase("ready")
child.phase("stopping")
lost.socket.close(linger=0)
print(child.stop_timeout_s)
"""

GRANDPARENT = """
import subprocess, sys, time
code = "import os, sys, time\\n" \
       "from accelgen.proto.child import die_with_parent\\n" \
       "die_with_parent(int(sys.argv[1]))\\n" \
       "print(os.getpid(), flush=True)\\n" \
       "time.sleep(1000)"
import os
subprocess.Popen([sys.executable, "-P", "-c", code, str(os.getpid())])
time.sleep(1000)
"""


class Launched:
    """A child, and us in the place of its supervisor."""

    def __init__(self, run_dir: Path) -> None:
        save_config(Config(), run_dir / "config.json")
        self.supervisor = Router(endpoint_of(run_dir, Role.SUPERVISOR), 1)
        self.peer = b""
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, "--run-dir", str(run_dir), "--index", "3"]
            + ["--epoch", "7", "--parent", str(os.getpid())],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FEW_FILES, MOST_FILES)),
        )

    def hear(self, good: Callable[[Any], bool]) -> tuple[Any, Any]:
        end_s = now_s() + DEADLINE_S
        while now_s() < end_s:
            self.supervisor.socket.poll(50)
            if (message := self.supervisor.recv()) is not None:
                self.peer, header, body = message
                if good(body):
                    return header, body
        raise AssertionError("not heard in time")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.supervisor.close()


@pytest.fixture
def launched(run_dir: Path) -> Iterator[Launched]:
    child = Launched(run_dir)
    yield child
    child.close()


def test_it_goes_on_beating_without_a_file_descriptor_left(launched: Launched) -> None:
    _, before = launched.hear(lambda body: isinstance(body, Heartbeat) and body.phase == "working")
    pid = launched.process.pid
    highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    psutil.Process(pid).rlimit(psutil.RLIMIT_NOFILE, (highest + 1, highest + 1))
    for _ in range(2):
        _, beat = launched.hear(lambda body: isinstance(body, Heartbeat))
        assert beat.progress > before.progress
        assert beat.rss_bytes == pytest.approx(psutil.Process(pid).memory_info().rss, rel=0.1)
        before = beat


def test_it_takes_the_descriptors_that_it_may_have(launched: Launched) -> None:
    """libzmq aborts a process that cannot accept a connection for want of one."""
    launched.hear(lambda body: isinstance(body, Heartbeat))
    soft, hard = psutil.Process(launched.process.pid).rlimit(psutil.RLIMIT_NOFILE)
    assert (soft, hard) == (min(MOST_FILES, MAX_OPEN_FILES), MOST_FILES) and soft > FEW_FILES


def test_hostile_words_in_the_name_of_the_supervisor(launched: Launched) -> None:
    launched.hear(lambda body: isinstance(body, Heartbeat) and body.phase == "working")
    for frames in HOSTILE.values():
        launched.supervisor.socket.send_multipart([launched.peer, *frames])
    launched.supervisor.send(launched.peer, Abort([1]))  # sound, but nothing for a child
    _, before = launched.hear(lambda body: isinstance(body, Heartbeat))
    launched.hear(lambda body: isinstance(body, Heartbeat) and body.progress > before.progress)
    launched.supervisor.send(launched.peer, Stop(2.5))
    assert launched.process.communicate(timeout=DEADLINE_S)[0] == b"2.5\n"


def test_hello_heartbeats_and_stop(launched: Launched, run_dir: Path) -> None:
    header, hello = launched.hear(lambda _: True)
    assert isinstance(hello, Hello)
    assert (hello.role, hello.index, hello.pid) == (Role.FRONTEND, 3, launched.process.pid)
    assert hello.endpoint == f"ipc://{run_dir}/frontend-3.sock"
    assert launched.peer == f"frontend-3:{header.incarnation}".encode() and header.epoch == 7
    _, first = launched.hear(lambda body: isinstance(body, Heartbeat) and body.phase == "working")
    assert first.bound_s == 3.0
    _, beat = launched.hear(lambda body: isinstance(body, Heartbeat) and bool(body.gauges))
    assert beat.gauges == {"g": 1.5} and beat.bound_s == 2.0 and beat.rss_bytes > 1e6
    _, later = launched.hear(
        lambda body: isinstance(body, Heartbeat) and body.progress > beat.progress
    )
    assert later.phase == "working"
    launched.process.send_signal(signal.SIGINT)  # Ctrl-C is the supervisor's business
    launched.hear(lambda body: isinstance(body, Heartbeat) and body.progress > later.progress + 1)
    launched.supervisor.send(launched.peer, Stop(2.5))
    _, ready = launched.hear(lambda body: body.phase == "ready")
    assert isinstance(ready, Heartbeat) and ready.gauges == {"g": 1.5}  # they are known with it
    launched.hear(lambda body: isinstance(body, Hello) and body.phase == "ready")
    launched.hear(lambda body: isinstance(body, Heartbeat) and body.phase == "stopping")
    assert launched.process.communicate(timeout=DEADLINE_S)[0] == b"2.5\n"
    assert launched.process.returncode == 0


def test_sigterm_stops_it(launched: Launched) -> None:
    launched.hear(lambda body: isinstance(body, Heartbeat) and body.phase == "working")
    launched.process.terminate()
    assert launched.process.wait(DEADLINE_S) == 0


def test_the_last_line_arrives_and_the_status_is_one(launched: Launched) -> None:
    launched.hear(lambda body: isinstance(body, Hello))
    launched.supervisor.send(launched.peer, Directory([], False, False))
    _, failure = launched.hear(lambda body: isinstance(body, Failure))
    assert failure.line.startswith("it cannot go on: 1 of 2 x") and len(failure.line) == 2000
    assert launched.process.wait(DEADLINE_S) == 1  # although it has sockets with unsent messages


def test_killed_parent_takes_the_child_along() -> None:
    parent = subprocess.Popen([sys.executable, "-c", GRANDPARENT], stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child = os.pidfd_open(int(parent.stdout.readline()))
    try:
        ended = select.poll()
        ended.register(child, select.POLLIN)
        assert not ended.poll(0)
        parent.kill()
        parent.wait()
        assert ended.poll(DEADLINE_S * 1000), "the child outlives its parent"
    finally:
        os.close(child)
    parent.stdout.close()


def test_a_child_whose_parent_is_already_gone_ends() -> None:
    code = (
        "from accelgen.proto.child import die_with_parent; die_with_parent(1 << 30); print('lives')"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, timeout=DEADLINE_S
    )
    assert (done.returncode, done.stdout) == (1, b"")


def test_endpoints_are_short_and_distinct(run_dir: Path) -> None:
    assert endpoint_of(Path("/r"), Role.SUPERVISOR, 0) == "ipc:///r/supervisor.sock"
    assert endpoint_of(Path("/r"), Role.KVMANAGER, 2) == "ipc:///r/kvmanager-2.sock"
    named = {endpoint_of(run_dir, role, index) for role in list(Role)[1:] for index in range(64)}
    assert len(named) == 64 * (len(Role) - 1)
    for endpoint in named:
        check_endpoint(endpoint)
    longest = max(len(name) - len(f"ipc://{run_dir}") for name in named)
    assert longest < IPC_PATH_LIMIT - 85  # leaves room for a run directory of 85 bytes


def test_identity_of_a_link_names_this_life(run_dir: Path) -> None:
    dealer = Dealer(endpoint_of(run_dir, Role.WORKER), "kvmanager-0:99", 99)
    assert dealer.socket.identity == b"kvmanager-0:99"
    dealer.close()
