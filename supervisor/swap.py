"""A planned change of the scheduler, step by step. Sans I/O.

    preparing   the spare, or a process started for it, makes the new policy; the old one serves
    yielding    the old one lets its iteration come back, hands over what it has learnt, and plans no more
    assuming    the new one activates the rest of the server in a term of its own

Until `yielding` nothing has changed for anybody and a failure is a refusal. After that the old one, which has only
stood aside, takes office again.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from accelgen.proto.policies import DEFAULT_ROUTING, own_memory
from accelgen.supervisor.actions import Action
from accelgen.supervisor.members import Assignment, Occupant, Seat
from accelgen.supervisor.orders import assume, prepare, yield_to_another
from accelgen.supervisor.verdict import describe_death

PREPARE_S = 20.0  # to start Python, import, make the policy
YIELD_S = 2.0  # then the successor takes over all the same: epochs fence the old one out
ASSUME_S = 30.0  # an iteration may be long, and the worker finishes it before it answers
PROBATION_S = 10.0  # a death within it brings the policy before back
RETIRE_S = 2.0  # what a process that is not needed any more gets to leave
LAST_WORD_S = 0.1


class Stage(Enum):
    PREPARING = "preparing"
    YIELDING = "yielding"
    ASSUMING = "assuming"


@dataclass
class Exchange:
    """One swap on its way. `done` turns from None to True or False, `line` says why.

    `fresh`: the new process has been started for this swap, so that its refusal is not that of an old version.
    `asked`: it has been told to prepare. `snapshot`: what the old one has handed over. `was`: what it ran (`running`)
    when the swap was asked for; one that stands aside does not tell any more."""

    client: bytes
    ticket: int
    aim: Assignment
    dry_run: bool
    old: Seat
    new: Seat
    until_s: float
    was: dict[str, str]
    stage: Stage = Stage.PREPARING
    fresh: bool = False
    asked: bool = False
    snapshot: bytes = b""
    handed_s: float = 0.0
    done: bool | None = None
    line: str = ""

    def step(self, old: Occupant, new: Occupant, term: int, now_s: float) -> list[Action]:
        """What is next, given the two processes as they are now; `term` is the one to assume."""
        if not new.alive:
            if new.failure or now_s >= new.exited_s + LAST_WORD_S:
                self.end(False, describe_death(new, 0))
            return []
        match self.stage:
            case Stage.PREPARING:
                actions = self._prepare(old, new, now_s)
            case Stage.YIELDING:
                actions = self._await_yield(old, new, term, now_s)
            case Stage.ASSUMING:
                actions = self._await_office(new, now_s)
        if self.done is None and now_s >= self.until_s:
            self.end(False, f"{new.seat.name} was still '{new.phase}' when its time was over")
        return actions

    def end(self, done: bool, line: str) -> None:
        """It is over."""
        self.done, self.line = done, line

    def _prepare(self, old: Occupant, new: Occupant, now_s: float) -> list[Action]:
        if not self.asked and new.phase == "standby":
            self.asked = True
            return [prepare(new, self.aim)]
        if not self.asked or new.phase != "prepared":
            return []
        if self.dry_run:
            self.end(True, f"{self._changes(new)}: could take over now")
            return []
        self.stage, self.until_s, self.handed_s = Stage.YIELDING, now_s + YIELD_S, now_s
        return [yield_to_another(old)]

    def _await_yield(self, old: Occupant, new: Occupant, term: int, now_s: float) -> list[Action]:
        if old.alive and not stands_aside(old) and now_s < self.until_s:
            return []
        self.stage, self.until_s = Stage.ASSUMING, now_s + ASSUME_S
        return [assume(new, term, self.snapshot)]

    def _await_office(self, new: Occupant, now_s: float) -> list[Action]:
        if new.phase == "ready":
            took_ms = 1000 * (now_s - self.handed_s)
            self.end(
                True,
                f"{self._changes(new)}: has taken over in epoch {new.epoch}, {took_ms:.0f} ms after the one"
                f" before stopped planning; on probation for {PROBATION_S:.0f} s",
            )
        return []

    def _changes(self, new: Occupant) -> str:
        """What becomes of policy, memory policy and routing: those that differ. A memory policy that nobody has named
        is known once a scheduler is in office with it."""
        changes = [
            f"{kind} {what} in place of {self.was[kind] or 'the one of the policy'}"
            for kind, what in running(self.aim, new).items()
            if what and what != self.was[kind]
        ]
        return ", ".join(changes) or f"policy {self.aim.policy} anew"


def running(assignment: Assignment, one: Occupant) -> dict[str, str]:
    """What a scheduler with this assignment runs, by kind, as it is written on the command line; "" for a memory policy
    that its policy has brought and it has not told of yet."""
    memory = assignment.memory or own_memory(one.gauges)
    return {
        "policy": _spelled(assignment.policy, assignment.params),
        "memory policy": _spelled(memory, assignment.memory_params),
        "routing": assignment.routing or DEFAULT_ROUTING,
    }


def _spelled(name: str, params: dict[str, Any]) -> str:
    return ":".join([name, *(f"{key}={value}" for key, value in params.items())])


def stands_aside(one: Occupant) -> bool:
    """It lives, plans nothing, and could take office at a word."""
    return one.alive and one.phase in ("standby", "prepared", "yielded") and one.peer is not None
