"""Capacity: the highest rate at which a share of the requests keeps its objectives (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Callable

from msgspec import Struct

Attained = Callable[[float], float]
"""Attainment at a rate, 0..1."""


class Capacity(Struct, frozen=True):
    """The highest rate found to be good and the lowest found not to be; `tried`: (rate, attainment), in order. `rate`
    is 0 if none was good, `above` None if none was bad."""

    rate: float
    above: float | None
    tried: list[tuple[float, float]]


def find_capacity(
    attained: Attained, wanted: float, first: float, most: float, tolerance: float = 0.02
) -> Capacity:
    """From `first`, doubled while it is good (up to `most`) or halved while it is not (down to 1/64), then bisection
    until good and bad lie within `tolerance` of each other. Attainment need not fall with the rate everywhere: what is
    found is a border, and `tried` shows on which points it rests."""
    assert 0 < wanted <= 1 and 0 < first <= most and tolerance > 0
    tried: list[tuple[float, float]] = []

    def good(rate: float) -> bool:
        tried.append((rate, attained(rate)))
        return tried[-1][1] >= wanted

    low, high, rate = 0.0, float("inf"), first
    while not (low and high < float("inf")):
        if rate < first / 64:
            return Capacity(0.0, high, tried)
        if good(rate):
            low = rate
            if rate >= most:
                return Capacity(low, None, tried)
            rate = min(2 * rate, most)
        else:
            high = rate
            rate /= 2
    while high - low > tolerance * high:
        middle = (low + high) / 2
        if good(middle):
            low = middle
        else:
            high = middle
    return Capacity(low, high, tried)
