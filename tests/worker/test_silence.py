"""When a worker takes its KV manager for dead: after silence, not after a long iteration of its own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Abort, Activate, Body, Directory, Member, Pulse, Resync, Role
from accelgen.proto.pulse import SILENCE_S
from accelgen.proto.sockets import Dealer
from accelgen.worker import process


def member(role: Role, incarnation: int) -> Member:
    return Member(role, 0, 1, "", incarnation, 1, "ready", 1, 1.0, 0.0, 1, None, {})


class Stage:
    """A worker's loop between a scheduler and a KV manager, and a clock that can be put forward."""

    def __init__(self, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ahead_s = 0.0
        monkeypatch.setattr(process, "now_s", lambda: now_s() + self.ahead_s)
        endpoint = endpoint_of(run_dir, Role.WORKER)
        members = [member(Role.SCHEDULER, 5), member(Role.KVMANAGER, 6)]
        child = SimpleNamespace(
            endpoint=endpoint, incarnation=1, index=0, directory=Directory(members, True, False),
            link=SimpleNamespace(socket=0),
        )  # fmt: skip
        core = SimpleNamespace(step=-1)
        engine: Any = SimpleNamespace(core=core, facts=None)
        self.loop = process.Loop(child, engine)  # type: ignore[arg-type]
        self.scheduler = Dealer(endpoint, "scheduler:5:1", 5)
        self.manager = Dealer(endpoint, "kvmanager-0:6:1", 6)
        self.loop.fence.learn(child.directory)
        self.loop.manager.learn(child.directory)
        self.hear(self.scheduler, Activate())
        self.hear(self.manager, Resync())

    def hear(self, sender: Dealer, body: Body) -> None:
        self.send(sender, body)
        self.loop._receive()

    def send(self, sender: Dealer, body: Body) -> None:
        """Returns when it has arrived."""
        sender.send(body, 1)
        assert self.loop.router.socket.poll(5000)

    def close(self) -> None:
        for socket in (self.scheduler, self.manager, self.loop.router):
            socket.close()


@pytest.mark.parametrize("pulses", [True, False])
def test_pulses_that_wait_to_be_read_are_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pulses: bool
) -> None:
    """Found by a prefill of 10 s: the scheduler took over from itself after each long iteration."""
    tmp_path.chmod(0o700)
    stage = Stage(tmp_path, monkeypatch)
    try:
        assert stage.loop.manager.peer and not stage.loop._gap
        if pulses:
            stage.send(stage.manager, Pulse())
        stage.ahead_s += 3 * SILENCE_S  # the iteration
        stage.loop._receive()
        assert stage.loop._gap == (not pulses)
    finally:
        stage.close()


def test_a_question_that_is_asked_twice_is_answered_once_or_twice_and_is_no_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of another epoch was lost, the second is heard, the third waits for the same answer."""
    tmp_path.chmod(0o700)
    stage = Stage(tmp_path, monkeypatch)
    again = Dealer(stage.loop.child.endpoint, "kvmanager-0:6:2", 6)
    try:
        stage.loop.queue.clear()
        again.codec.pack(b"", Resync(), 2)  # never sent
        for _ in range(2):
            again.send(Resync(), 2)
            assert stage.loop.router.socket.poll(5000)
            stage.loop._receive()
        assert [item.epoch for item in stage.loop.queue] == [2] and not stage.loop._gap
    finally:
        again.close()
        stage.close()


def test_who_has_yielded_pulses_until_it_hears_of_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last pulse may come after the successor's first word, as may that of a connection that the KV manager has
    closed. It is stale then, like everything that it would say, and nothing to warn of; what is no pulse is."""
    tmp_path.chmod(0o700)
    stage = Stage(tmp_path, monkeypatch)
    loop, endpoint = stage.loop, stage.loop.child.endpoint
    loop.fence.learn(Directory([member(Role.SCHEDULER, 5), member(Role.SCHEDULER, 7)], True, False))
    successor, again = Dealer(endpoint, "scheduler:7:2", 7), Dealer(endpoint, "kvmanager-0:6:2", 6)
    warned: list[object] = []
    monkeypatch.setattr(process, "warn_seldom", lambda event, **facts: warned.append(facts["kind"]))
    try:
        for sender, word in ((successor, Activate()), (again, Resync())):
            sender.send(word, 2)
            assert loop.router.socket.poll(5000)
            loop._receive()
        assert loop.fence.epoch == loop.manager.epoch == 2
        for sender in (stage.scheduler, stage.manager):
            stage.hear(sender, Pulse())
        assert (loop.counters["stale"], loop.counters["unexpected"], warned) == (2, 0, [])
        for sender in (successor, again):
            sender.send(Pulse(), 2)
            assert loop.router.socket.poll(5000)
            loop._receive()
        assert loop.counters["stale"] == 2
        stage.hear(stage.scheduler, Abort([1]))
        assert loop.counters["unexpected"] == 1 and warned == ["Abort"]
    finally:
        for dealer in (successor, again):
            dealer.close()
        stage.close()
