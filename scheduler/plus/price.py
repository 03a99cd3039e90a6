"""What the last arrivals say: whom to favour while more arrives than can be served, and how long an iteration may keep
the next one waiting.

Favoured are those who need least of what is short.

A request needs `load_s` seconds of the whole device: the larger of its compute time, and of its share of the KV
cache times its stay. If what has arrived lately needs more than there is, the smallest first, up to the `price`
where the device is full, are as many as can be served (a fractional knapsack in which all are worth the same)."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from accelgen.scheduler.table import Floats

MOST = 256  # arrivals remembered
LEAST = 16  # before there are so many there is no price
TIGHT = 0.1  # of the arrivals have a tight TTFT objective
SHARE = 0.9  # of the device that is to be given away; the rest is for what comes in bursts


class Arrivals(Struct, frozen=True):
    """The last arrivals, oldest first: when, `load_s`, and the TTFT objective (far: none that can be kept). `seen_s`:
    up to when they have been counted."""

    at_s: tuple[float, ...] = ()
    load_s: tuple[float, ...] = ()
    ttft_s: tuple[float, ...] = ()
    seen_s: float = -1.0

    def note(self, at_s: Floats, load_s: Floats, ttft_s: Floats) -> Arrivals:
        """Those later than `seen_s` are new, [n] each."""
        new = np.flatnonzero(at_s > self.seen_s)
        if not len(new):
            return self
        new = new[np.argsort(at_s[new], kind="stable")]
        return Arrivals(
            (*self.at_s, *at_s[new].tolist())[-MOST:],
            (*self.load_s, *load_s[new].tolist())[-MOST:],
            (*self.ttft_s, *ttft_s[new].tolist())[-MOST:],
            float(at_s[new[-1]]),
        )

    def price(self, now_s: float) -> float:
        """The largest load that is favoured; infinite while all can be served."""
        if len(self.at_s) < LEAST:
            return np.inf
        span_s = max(now_s - self.at_s[0], 1e-6)
        loads = np.sort(np.array(self.load_s))
        within = np.flatnonzero(np.cumsum(loads) > SHARE * span_s)
        return float(loads[within[0]]) if len(within) else np.inf

    def tight_s(self) -> float:
        """The TTFT objective that a tenth of them do not exceed; infinite before there are any."""
        return sorted(self.ttft_s)[int(TIGHT * len(self.ttft_s))] if self.ttft_s else np.inf
