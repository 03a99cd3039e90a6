"""How often a process may be started again before the supervisor gives up (Erlang's restart intensity)."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

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
    """Counts the deaths of each seat."""

    _deaths: dict[Seat, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def delay_s(self, seat: Seat, now_s: float) -> float | None:
        """Notes a death: seconds until the seat is to be filled again, None if it has died too often."""
        deaths = self._deaths[seat]
        while deaths and deaths[0] <= now_s - PERIOD_S:
            deaths.popleft()
        deaths.append(now_s)
        if len(deaths) > INTENSITY:
            return None
        return 0.0 if len(deaths) == 1 else BACK_OFF_S * 2 ** (len(deaths) - 2)
