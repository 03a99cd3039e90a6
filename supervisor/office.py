"""The scheduler's office: which policy holds it, who is to take it over, and who has left it. Sans I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from signal import SIGKILL, SIGTERM
from typing import Any

from accelgen.proto.messages import Role, Swap, Swapped
from accelgen.supervisor.actions import Action, Send, Signal, Spawn
from accelgen.supervisor.members import Occupant, Seat
from accelgen.supervisor.swap import (
    PREPARE_S,
    PROBATION_S,
    RETIRE_S,
    Assignment,
    Exchange,
    Stage,
)


@dataclass
class Office:
    """Works on the supervisor's own `seats`, `occupants` and `facts`: the seat of the scheduler alternates between two.

    `before`: what the one before ran, to return to if the present one dies on probation."""

    seats: list[Seat]
    occupants: dict[Seat, Occupant]
    facts: dict[str, Any]
    assignment: Assignment
    since_s: float  # when the assignment was made
    before: Assignment | None = None
    exchange: Exchange | None = None
    _probation_s: float = 0.0  # until then
    _retired_s: dict[Seat, float] = field(default_factory=dict)  # leaving; killed at that time
    _changed: bool = False

    @property
    def busy(self) -> bool:
        """A swap is on its way."""
        return self.exchange is not None

    def take_change(self) -> bool:
        """Whether the Directory has something new to say, once."""
        changed, self._changed = self._changed, False
        return changed

    def arguments(self, seat: Seat) -> tuple[str, ...]:
        """What a process in this seat is to be started with."""
        chosen = seat.role is Role.SCHEDULER and self.assignment.policy
        return self.assignment.arguments() if chosen else ()

    def is_leaving(self, seat: Seat) -> bool:
        """The old scheduler of a swap may die as soon as it has yielded."""
        swap = self.exchange
        return swap is not None and seat == swap.old and swap.stage is not Stage.PREPARING

    def note_death(self, why: str, now_s: float) -> None:
        """The scheduler has died by itself: on probation that brings the policy before back."""
        if self.before is not None and now_s < self._probation_s:
            self.facts["rolled_back"] = f"{self.assignment.policy}: {why}"
            self._assign(self.before, now_s)
            self.before = None

    def ask(self, client: bytes, swap: Swap, epoch: int, now_s: float) -> list[Action]:
        """Takes a swap on, to be carried out by `proceed`; refuses a second one."""
        if self.exchange is not None:
            return [Send(client, Swapped(False, "another swap is under way", swap.ticket))]
        old = next(seat for seat in self.seats if seat.role is Role.SCHEDULER)
        new, aim = Seat(Role.SCHEDULER, 1 - old.index), Assignment(swap.policy, swap.params)
        until_s = now_s + PREPARE_S
        self.exchange = Exchange(
            client, swap.ticket, aim, swap.dry_run, old, new, epoch, until_s=until_s
        )
        self._announce()
        return []

    def give_up(self, why: str) -> None:
        """Something else makes the swap impossible."""
        if self.exchange is not None:
            self.exchange.done, self.exchange.line = False, why

    def proceed(self, now_s: float, stopping: bool) -> list[Action]:
        """One look at the swap, and at those who are leaving."""
        swap = self.exchange
        if swap is None:
            return self._see_off(now_s)
        if stopping:
            self.give_up("the server is stopping")
        actions: list[Action] = []
        if swap.done is None:
            actions = self._step(swap, now_s)
        if swap.done is not None:
            self.exchange = None
            actions += self._conclude(swap, now_s)
        self._announce()
        return actions + self._see_off(now_s)

    def _step(self, swap: Exchange, now_s: float) -> list[Action]:
        old, new = self.occupants.get(swap.old), self.occupants.get(swap.new)
        if swap.begun:
            return swap.step(old, new, now_s)
        if new is not None:  # the one before has not left its seat yet
            return []
        swap.begun = True
        return [Spawn(swap.new, swap.epoch, (*swap.aim.arguments(), "--standby"))]

    def _conclude(self, swap: Exchange, now_s: float) -> list[Action]:
        if swap.done and not swap.dry_run:
            self.seats[self.seats.index(swap.old)] = swap.new
            self.before, self._probation_s = self.assignment, now_s + PROBATION_S
            self._assign(swap.aim, now_s)
            actions = self._dismiss(swap.old, now_s)
        else:
            actions = self._dismiss(swap.new, now_s) if swap.begun else []
            if swap.stage is not Stage.PREPARING:  # the old one plans no more: to be started afresh
                actions.append(Signal(swap.old, SIGKILL))
        return [
            *actions,
            Send(swap.client, Swapped(bool(swap.done), swap.line[:2000], swap.ticket)),
        ]

    def _assign(self, assignment: Assignment, now_s: float) -> None:
        self.assignment, self.since_s, self._changed = assignment, now_s, True
        self.facts["policy"], self.facts["policy_params"] = assignment.policy, assignment.params

    def _announce(self) -> None:
        """Which swap is under way, for the Directory."""
        swap = self.exchange
        facts = swap and {
            "policy": swap.aim.policy, "dry_run": swap.dry_run, "stage": swap.stage.value
        }  # fmt: skip
        if facts != self.facts.get("swap"):
            self.facts["swap"], self._changed = facts, True

    def _dismiss(self, seat: Seat, now_s: float) -> list[Action]:
        """A scheduler that is not needed any more: it leaves, or is made to."""
        self._retired_s[seat] = now_s + RETIRE_S
        occupant = self.occupants.get(seat)
        return [Signal(seat, SIGTERM)] if occupant is not None and occupant.alive else []

    def _see_off(self, now_s: float) -> list[Action]:
        """Forgets who has left, kills who has not in time."""
        actions: list[Action] = []
        for seat, until_s in list(self._retired_s.items()):
            occupant = self.occupants.get(seat)
            if occupant is None or not occupant.alive:
                self.occupants.pop(seat, None)
                del self._retired_s[seat]
                self._changed = True
            elif now_s >= until_s:
                actions.append(Signal(seat, SIGKILL))
                self._retired_s[seat] = now_s + RETIRE_S
        return actions
