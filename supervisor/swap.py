"""A planned change of the scheduler, step by step (DESIGN section 6). Sans I/O.

    preparing   the new process starts, imports, makes its policy; the old one serves
    yielding    the old one lets its iteration come back and plans no more
    assuming    the new one activates the rest of the server in its own epoch

Until `assuming` nothing has changed for anybody and a failure is a refusal. From then on the old one is fenced out, and
a failure means that the policy before is started afresh, as after a crash.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import msgspec

from accelgen.proto.messages import Assume, Yield
from accelgen.supervisor.actions import Action, Send
from accelgen.supervisor.members import Occupant, Seat
from accelgen.supervisor.verdict import describe_death

PREPARE_S = 20.0  # to start Python, import, make the policy
YIELD_S = 2.0  # then the successor takes over all the same: epochs fence the old one out
ASSUME_S = 30.0  # an iteration may be long, and the worker finishes it before it answers
PROBATION_S = 10.0  # a death within it brings the policy before back
RETIRE_S = 2.0  # what a process that is not needed any more gets to leave
LAST_WORD_S = 0.1


@dataclass(frozen=True)
class Assignment:
    """What a scheduler is to run."""

    policy: str
    params: dict[str, Any] = field(default_factory=dict)

    def arguments(self) -> tuple[str, ...]:
        """For the command line of the process."""
        return ("--policy", self.policy, "--params", msgspec.json.encode(self.params).decode())


class Stage(Enum):
    PREPARING = "preparing"
    YIELDING = "yielding"
    ASSUMING = "assuming"


@dataclass
class Exchange:
    """One swap on its way. `done` turns from None to True or False, `line` says why."""

    client: bytes
    ticket: int
    aim: Assignment
    dry_run: bool
    old: Seat
    new: Seat
    epoch: int
    begun: bool = False  # the new process has been started
    stage: Stage = Stage.PREPARING
    until_s: float = 0.0
    handed_s: float = 0.0
    done: bool | None = None
    line: str = ""

    def step(self, old: Occupant | None, new: Occupant | None, now_s: float) -> list[Action]:
        """What is next, given the two processes as they are now."""
        if self.stage is Stage.PREPARING and (old is None or not old.alive):
            return self._end(False, "the scheduler in office has died meanwhile")
        if new is None or not new.alive:
            if new is not None and not new.failure and now_s < new.exited_s + LAST_WORD_S:
                return []
            return self._end(False, describe_death(new, 0) if new else "it could not be started")
        if now_s >= self.until_s and self.stage is not Stage.YIELDING:
            return self._end(
                False, f"the new scheduler was still '{new.phase}' when its time was over"
            )
        return self._proceed(old, new, now_s)

    def _proceed(self, old: Occupant | None, new: Occupant, now_s: float) -> list[Action]:
        assert new.peer is not None or self.stage is Stage.PREPARING
        if self.stage is Stage.PREPARING and new.phase == "standby":
            if self.dry_run:
                return self._end(True, f"policy {self.aim.policy} could take over now")
            self.stage, self.until_s, self.handed_s = Stage.YIELDING, now_s + YIELD_S, now_s
            assert old is not None and old.peer is not None
            return [Send(old.peer, Yield(), self.epoch)]
        if self.stage is Stage.YIELDING:
            gone = old is None or not old.alive or old.phase == "yielded"
            if gone or now_s >= self.until_s:
                self.stage, self.until_s = Stage.ASSUMING, now_s + ASSUME_S
                assert new.peer is not None
                return [Send(new.peer, Assume(self.epoch), self.epoch)]
        if self.stage is Stage.ASSUMING and new.phase == "ready":
            took_ms = 1000 * (now_s - self.handed_s)
            line = (
                f"policy {self.aim.policy} has taken over in epoch {self.epoch}, {took_ms:.0f} ms after the one"
                f" before stopped planning; on probation for {PROBATION_S:.0f} s"
            )
            return self._end(True, line)
        return []

    def _end(self, done: bool, line: str) -> list[Action]:
        self.done, self.line = done, line
        return []
