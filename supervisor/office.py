"""The scheduler's office: who holds it, with which policy, who is to take it over, and who stands by. Sans I/O.

Two seats, two processes: one in office, the other its spare, started when the server has been quiet for a moment, with
everything imported. A vacant office goes to whoever stands by; where nobody does, a process is started. A swap prepares
the spare; the one that has yielded to it stands by in its turn, at once and with the policy before: so it can return
on probation, and the next swap need not wait either. When probation is over a process that knows nothing takes its
place: foreign code may have left things behind.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from math import inf
from signal import SIGKILL, SIGTERM
from typing import Any

import structlog

from accelgen.proto.messages import Role, Swap, Swapped
from accelgen.supervisor.actions import Action, Send, Signal, Spawn
from accelgen.supervisor.members import Assignment, Occupant, Seat
from accelgen.supervisor.orders import assume, prepare
from accelgen.supervisor.restarts import Restarts
from accelgen.supervisor.spare import Spare
from accelgen.supervisor.swap import (
    LAST_WORD_S,
    PREPARE_S,
    PROBATION_S,
    RETIRE_S,
    Exchange,
    Stage,
    running,
    stands_aside,
)
from accelgen.supervisor.verdict import describe_death

SEATS = (Seat(Role.SCHEDULER, 0), Seat(Role.SCHEDULER, 1))
OFFICE = "scheduler in office"  # its restarts count together, in whichever seat

log = structlog.get_logger()


@dataclass
class Office:
    """Works on the supervisor's own `occupants` and `facts`. `holder`: whose office it is, None while it is vacant;
    `vacated`: whose death has left it so.

    `before`: what the one before ran, to return to if the present one dies on probation."""

    occupants: dict[Seat, Occupant]
    facts: dict[str, Any]
    assignment: Assignment
    restarts: Restarts
    since_s: float  # when the assignment was made
    holder: Seat | None = None
    vacated: Seat | None = None
    term: int = 0  # the last one that was given out
    before: Assignment | None = None
    exchange: Exchange | None = None
    spare: Spare = field(init=False)
    _probation_s: float = 0.0  # until then
    _due_s: float = 0.0  # back-off: for a vacant office no process is started before
    _retired_s: dict[Seat, float] = field(default_factory=dict)  # leaving; killed at that time
    _changed: bool = False

    def __post_init__(self) -> None:
        self.spare = Spare(self.restarts, self.facts)

    # --- views -------------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """A swap is on its way."""
        return self.exchange is not None

    @property
    def serving(self) -> bool:
        """Somebody is in office, or about to hand it over."""
        holder = None if self.holder is None else self.occupants.get(self.holder)
        return holder is not None and holder.alive and holder.phase in ("ready", "yielded")

    def take_change(self) -> bool:
        """Whether the Directory has something new to say, once."""
        changed, self._changed = self._changed, False
        return changed

    def next_look_s(self) -> float:
        """When `proceed` and `fill` want to be called again at the latest."""
        times = [*self._retired_s.values()]
        swap, candidate = self.exchange, self._candidate()
        if swap is not None:
            times.append(swap.until_s if swap.new not in self._retired_s else inf)
            new = self.occupants.get(swap.new)
            times.append(inf if new is None or new.alive else new.exited_s + LAST_WORD_S)
        elif self.holder is None:
            times.append(self._due_s if self.vacated and candidate is None else inf)
        else:
            renewal_s = self.spare.renewal_s(candidate, self._probation_s)
            times.append(inf if self._retired_s else renewal_s)
        return min(times)

    # --- deaths ------------------------------------------------------------------------------------------------

    def is_missed(self, dead: Occupant) -> bool:
        """Whether this death has yet to be judged here: not if it was asked for, or is the swap's own business."""
        swap = self.exchange
        if dead.judged or dead.seat in self._retired_s:
            return False
        return swap is None or (dead.seat != swap.new and swap.stage is Stage.PREPARING)

    def is_spare(self, seat: Seat) -> bool:
        """The server can do without."""
        return self.holder is not None and seat != self.holder

    def lose(self, dead: Occupant, line: str, now_s: float) -> bool:
        """A scheduler has died by itself. False if that has happened too often for the server to go on."""
        if self.is_spare(dead.seat):
            self.spare.lose(line, now_s)
            dead.judged = True
            return True
        delay_s = self.restarts.delay_s(OFFICE, now_s)
        if delay_s is None:
            return False
        if self.exchange is not None:
            self.exchange.end(False, "the scheduler in office has died meanwhile")
        self._roll_back(line, now_s)
        self.holder, self.vacated, self._due_s = None, dead.seat, now_s + delay_s
        dead.judged = True
        return True

    def _roll_back(self, why: str, now_s: float) -> None:
        """On probation a death brings the policy before back."""
        if self.before is not None and now_s < self._probation_s:
            log.warning("rolled back", policy=self.assignment.policy, why=why)
            self.facts["rolled_back"] = f"{self.assignment.policy}: {why}"
            self._assign(self.before, now_s)
            self.before = None

    # --- filling -----------------------------------------------------------------------------------------------

    def fill(self, now_s: float, wants_spare: bool) -> list[Action]:
        """Sees to it that somebody is in office and, if wanted, somebody else stands by."""
        candidate = self._candidate()
        if self.holder is None and candidate is not None:
            return self._appoint(candidate) if stands_aside(candidate) else []
        if self.holder is None:
            return self._start() if self.vacated and now_s >= self._due_s else []
        if not wants_spare or self.busy or not self.serving:
            self.spare.wait()
            return []
        self.spare.calm_down(now_s)
        if self._retired_s or now_s < self.spare.renewal_s(candidate, self._probation_s):
            return []
        return self._start() if candidate is None else self._dismiss(candidate, now_s)

    def _candidate(self) -> Occupant | None:
        """The process that is, or will be, the next to take office."""
        found = (self.occupants.get(seat) for seat in SEATS if seat != self.holder)
        return next((o for o in found if o and o.alive and o.seat not in self._retired_s), None)

    def _start(self) -> list[Action]:
        """A process in a free seat, if there is one; it will stand by."""
        free = (s for s in SEATS if (o := self.occupants.get(s)) is None or o.judged)
        return [Spawn(seat, 0) for seat in [*free][:1]]

    def _appoint(self, one: Occupant, snapshot: bytes = b"") -> list[Action]:
        """Puts a process that stands aside in office, with the policy that is assigned."""
        prepared = one.assignment == self.assignment
        actions = [] if prepared else [prepare(one, self.assignment)]
        self.holder, self.vacated, self.term = one.seat, None, self.term + 1
        self._changed = True
        log.info("takes office", child=one.seat.name, pid=one.pid, epoch=self.term)
        self.spare.wait()
        return [*actions, assume(one, self.term, snapshot)]

    # --- swaps -------------------------------------------------------------------------------------------------

    def ask(self, client: bytes, swap: Swap, now_s: float) -> list[Action]:
        """Takes a swap on, to be carried out by `proceed`; refuses a second one."""
        if self.exchange is not None:
            return [Send(client, Swapped(False, "another swap is under way", swap.ticket))]
        assert self.holder is not None
        self.exchange = Exchange(
            client,
            swap.ticket,
            self._aim(swap),
            swap.dry_run,
            old=self.holder,
            new=SEATS[1 - self.holder.index],
            until_s=now_s + PREPARE_S,
            was=running(self.assignment, self.occupants[self.holder]),
        )
        self._announce()
        return []

    def _aim(self, swap: Swap) -> Assignment:
        """What a swap leads to: of policy, memory policy and routing, those stay that it does not name."""
        now = self.assignment
        policy, memory = swap if swap.policy else now, swap if swap.memory else now
        return Assignment(
            policy.policy,
            policy.params,
            memory.memory,
            memory.memory_params,
            swap.routing or now.routing,
        )

    def keep(self, seat: Seat, snapshot: bytes) -> None:
        """What the scheduler of this seat hands over."""
        if self.exchange is not None and seat == self.exchange.old:
            self.exchange.snapshot = snapshot

    def proceed(self, now_s: float, stopping: bool) -> list[Action]:
        """One look at the swap, and at those who are leaving."""
        swap = self.exchange
        if swap is None:
            return self._see_off(now_s)
        if stopping and swap.done is None:
            self._cut_short(swap)
        actions = self._step(swap, now_s) if swap.done is None else []
        if swap.done is not None:
            self.exchange = None
            actions += self._conclude(swap, now_s)
        self._announce()
        return actions + self._see_off(now_s)

    def _cut_short(self, swap: Exchange) -> None:
        """The server is stopping: a takeover that has begun goes on, since requests may wait for it."""
        new = self.occupants.get(swap.new)
        if swap.stage is Stage.PREPARING or new is None or not new.alive:
            swap.end(False, "the server is stopping")

    def _step(self, swap: Exchange, now_s: float) -> list[Action]:
        new = self.occupants.get(swap.new)
        if swap.new in self._retired_s:  # the one before has not left its seat yet
            return []
        if swap.stage is Stage.PREPARING and (new is None or not (new.alive or swap.fresh)):
            if new is not None and not new.judged:  # the spare may be too old to know the policy
                log.info("a fresh process tries again", why=describe_death(new, 0))
            swap.fresh, swap.asked = True, False
            return [Spawn(swap.new, 0)]
        assert new is not None
        actions = swap.step(self.occupants[swap.old], new, self.term + 1, now_s)
        self.term = max(self.term, new.epoch)
        return actions

    def _conclude(self, swap: Exchange, now_s: float) -> list[Action]:
        old, new = self.occupants[swap.old], self.occupants.get(swap.new)
        answer = Swapped(bool(swap.done), swap.line[:2000], swap.ticket)
        actions: list[Action] = [Send(swap.client, answer)]
        self._changed = True
        if swap.done and not swap.dry_run:
            self.holder = swap.new
            self.before, self._probation_s = self.assignment, now_s + PROBATION_S
            self._assign(swap.aim, now_s)
            self.spare.forgive()
            return actions if stands_aside(old) else actions + self._dismiss(old, now_s)
        if new is not None and not _may_stay(swap, new, now_s):
            actions += self._dismiss(new, now_s)
        if swap.stage is not Stage.PREPARING and old.alive:  # it goes on where it was
            actions += self._appoint(old, swap.snapshot)
        return actions

    def _assign(self, assignment: Assignment, now_s: float) -> None:
        self.assignment, self.since_s, self._changed = assignment, now_s, True
        named = asdict(assignment)
        self.facts |= {"policy_params": named.pop("params"), **named}

    def _announce(self) -> None:
        """Which swap is under way, for the Directory."""
        swap = self.exchange
        facts = swap and {
            "policy": swap.aim.policy, "dry_run": swap.dry_run, "stage": swap.stage.value
        }  # fmt: skip
        if facts != self.facts.get("swap"):
            self.facts["swap"], self._changed = facts, True

    def _dismiss(self, one: Occupant, now_s: float) -> list[Action]:
        """A scheduler that is not needed any more: it leaves, or is made to."""
        self._retired_s[one.seat] = now_s + RETIRE_S
        return [Signal(one.seat, SIGTERM)] if one.alive else []

    def _see_off(self, now_s: float) -> list[Action]:
        """Forgets who has left, kills who has not in time."""
        actions: list[Action] = []
        for seat, until_s in list(self._retired_s.items()):
            if not self.occupants[seat].alive:
                del self.occupants[seat], self._retired_s[seat]
                self._changed = True
            elif now_s >= until_s:
                actions.append(Signal(seat, SIGKILL))
                self._retired_s[seat] = now_s + RETIRE_S
        return actions


def _may_stay(swap: Exchange, new: Occupant, now_s: float) -> bool:
    """Whether the one that was to succeed is still good as a spare, because the swap has not failed with it."""
    if swap.dry_run or swap.stage is not Stage.PREPARING or not new.alive:
        return False
    return not swap.asked or (stands_aside(new) and now_s < swap.until_s)
