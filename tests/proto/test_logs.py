"""Logs never end the process that writes them: not on a full disk, not with nobody left to read them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys
import structlog
from accelgen.proto.logs import configure_logs
configure_logs("tester")
log = structlog.get_logger()
log.info("before", number=1)
size = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), size[1]))
for number in range(5):
    log.warning("during", number=number, text="x" * 50)
resource.setrlimit(resource.RLIMIT_FSIZE, size)
log.info("after", number=2)
log.info("at last", number=3)
"""


def test_a_full_disk_costs_lines_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for limit in (1, 200):  # no byte more, and some bytes of a line
        with path.open("wb") as log:
            done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, str(limit)], stderr=log)
        assert done.returncode == 0, path.read_text()
        lines = path.read_text().splitlines()
        whole = [json.loads(line) for line in lines if line.endswith("}")]
        assert [one["event"] for one in whole] == ["before", "after", "lines were lost", "at last"]
        assert whole[2]["lost"] == 5 and whole[2]["process"] == "tester"
        assert len(lines) - len(whole) == (limit > 1)  # what there was room for of the first


def test_nobody_reads_them() -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    with open(write_fd, "wb") as pipe:
        done = subprocess.run([sys.executable, "-P", "-c", PROGRAM, "-1"], stderr=pipe)
    assert done.returncode == 0


def test_a_stream_without_descriptor() -> None:
    """As tests use it."""
    code = (
        "import io, structlog; from accelgen.proto.logs import configure_logs; s = io.StringIO();"
        "configure_logs('tester', 'info', s); structlog.get_logger().info('here'); print(s.getvalue())"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert json.loads(done.stdout)["event"] == "here" and isinstance(io.StringIO(), io.TextIOBase)
