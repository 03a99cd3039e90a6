"""The way of a Dump: command line, supervisor, everyone, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from accelgen.proto.dumps import FOLDER
from accelgen.proto.frame import Header
from accelgen.proto.messages import Dump, Dumped, Role
from accelgen.proto.recording import Fact, read_recording
from accelgen.supervisor.actions import Record, Send
from accelgen.supervisor.client import ask_to_dump
from accelgen.supervisor.core import SupervisorCore
from accelgen.supervisor.members import Seat, all_seats

NAMES = {
    "supervisor-0", "worker-0", "kvmanager-0", "scheduler-0", "scheduler-1", "frontend-0",
}  # fmt: skip
HEADER = Header(1, 0, 1, 77, 0)


def test_the_core_passes_both_ways() -> None:
    core = SupervisorCore(all_seats(1, 1), pid=1, started_s=0.0)
    core.start(0.0)
    for place, seat in enumerate(core.seats):
        core.spawned(seat, 1, 100 + place, 0.0)
    alive, silent = Seat(Role.WORKER, 0), Seat(Role.SCHEDULER, 0)
    core.occupants[alive].peer = b"worker-0:5"
    assert core.occupants[silent].peer is None  # has not said Hello: cannot be reached
    asked = core.heard(b"client:9", HEADER, Dump(), 1.0)
    assert asked[0] == Record(b"client:9")
    assert [(a.peer, a.body) for a in asked[1:] if isinstance(a, Send)] == [
        (b"worker-0:5", Dump(b"client:9"))
    ]
    answer = Dumped(b"client:9", "worker-0", "worker-0-5.msgpack", 3)
    assert core.heard(b"worker-0:5", HEADER, answer, 1.0) == [Send(b"client:9", answer)]


def test_every_process_writes_and_answers(launch: Callable[..., Any]) -> None:
    server = launch()
    server.wait_for_spare()
    answers, silent = ask_to_dump(server.run_dir)
    assert not silent and {answer.process for answer in answers} == NAMES
    assert not any(answer.fault for answer in answers)
    folder = server.run_dir / FOLDER
    assert {path.name for path in folder.iterdir()} == {answer.file for answer in answers}
    own = read_recording(next(folder.glob("supervisor-0-*")))
    started = [e.values["child"] for e in own.events if isinstance(e, Fact) and e.name == "start"]
    assert set(started) == NAMES - {"supervisor-0"}
    again, silent = ask_to_dump(server.run_dir)
    assert not silent and {answer.file for answer in again} == {answer.file for answer in answers}


def test_who_does_not_answer_is_named(launch: Callable[..., Any]) -> None:
    server = launch(MUTE="worker:30")
    server.wait_for_spare()
    answers, silent = ask_to_dump(server.run_dir, 1.0)
    assert silent == ["worker-0"]
    assert {answer.process for answer in answers} == NAMES - {"worker-0"}


def test_a_recorder_that_is_off_says_so(launch: Callable[..., Any]) -> None:
    server = launch("--recorder-events", "0")
    server.wait_ready()
    answers, silent = ask_to_dump(server.run_dir)
    assert not silent
    assert {answer.fault for answer in answers} == {"the flight recorder is off"}
    assert not (server.run_dir / FOLDER).exists()
