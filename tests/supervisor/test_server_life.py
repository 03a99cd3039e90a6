"""Servers of real processes (fake components): how they start, how they end, and what they leave behind."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from accelgen.proto.messages import Member, Role
from accelgen.scripts import down, status
from accelgen.supervisor import rundir
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.restarts import INTENSITY

Launch = Callable[..., Any]
ROLES = [
    Role.SUPERVISOR, Role.WORKER, Role.KVMANAGER, Role.SCHEDULER, Role.SCHEDULER, Role.FRONTEND,
]  # fmt: skip
GONE_S = 2.0  # C8 of the reliability contract: nothing is left after two seconds


def run(command: Any, *arguments: str) -> tuple[int, str]:
    """Exit status and output of a verb of the command line."""
    result = CliRunner().invoke(command, arguments, standalone_mode=False)
    failed = result.exception is not None
    return (1, str(result.exception)) if failed else (int(result.return_value), result.output)


def test_status_and_down(launch: Launch, runtime: Path) -> None:
    server = launch("--policy", "sarathi", "--drafter", "some/small-model")
    assert {member.epoch for member in server.wait_ready().members} <= {0, 1}
    directory = server.wait_for_spare()
    assert [member.role for member in directory.members] == ROLES
    pids = {child.pid for child in server.children()}
    assert {member.pid for member in directory.members} == pids | {server.process.pid}
    spares = [member for member in directory.members if member.epoch == 0]
    assert [(spare.role, spare.index) for spare in spares] == [(Role.SCHEDULER, 1)]
    code, table = run(status.command)
    assert code == 0 and "ready" in table and "policy sarathi" in table
    assert "  drafter small-model\n" in table
    assert all(str(pid) in table for pid in pids)
    code, text = run(status.command, "--json")
    assert code == 0 and '"role":"kvmanager"' in text and '"ready":true' in text
    for folder in (runtime / "accelgen", server.run_dir, server.run_dir / "logs"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = [path for path in server.run_dir.rglob("*") if not path.is_dir()]
    assert files and all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in files)
    children = server.children()
    code, text = run(down.command)
    assert code == 0 and str(server.process.pid) in text
    assert server.end() == 0
    server.wait_gone(children, 0.5)
    assert list(rundir.private_root().iterdir()) == [runtime / "accelgen" / ".lock"]
    code, text = run(status.command)
    assert code == 1 and "no server is running" in text


def test_counts_of_frontends_and_replicas(launch: Launch) -> None:
    server = launch("--frontends", "2", "--replicas", "2")
    members = server.wait_for_spare().members[1:]
    names = sorted((member.role.name, member.index) for member in members)
    assert names == [
        ("FRONTEND", 0), ("FRONTEND", 1), ("KVMANAGER", 0), ("KVMANAGER", 1),
        ("SCHEDULER", 0), ("SCHEDULER", 1), ("WORKER", 0), ("WORKER", 1),
    ]  # fmt: skip
    assert server.end(signal.SIGINT) == 0


def test_environment_of_children(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    server = launch()
    url = server.wait_ready().config["url"]
    worker, frontend = (server.child(role).environ() for role in ("worker", "frontend"))
    assert int(worker["OMP_NUM_THREADS"]) >= 1 and worker["GOMP_SPINCOUNT"] == "10000"
    assert frontend["OMP_NUM_THREADS"] == "1" and "ACCELGEN_LISTEN_FD" not in worker
    sockets = server.child("frontend").net_connections(kind="tcp")
    assert (sockets[0].status, url) == ("LISTEN", f"http://127.0.0.1:{sockets[0].laddr.port}")
    assert sockets[0].fd == int(frontend["ACCELGEN_LISTEN_FD"])
    assert not server.child("worker").net_connections(kind="tcp")
    assert server.end(signal.SIGTERM) == 0


def test_no_orphans_and_no_leftovers_after_sigkill(launch: Launch) -> None:
    killed = launch()
    killed.wait_for_spare()
    children, leftover = killed.children(), killed.run_dir
    assert len(children) == 5
    assert killed.end(signal.SIGKILL) == -signal.SIGKILL
    killed.wait_gone(children, GONE_S)
    assert leftover.is_dir() and not rundir.is_live(leftover)
    server = launch()
    server.wait_ready()
    assert not leftover.exists()
    assert server.end(signal.SIGTERM) == 0


@pytest.mark.parametrize("role", [pytest.param("worker", marks=pytest.mark.slow), "kvmanager"])
def test_death_of_a_child_is_loud(launch: Launch, role: str) -> None:
    """Once it has happened too often."""
    server = launch()
    server.wait_ready()
    logs = server.run_dir / "logs"
    for _ in range(INTENSITY):
        server.child(role).kill()
        server.wait_until(lambda: not server.directory().ready)
        server.wait_ready()
    children, victim = server.children(), server.child(role)
    victim.kill()
    assert server.end() == 1
    server.wait_gone(children, GONE_S)
    assert server.last_lines == [
        f"accelgen: {role}-0 (pid {victim.pid}) was killed by SIGKILL in phase 'ready'",
        f"accelgen: the logs are in {logs}",
    ]
    assert (logs / f"{role}-0.log").exists()  # kept for whoever looks for the cause


def test_a_child_that_cannot_start_says_why(launch: Launch) -> None:
    server = launch(
        FAIL="worker:not enough memory: 3 MiB needed, 2 MiB available", SLOW="scheduler"
    )
    assert server.end() == 1
    assert server.last_lines[0] == (
        "accelgen: worker-0: not enough memory: 3 MiB needed, 2 MiB available"
    )


def test_a_child_that_ends_by_itself_is_quoted(launch: Launch) -> None:
    server = launch(EXIT="kvmanager:0")
    assert server.end() == 1
    line = server.last_lines[0]
    assert "kvmanager-0" in line and "ended by itself with status 0" in line
    assert line.endswith("the cause is in the last line")


def test_a_silent_child_is_killed(launch: Launch) -> None:
    server = launch(MUTE="kvmanager:0.2", SLOW="scheduler")  # before it is ready that is fatal
    assert server.end() == 1
    assert "kvmanager-0" in server.last_lines[0] and "silent for" in server.last_lines[0]


def test_stopped_while_it_starts(launch: Launch) -> None:
    server = launch(SLOW="worker")
    server.directory()
    children = server.children()
    assert server.end(signal.SIGINT) == 0
    server.wait_gone(children, 0.5)
    assert server.last_lines[-1] == "accelgen: stopped before it was ready (SIGINT)"


def test_stubborn_children_are_killed_and_a_second_signal_ends_at_once(launch: Launch) -> None:
    server = launch("--shutdown-timeout", "60", STUBBORN="frontend")
    server.wait_for_spare()
    children = server.children()
    server.process.send_signal(signal.SIGINT)
    server.wait_until(lambda: server.directory().draining)
    assert len(server.children()) == 5  # everybody lives until the frontend has finished
    began_s = time.monotonic()
    assert server.end(signal.SIGTERM) == 0
    assert time.monotonic() - began_s < 2
    server.wait_gone(children, 0.5)


def test_who_dies_while_requests_finish_is_replaced(launch: Launch) -> None:
    server = launch("--shutdown-timeout", "60", STUBBORN="frontend")
    server.wait_ready()
    server.process.send_signal(signal.SIGTERM)
    server.wait_until(lambda: server.directory().draining)
    worker = server.child("worker")
    worker.kill()
    server.wait_until(
        lambda: any(m.pid != worker.pid and m.phase == "ready" for m in workers(server))
    )
    server.process.send_signal(signal.SIGTERM)  # the frontend would never end by itself
    assert server.end() == 0


def workers(server: Any) -> list[Member]:
    return [member for member in server.directory().members if member.role is Role.WORKER]


def test_down_gives_as_long_as_the_server_was_told_to(launch: Launch) -> None:
    """Found by a new user: `down` had a time of its own, 5 s, and cut requests that should have had a minute."""
    server = launch("--shutdown-timeout", "0", STUBBORN="frontend")
    server.wait_ready()
    assert server.directory().config["shutdown_timeout_s"] == 0
    code, _ = run(down.command)  # at once, though the frontend would take for ever
    assert code == 0 and server.end() == 0


def test_down_reaches_a_server_whose_socket_was_removed(launch: Launch) -> None:
    server = launch()
    server.wait_ready()
    (server.run_dir / "supervisor.sock").unlink()
    assert run(down.command)[0] == 0 and server.end() == 0


def test_down_ends_a_server_that_does_not_answer(
    launch: Launch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_answer(*_: object) -> None:
        raise StartError("no answer")

    server = launch()
    server.wait_ready()
    monkeypatch.setattr(down, "ask_directory", no_answer)
    code, text = run(down.command)
    assert code == 0 and "SIGTERM" in text and server.end() == 0


def test_port_in_use(launch: Launch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = launch("--port", str(port))
        assert server.end() == 1
    assert server.text == (
        f"accelgen: cannot listen on 127.0.0.1:{port}: port {port} is in use;"
        " choose another with --port (0: any free one)\n"
    )


def test_detached_server_outlives_its_caller(launch: Launch) -> None:
    caller = launch("--detach")
    assert caller.end() == 0
    assert "AccelGen is ready" in caller.text and "Ctrl-C" not in caller.text
    run_dir = rundir.find_live()
    supervisor = psutil.Process(rundir.holder_of(run_dir))
    assert os.getsid(supervisor.pid) != os.getsid(0) and supervisor.terminal() is None
    code, _ = run(down.command)
    assert code == 0
    caller.wait_gone([supervisor], 1.0)


def test_detached_server_that_fails_tells_its_caller(launch: Launch) -> None:
    caller = launch("--detach", FAIL="scheduler:no such thing")
    assert caller.end() == 1
    assert "accelgen: scheduler-0: no such thing" in caller.text


def test_ctrl_c_while_a_detached_server_starts_ends_it(launch: Launch) -> None:
    caller = launch("--detach", SLOW="worker")
    caller.wait_until(lambda: "loading weights" in caller.text)
    supervisor = psutil.Process(rundir.holder_of(rundir.find_live()))
    processes = [supervisor, *supervisor.children()]
    assert len(processes) == 5 and caller.end(signal.SIGINT) == 130
    caller.wait_gone(processes, 4.0)


def test_two_servers_must_be_told_apart(launch: Launch) -> None:
    servers = [launch(), launch()]
    for server in servers:
        server.wait_ready()
    code, text = run(status.command)
    assert code == 1 and all(str(server.run_dir) in text for server in servers)
    code, _ = run(status.command, "--run-dir", str(servers[0].run_dir))
    assert code == 0
    for server in servers:
        code, _ = run(down.command, "--run-dir", str(server.run_dir))
        assert code == 0 and server.end() == 0


def test_help_is_quick_and_imports_no_component() -> None:
    program = (
        "import sys\nfrom accelgen.scripts import cli\n"
        "try:\n    cli.main(['up', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi', 'huggingface_hub'}\n"
        "sys.exit(', '.join(heavy & sys.modules.keys()) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
