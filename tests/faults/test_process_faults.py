"""Faults of processes on servers that are not as they should be."""

from __future__ import annotations

from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from accelgen.faults.fault import Site
from accelgen.faults.process_faults import StaleSocket
from accelgen.faults.server import ServerGone


def test_a_fault_that_was_never_done_can_be_lifted(folder: Path) -> None:
    """The negative control lifts it whatever has happened; what is to be reported is that the server has gone."""

    def await_pid(name: str) -> int:
        raise ServerGone(name)

    server: Any = SimpleNamespace(socket_path=lambda name: folder / name, await_pid=await_pid)
    load: Any = None
    fault = StaleSocket(Site(server, load, "worker-0", Random(1)))
    with pytest.raises(ServerGone):
        fault.inject()
    fault.lift()
