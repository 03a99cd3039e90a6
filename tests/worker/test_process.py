"""The worker as a process: phases, epochs, batches in order, a prompt stop, one clear last line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, save_config
from accelgen.proto.messages import (
    Activate,
    Batch,
    Directory,
    Failure,
    Heartbeat,
    Held,
    Hello,
    Inventory,
    Member,
    Prompt,
    Pulse,
    Resync,
    Role,
    Sampling,
    StepResult,
    Stop,
)
from accelgen.proto.sockets import Dealer, Router

DEADLINE_S = 100.0


class Launched:
    """A worker process, and us in the place of its supervisor."""

    def __init__(self, run_dir: Path, config: Config) -> None:
        run_dir.chmod(0o700)
        save_config(config, run_dir / "config.json")
        self.run_dir = run_dir
        self.supervisor = Router(endpoint_of(run_dir, Role.SUPERVISOR), 1)
        self.peer = b""
        self.heard: list[Any] = []
        arguments = [
            "--run-dir",
            str(run_dir),
            "--index",
            "0",
            "--epoch",
            "1",
            "--parent",
            str(os.getpid()),
        ]
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "accelgen.worker", *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(run_dir)},
            stderr=subprocess.PIPE,
        )

    def until(self, good: Callable[[Any], bool]) -> Any:
        end_s = now_s() + DEADLINE_S
        while now_s() < end_s:
            if self.supervisor.socket.poll(50) and (message := self.supervisor.recv()) is not None:
                self.peer = message[0]
                self.heard.append(message[2])
                if good(message[2]):
                    return message[2]
        raise AssertionError(f"not heard in time; last: {self.heard[-3:]}")

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.supervisor.close()


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[[Config], Launched]]:
    started: list[Launched] = []

    def start(config: Config) -> Launched:
        started.append(Launched(tmp_path, config))
        return started[-1]

    yield start
    for one in started:
        one.close()


def answer(dealer: Dealer) -> Any:
    end_s = now_s() + DEADLINE_S
    while now_s() < end_s:
        message = dealer.recv() if dealer.socket.poll(50) else None
        if message is not None and not isinstance(message[1], Pulse):
            return message
    raise AssertionError("no answer")


def gauge(body: Any, kind: str) -> float | None:
    if not isinstance(body, Heartbeat):
        return None
    return body.gauges.get(f'accelgen:worker_{kind}_messages_total{{replica="0"}}')


def make_member(role: Role, incarnation: int) -> Member:
    return Member(role, 0, 1, "", incarnation, 1, "ready", 1, 1.0, 0.0, 1, None, {})


def answer_of(dealer: Dealer, kind: type[Any]) -> Any:
    body = answer(dealer)[1]
    assert isinstance(body, kind), body
    return body


def cut(step: int, tokens: int) -> Batch:
    """Of request 9 only so many tokens keep their KV."""
    return Batch(step, *[[]] * 10, 0.01, 1.0, [9], [tokens])  # type: ignore[arg-type]


def decode(step: int, start: int, new: list[Prompt], first: bool) -> Batch:
    count = len(new[0].tokens) if first else 1
    table = ([0], [1], [3]) if first else ([1], [0], [])
    return Batch(step, new, [9], [start], [count], *table, [], [], [], 0.01, 1.0)


def test_a_life(tiny: Any, launch: Any) -> None:
    worker = launch(Config(model=str(tiny("llama")), kv_blocks=64, max_model_len=128))
    ready = worker.until(lambda body: isinstance(body, Hello) and body.facts is not None)
    facts = ready.facts
    assert (facts.num_blocks, facts.max_model_len, facts.vocab_size) == (64, 128, 97)
    assert (facts.backend, facts.dtype, facts.device) == ("torch", "float32", "cpu")
    assert facts.architecture == "LlamaForCausalLM" and facts.model == str(tiny("llama"))
    assert facts.kv_bytes == 64 * 16 * 2 * 2 * 2 * 8 * 4
    assert len(facts.samples) >= 4 and all(sample.run_s > 0 for sample in facts.samples)
    worker.until(lambda body: isinstance(body, Heartbeat) and body.phase == "ready")
    phases = [body.phase for body in worker.heard if isinstance(body, Heartbeat)]
    order = ["importing", "loading weights", "self-check", "timing", "ready"]
    assert [phase for phase in dict.fromkeys(phases) if phase in order] == order

    endpoint = endpoint_of(worker.run_dir, Role.WORKER)
    old, new, manager = (
        Dealer(endpoint, name, i) for i, name in enumerate(("old", "new", "kvmanager-0:3"), 1)
    )
    stranger = Dealer(endpoint, "kvmanager-0:9", 9)
    for word in (Activate(), Resync()):
        stranger.send(word, epoch=99)  # the supervisor has not started it
    old.send(Activate(), epoch=4)  # before anybody has said who it is
    manager.send(Resync(), epoch=4)
    worker.until(lambda body: gauge(body, "stranger") == 4)
    listed = [make_member(Role.SCHEDULER, one) for one in (1, 2)]
    listed += [make_member(Role.KVMANAGER, one) for one in (3, 4)]
    worker.supervisor.send(worker.peer, Directory(listed, True, False))
    assert answer(old)[1] == Inventory(-1, [])
    prompt = Prompt(9, [1, 2, 3, 4, 5], Sampling(temperature=0.0))
    assert answer(manager)[1] == Inventory(-1, [])
    manager.send(decode(0, 0, [prompt], True), epoch=4)
    for step in range(1, 3):  # queued ahead: run in order
        manager.send(decode(step, 4 + step, [], False), epoch=4)
    results = [answer(old) for _ in range(3)]
    assert [body.step for _, body in results] == [0, 1, 2] and {h.epoch for h, _ in results} == {4}
    assert all(isinstance(body, StepResult) and body.counts == [1] for _, body in results)

    stranger.send(Activate(), epoch=4)  # its epoch is taken
    stranger.send(decode(9, 8, [], False), epoch=4)  # only the KV manager sends work
    stranger.send(decode(9, 8, [], False), epoch=99)
    stranger.send(Stop(0.0), epoch=4)  # that is the supervisor's to say
    stranger.socket.send_multipart([b"no header", b"no body"])
    counted = {"unexpected": 1, "stale": 3, "malformed": 1}
    worker.until(lambda body: all(gauge(body, kind) == n for kind, n in counted.items()))
    manager.send(decode(3, 7, [], False), epoch=4)
    assert answer(old)[1].step == 3
    stranger.close()

    new.send(Activate(), epoch=6)
    assert answer(new)[1] == Inventory(3, [])
    manager.send(decode(4, 8, [], False), epoch=4)
    header, result = answer(new)
    assert (header.epoch, result.step) == (4, 4)

    successor = Dealer(endpoint, "kvmanager-0:4", 4)  # of another incarnation
    manager.send(decode(5, 9, [], False), epoch=4)
    assert answer(new)[1].step == 5
    successor.send(Resync(), epoch=6)
    header, inventory = answer(successor)
    assert header.epoch == 6 and inventory == Inventory(5, [Held(9, 10, [3])])
    manager.send(decode(6, 10, [], False), epoch=6)  # no longer its KV manager
    worker.until(lambda body: gauge(body, "stale") == 4)

    successor.codec.pack(b"", Resync(), 6)  # lost
    successor.send(decode(7, 10, [], False), epoch=6)
    assert "were lost" in answer_of(new, Resync).cause
    successor.send(Resync(), epoch=7)
    assert answer_of(successor, Inventory).step == 5  # what came after the gap has not been run
    successor.send(cut(6, 4), epoch=7)
    assert answer_of(new, StepResult).step == 6
    successor.send(Resync(), epoch=7)
    assert answer_of(successor, Inventory).held == [Held(9, 4, [3])]
    old.send(Activate(), epoch=5)  # too late
    worker.until(lambda body: gauge(body, "stale") == 6)
    assert old.recv() is None

    worker.supervisor.send(worker.peer, Stop(1.0))
    begin_s = now_s()
    assert worker.process.wait(20) == 0
    assert now_s() - begin_s < 10


def test_a_model_that_cannot_be_loaded_is_one_clear_last_line(launch: Any, tmp_path: Path) -> None:
    worker = launch(Config(model=str(tmp_path / "none")))
    failure = worker.until(lambda body: isinstance(body, Failure))
    assert failure.line == f"model {tmp_path / 'none'}: no such folder"
    assert worker.process.wait(30) == 1
    assert b"Traceback" not in worker.process.stderr.read()
