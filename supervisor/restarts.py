"""Who is started again after a death, when, and how often at most (Erlang's restart intensity)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import inf

from accelgen.proto.messages import Role
from accelgen.supervisor.members import Seat

INTENSITY, PERIOD_S = 5, 60.0  # restarts of one seat within so many seconds; one more is fatal
BACK_OFF_S = 0.25  # before the second restart of a period, doubled for each further one; the first is immediate


def dependents(seat: Seat, seats: Iterable[Seat]) -> list[Seat]:
    """Who must be started anew with `seat`, because it builds on what died with it (Erlang's rest_for_one): a KV
    manager on its worker's cache. The scheduler takes over again by itself; requests live on in the journals."""
    if seat.role is not Role.WORKER:
        return []
    return [other for other in seats if other == Seat(Role.KVMANAGER, seat.index)]


@dataclass
class Restarts:
    """Counts deaths, of each seat or of whatever else is filled again; knows which seats wait to be.

    A process that is `sacrificed`, ended because another one has died, starts again with that one: its death does not
    count."""

    _deaths: dict[Seat | str, deque[float]] = field(default_factory=lambda: defaultdict(deque))
    _due_s: dict[Seat, float] = field(default_factory=dict)  # dead, to be filled at that time
    _sacrificed_s: dict[Seat, float] = field(default_factory=dict)  # dying, to be filled then

    def delay_s(self, seat: Seat | str, now_s: float) -> float | None:
        """Notes a death: seconds until the seat is to be filled again, None if it has died too often."""
        deaths = self._deaths[seat]
        while deaths and deaths[0] <= now_s - PERIOD_S:
            deaths.popleft()
        deaths.append(now_s)
        if len(deaths) > INTENSITY:
            return None
        return 0.0 if len(deaths) == 1 else BACK_OFF_S * 2 ** (len(deaths) - 2)

    def plan(self, seat: Seat, now_s: float) -> bool:
        """Notes a death and when the seat is to be filled again; False for never."""
        due_s = self._sacrificed_s.pop(seat, None)
        if due_s is None:
            delay_s = self.delay_s(seat, now_s)
            due_s = None if delay_s is None else now_s + delay_s
        if due_s is not None:
            self._due_s[seat] = due_s
        return due_s is not None

    def sacrifice(self, seat: Seat, cause: Seat) -> bool:
        """`seat` is to be filled again when `cause` is; False if that has been said before."""
        if seat in self._sacrificed_s:
            return False
        self._sacrificed_s[seat] = self._due_s[cause]
        return True

    def take_due(self, now_s: float) -> list[Seat]:
        """The seats whose time has come, once."""
        due = [seat for seat, at_s in self._due_s.items() if at_s <= now_s]
        for seat in due:
            del self._due_s[seat]
        return due

    def next_s(self) -> float:
        """When the next one is due; infinite for never."""
        return min(self._due_s.values(), default=inf)
