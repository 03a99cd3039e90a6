"""What a drafter is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from accelgen.worker.request import Request


@dataclass(frozen=True)
class Proposal:
    """`tokens` that may come next, in order. `chances` float64 [len(tokens), vocab]: the distribution that each was
    drawn from, independently of everything that the request itself draws with; None if they were found in any other
    way."""

    tokens: tuple[int, ...] = ()
    chances: Tensor | None = None


NOTHING = Proposal()


class Drafter(Protocol):
    """Guesses what requests will say next. It never raises for want of room: it proposes less."""

    def propose(self, requests: Sequence[Request], most: Sequence[int]) -> list[Proposal]:
        """For each request at most most[i] >= 1 tokens to follow all those that it has. Requests are different ones."""
        ...

    def forget(self, id: int) -> None:
        """The request has ended, or its tokens have been told anew."""
        ...
