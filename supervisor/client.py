"""How a command-line verb talks to a running supervisor."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TypeVar

import zmq

from accelgen.proto.child import endpoint_of
from accelgen.proto.clocks import now_s
from accelgen.proto.ids import new_incarnation
from accelgen.proto.messages import (
    Body,
    Directory,
    Dump,
    Dumped,
    Query,
    Role,
    Stop,
    Swap,
    Swapped,
)
from accelgen.proto.sockets import Dealer
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import holder_of, is_live

DUMP_S = (
    10.0  # for all to write their recorder down; a worker amid a long iteration does not listen
)

Answer = TypeVar("Answer", bound=Body)


def ask_directory(run_dir: Path, timeout_s: float = 5.0) -> Directory:
    """The Directory of the server in `run_dir`. Raises StartError if it does not answer in time."""
    return _ask(run_dir, Query(), Directory, timeout_s)


class Onlooker:
    """Asks for the Directory again and again, over one connection. Raises StartError where no server runs."""

    def __init__(self, run_dir: Path) -> None:
        self._run_dir, self._link = run_dir, _connect(run_dir)

    def directory(self, timeout_s: float) -> Directory:
        """As `ask_directory`."""
        while self._link.recv() is not None:
            pass  # what came too late the last time
        return _answer(self._link, self._run_dir, Query(), Directory, timeout_s)

    def close(self) -> None:
        self._link.socket.close(linger=0)


def _ask(run_dir: Path, question: Body, kind: type[Answer], timeout_s: float) -> Answer:
    link = _connect(run_dir)
    try:
        return _answer(link, run_dir, question, kind, timeout_s)
    finally:
        link.socket.close(linger=0)


def _answer(
    link: Dealer, run_dir: Path, question: Body, kind: type[Answer], timeout_s: float
) -> Answer:
    link.send(question)
    until_s = now_s() + timeout_s
    while (left_s := until_s - now_s()) > 0:
        link.socket.poll(int(1000 * left_s) + 1)
        message = link.recv()
        if message is not None and isinstance(message[1], kind):
            return message[1]
    raise StartError(f"the supervisor (pid {holder_of(run_dir)}) did not answer in {timeout_s:g} s")


def ask_to_swap(run_dir: Path, swap: Swap, timeout_s: float) -> Swapped:
    """Asks the server in `run_dir` for another policy. Raises StartError if it does not answer in time."""
    return _ask(run_dir, swap, Swapped, timeout_s)


def ask_to_dump(run_dir: Path, timeout_s: float = DUMP_S) -> tuple[list[Dumped], list[str]]:
    """Asks every process of the server in `run_dir` to write its flight recorder down: what became of it, and the names
    of those that have not answered within `timeout_s`. Raises StartError if the supervisor itself does not answer."""
    members = [m for m in ask_directory(run_dir).members if m.phase != "dead"]
    missing = {f"{m.role.name.lower()}-{m.index}" for m in members}
    link = _connect(run_dir)
    answers: list[Dumped] = []
    try:
        link.send(Dump())
        until_s = now_s() + timeout_s
        while missing and (left_s := until_s - now_s()) > 0:
            link.socket.poll(int(1000 * left_s) + 1)
            message = link.recv()
            if message is not None and isinstance(message[1], Dumped):
                answers.append(message[1])
                missing.discard(message[1].process)
    finally:
        link.socket.close(linger=0)
    return answers, sorted(missing)


def ask_to_stop(run_dir: Path, drain_s: float, timeout_s: float) -> bool:
    """Asks the server in `run_dir` to finish what it has within `drain_s` and end; True when it has ended within
    `timeout_s`."""
    link = _connect(run_dir)
    try:
        link.send(Stop(drain_s, f"`accelgen down`, pid {os.getpid()}"))
        return await_end(run_dir, timeout_s)
    finally:
        link.socket.close(linger=0)


def await_end(run_dir: Path, timeout_s: float) -> bool:
    """Whether the server in `run_dir` ends within `timeout_s`."""
    until_s = now_s() + timeout_s
    while is_live(run_dir):
        if now_s() >= until_s:
            return False
        time.sleep(0.05)
    return True


def _connect(run_dir: Path) -> Dealer:
    incarnation = new_incarnation()
    link = Dealer(
        endpoint_of(run_dir, Role.SUPERVISOR), f"client:{os.getpid()}:{incarnation}", incarnation
    )
    assert link.socket.type == zmq.DEALER
    return link
