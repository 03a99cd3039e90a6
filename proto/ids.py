"""Numbers that name things: request ids, incarnations, socket identities."""

from __future__ import annotations

import secrets

_COUNTER_BITS = 32


def new_incarnation() -> int:
    """A random positive 31-bit number that names one life of a process."""
    return secrets.randbits(31) or 1


class RequestIds:
    """Request ids of one frontend life: incarnation in the high 31 bits, a counter below; never repeated."""

    def __init__(self, incarnation: int) -> None:
        self._next = (incarnation << _COUNTER_BITS) + 1

    def take(self, count: int = 1) -> list[int]:
        """`count` fresh ids, consecutive."""
        first = self._next
        self._next += count
        return list(range(first, first + count))
