"""`accelgen logs`: lines of several processes in the order of time, harmless to the terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from accelgen.scripts import cli
from accelgen.scripts.logs import Tail, chosen_files, merge, pretty
from accelgen.supervisor.errors import StartError


def line(second: int, process: str, event: str, **more: object) -> str:
    stamp = f"2030-01-01T00:00:{second:02}.123456Z"
    return (
        json.dumps(
            {"event": event, "process": process, "level": "info", "timestamp": stamp, **more}
        )
        + "\n"
    )


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "worker-0.log").write_text(
        line(1, "worker-0", "one") + "Traceback:\n  boom\n" + line(5, "worker-0", "five")
    )
    (tmp_path / "worker-1.log").write_text(line(4, "worker-1", "four"))
    (tmp_path / "scheduler-0.log").write_text(line(3, "scheduler-0", "three", step=7, why="a b"))
    return tmp_path


def events(lines: object) -> list[str]:
    return [fields["event"] for fields in lines]  # type: ignore[attr-defined]


def test_merged_by_time_with_tracebacks_in_place(logs: Path) -> None:
    tails = [Tail(path) for path in chosen_files(logs, "")]
    merged = list(merge([tail.new_lines() for tail in tails]))
    assert events(merged) == ["one", "Traceback:", "  boom", "three", "four", "five"]
    assert pretty(merged[3]) == '00:00:03.123 scheduler-0  info    three step=7 why="a b"'
    assert merged[1]["process"] == "worker-0"


def test_following_reads_whole_lines_only(logs: Path) -> None:
    path = logs / "worker-1.log"
    tail = Tail(path)
    assert events(fields for _, fields in tail.new_lines()) == ["four"]
    with path.open("a") as file:
        whole = line(6, "worker-1", "six")
        file.write(whole[:10])
        file.flush()
        assert tail.new_lines() == []
        file.write(whole[10:])
    assert events(fields for _, fields in tail.new_lines()) == ["six"]
    path.unlink()
    assert tail.new_lines() == []


def test_choice_of_a_process(logs: Path) -> None:
    assert [path.stem for path in chosen_files(logs, "worker-1")] == ["worker-1"]
    assert [path.stem for path in chosen_files(logs, "worker")] == ["worker-0", "worker-1"]
    with pytest.raises(StartError, match="there are: scheduler-0, worker-0, worker-1"):
        chosen_files(logs, "frontend")


def test_no_logs_are_said_to_be_none(tmp_path: Path, runtime: Path) -> None:
    with pytest.raises(StartError, match="^there are no logs in "):
        chosen_files(tmp_path, "")
    result = CliRunner().invoke(cli.main, ["logs"])
    assert result.exit_code == 1 and result.output == (
        "accelgen: there are no logs: no server is running, and none has failed\n"
    )


def test_following_a_dead_server_ends(tmp_path: Path, logs: Path) -> None:
    logs = logs.rename(tmp_path.parent / f"{tmp_path.name}-logs")
    tmp_path.mkdir()
    (tmp_path / "lock").touch()
    logs.rename(tmp_path / "logs")
    result = CliRunner().invoke(cli.main, ["logs", "-f", "-n", "1", "--run-dir", str(tmp_path)])
    assert result.exit_code == 0 and result.output.splitlines()[-2:] == [
        "00:00:05.123 worker-0     info    five",
        f"accelgen: the server has ended; its logs are in {tmp_path}/logs",
    ]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_following_ends_with_the_server(launch: Callable[..., Any], signum: int) -> None:
    server = launch()
    server.wait_ready()
    follow = [sys.executable, "-m", "accelgen.scripts.cli", "logs", "-f"]
    with subprocess.Popen(
        follow, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as verb:
        assert verb.stdout is not None
        assert verb.stdout.readline()
        server.end(signum)
        _, said = verb.communicate(timeout=10)
    assert verb.returncode == 0
    kept = "its logs are in" if signum == signal.SIGKILL else "it has taken its logs away"
    assert f"accelgen: the server has ended; {kept}" in said and said.count("\n") == 1


def test_control_characters_are_escaped() -> None:
    shown = pretty({"event": "a\x1b[31mb\r\nc", "who": "\x07"})
    assert "\x1b" not in shown and "\n" not in shown and "\\x1b[31mb\\r\\nc" in shown
