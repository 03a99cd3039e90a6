"""A scheduler process between terms: what it does when its supervisor says so. No replica is there: it never plans."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, save_config
from accelgen.proto.messages import (
    Assume,
    Body,
    Failure,
    Handoff,
    Heartbeat,
    Prepare,
    Role,
    Stop,
    Yield,
)
from accelgen.proto.sockets import Router
from accelgen.scheduler.cost_model import Coefficients
from accelgen.scheduler.memory.cacheopt import Remembered
from accelgen.scheduler.snapshot import VERSION, CostState, Snapshot

DEADLINE_S = 20.0
POLICY = "from accelgen.scheduler.policies.vllm import Vllm\n\nclass Theirs(Vllm):\n    pass\n"


class Process:
    """A scheduler, and us in the place of its supervisor."""

    def __init__(self, run_dir: Path, packages: Path) -> None:
        save_config(Config(), run_dir / "config.json")
        self.packages = packages
        self.supervisor = Router(endpoint_of(run_dir, Role.SUPERVISOR), 1)
        self.peer = b""
        self.heard: list[Body] = []
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "accelgen.scheduler", "--run-dir", str(run_dir)]
            + ["--index", "1", "--epoch", "0", "--parent", str(os.getpid())],
            env={**os.environ, "PYTHONPATH": str(packages)},
        )

    def tell(self, *orders: Body) -> None:
        for order in orders:
            self.supervisor.send(self.peer, order)

    def hear(self, good: Callable[[Any], bool]) -> Any:
        """The first message like this that comes from now on."""
        end_s = now_s() + DEADLINE_S
        while now_s() < end_s:
            self.supervisor.socket.poll(50)
            if (message := self.supervisor.recv()) is not None:
                self.peer, _, body = message
                self.heard.append(body)
                if good(body):
                    return body
        raise AssertionError(f"not heard in time: {self.heard}")

    def await_phase(self, phase: str) -> None:
        self.hear(lambda body: isinstance(body, Heartbeat) and body.phase == phase)

    def install(self, name: str) -> None:
        """Somebody's package with a policy of the same name."""
        (self.packages / f"{name}.py").write_text(POLICY)
        info = self.packages / f"{name}-1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        (info / "entry_points.txt").write_text(f"[accelgen.policies]\n{name} = {name}:Theirs\n")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.supervisor.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Process]:
    run_dir = Path(tempfile.mkdtemp(prefix="ag-"))
    opened = Process(run_dir, tmp_path)
    opened.await_phase("standby")
    yield opened
    opened.close()
    shutil.rmtree(run_dir)


OWED = msgspec.msgpack.decode(msgspec.msgpack.encode(Remembered(owed={5: 3})))


def learnt(policy: str) -> Snapshot:
    coefficients = Coefficients(0.001, 0.002, 0.0, 0.0, 0.0, 0.0, 8.0)
    costs = {0: CostState(coefficients, 1.5, 2.5, 0.5, 77)}
    return Snapshot(VERSION, policy, {"chat": [3, 5, 8]}, costs, {})


def test_what_has_been_learnt_goes_through_a_term(process: Process) -> None:
    snapshot = msgspec.msgpack.encode(learnt("sarathi"))
    process.tell(Prepare("vllm"), Assume(7, snapshot))
    process.await_phase("waiting for workers")
    process.tell(Yield())
    handoff = process.hear(lambda body: isinstance(body, Handoff))
    process.await_phase("yielded")
    process.await_phase("standby")
    assert msgspec.msgpack.decode(handoff.snapshot, type=Snapshot) == learnt("vllm")


def test_what_a_memory_policy_has_learnt_goes_through_a_term(process: Process) -> None:
    """With the policy's own one, and with one that is named; that of another one stays behind."""
    for term, (policy, memory, own) in enumerate(
        [("cacheopt", "", True), ("vllm", "cacheopt", True), ("vllm", "", False)], 1
    ):
        told = msgspec.structs.replace(learnt(policy), memory="cacheopt", memory_states={0: OWED})
        process.heard.clear()
        process.tell(Prepare(policy, {}, memory), Assume(term, msgspec.msgpack.encode(told)))
        process.await_phase("waiting for workers")
        process.tell(Yield())
        handoff = process.hear(lambda body: isinstance(body, Handoff))
        found = msgspec.msgpack.decode(handoff.snapshot, type=Snapshot)
        assert found.memory == ("cacheopt" if own else "on-demand")
        assert found.memory_states == ({0: OWED} if own else {})
        process.await_phase("standby")


