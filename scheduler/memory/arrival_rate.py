"""How many requests arrive per second, lately: an exponentially weighted count, as a value."""

from __future__ import annotations

from math import exp, expm1, inf

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import FREE, RequestTable

SHORTEST_S = 1.0  # a shorter history counts as one second: two requests at once are no rate


class ArrivalRate(Struct, frozen=True):
    """An arrival t seconds ago counts exp(-t / tau_s). The first one opens the history and does not count itself;
    dividing by the weight of the history so far takes out that it is short.

    At a steady rate r, and after a few tau_s, the standard deviation is sqrt(r / (2 tau_s)). `weight` is as of `at_s`,
    the moment of the newest arrival. Raises ValueError for a tau_s below a tenth of a second."""

    tau_s: float = 30.0
    begun_s: float | None = None
    at_s: float = 0.0
    weight: float = 0.0

    def __post_init__(self) -> None:
        within("tau_s", self.tau_s, 0.1, unit="s")

    def arrived(self, at_s: float, count: int = 1) -> ArrivalRate:
        """After `count` requests at `at_s`. A moment before the newest arrival counts as that."""
        if self.begun_s is None:
            return structs.replace(self, begun_s=at_s, at_s=at_s, weight=float(count - 1))
        at_s = max(at_s, self.at_s)
        return structs.replace(self, at_s=at_s, weight=self._weight(at_s) + count)

    def per_s(self, now_s: float) -> float:
        """Arrivals per second as of `now_s`; 0 before the first."""
        if self.begun_s is None:
            return 0.0
        now_s = max(now_s, self.at_s)
        history_s = max(now_s - self.begun_s, SHORTEST_S)
        return self._weight(now_s) / (self.tau_s * -expm1(-history_s / self.tau_s))

    def _weight(self, now_s: float) -> float:
        return self.weight * exp(-(now_s - self.at_s) / self.tau_s)


def heard(rate: ArrivalRate, table: RequestTable) -> ArrivalRate:
    """With those that have come into the table since."""
    newest_s = -inf if rate.begun_s is None else rate.at_s
    fresh = (table.state != FREE) & (table.arrival_s > newest_s)
    if fresh.any():
        for at_s in np.sort(table.arrival_s[fresh]).tolist():
            rate = rate.arrived(at_s)
    return rate