def test_what_a_routing_remembers_goes_through_a_term(process: Process) -> None:
    """To one of the same name; another one begins anew."""
    for term, (routing, turn) in enumerate([("round-robin", 3), ("least-load", None)], 1):
        told = msgspec.structs.replace(
            learnt("vllm"), routing="round-robin", routing_state=3, workers={0: 5, 3: 6}
        )
        process.heard.clear()
        snapshot = msgspec.msgpack.encode(told)
        process.tell(Prepare("vllm", routing=routing), Assume(term, snapshot))
        process.await_phase("waiting for workers")
        process.tell(Yield())
        handoff = process.hear(lambda body: isinstance(body, Handoff))
        found = msgspec.msgpack.decode(handoff.snapshot, type=Snapshot)
        assert (found.routing, found.routing_state) == (routing, turn)
        assert found.workers == {0: 5, 3: 6}
        process.await_phase("standby")


def test_it_takes_office_again_and_again(process: Process) -> None:
    for term in range(1, 4):
        process.tell(Prepare("sarathi"), Assume(term))
        process.await_phase("waiting for workers")
        process.tell(Yield())
        process.await_phase("yielded")
    process.tell(Assume(9))  # with the policy it has; the Yield before it came too late
    process.await_phase("waiting for workers")
    process.tell(Yield(), Assume(10))
    process.await_phase("yielded")
    process.await_phase("waiting for workers")
    process.tell(Stop(1.0))
    assert process.process.wait(DEADLINE_S) == 0


@pytest.mark.parametrize(
    ("order", "line"),
    [
        (Prepare("nonsense"), "there is no policy 'nonsense'; known: "),
        (Prepare("sarathi", {"x": 1}), "policy_params: sarathi: "),
        (Prepare("sarathi", routing="round"), "there is no routing 'round'; did you mean"),
        (Prepare("sarathi", routing="planned:x=1"), "routing: planned: "),
        (Prepare("sarathi", {}, "cacheop"), "there is no memory policy 'cacheop'; did you mean"),
        (Prepare("sarathi", {}, "cacheopt", {"x": 1}), "memory_params: cacheopt: "),
        (Assume(1), "told to take office, but not with which policy"),
    ],
)
def test_what_it_cannot_do_it_says_in_one_line(process: Process, order: Body, line: str) -> None:
    process.tell(order)
    failure = process.hear(lambda body: isinstance(body, Failure))
    assert failure.line.startswith(line)
    assert process.process.wait(DEADLINE_S) == 1


def test_a_policy_that_is_installed_while_it_stands_by(process: Process) -> None:
    process.install("theirs")
    process.tell(Prepare("theirs"))
    process.await_phase("prepared")


def test_somebodys_package_is_imported_once_in_a_life(process: Process) -> None:
    """It may have been replaced since. The policies that come with us are as they were."""
    process.install("theirs")
    process.tell(Prepare("theirs"))
    process.await_phase("prepared")
    process.tell(Prepare("vllm"))
    process.await_phase("prepared")
    process.tell(Prepare("theirs"))
    failure = process.hear(lambda body: isinstance(body, Failure))
    assert failure.line == "policy theirs: this process has imported theirs before"


def test_a_package_that_fails_is_named(process: Process) -> None:
    process.install("theirs")
    (process.packages / "theirs.py").write_text("import nothing_like_this\n")
    process.tell(Prepare("theirs"))
    failure = process.hear(lambda body: isinstance(body, Failure))
    assert failure.line.startswith("policy theirs: ModuleNotFoundError: ")


def test_it_stops_while_it_stands_by(process: Process) -> None:
    process.tell(Stop(1.0))
    assert process.process.wait(DEADLINE_S) == 0
