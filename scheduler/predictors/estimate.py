"""What a length predictor is asked, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Protocol, Self

from msgspec import Struct

from accelgen.proto.messages import Objective
from accelgen.scheduler.request import Request


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of a request when it arrives. Lengths in tokens; `max_tokens` is what the client allows."""

    slo_class: str
    prompt_tokens: int
    max_tokens: int
    objective: Objective = field(default_factory=Objective)

    @classmethod
    def of(cls, request: Request) -> Self:
        """The same before the first token and after the last: nothing that is generated counts."""
        prompt = len(request.prompt)
        return cls(request.slo_class, prompt, request.max_tokens, request.objective)


class Direction(IntEnum):
    """On which side of a prediction the true length is to be expected: the sign of the pad."""

    UNDER = 1  # predicted too low; also where nothing is known, since too little memory costs a preemption
    OVER = -1  # predicted too high


class Estimate(Struct, frozen=True, gc=False):
    """An output length in tokens. Where the same was predicted before, the truth came out such that for this request
    it would lie between `low` and `high`; in which `direction`, on average."""

    tokens: int
    low: int
    high: int
    direction: Direction = Direction.UNDER

    @property
    def spread(self) -> int:
        """The width of the range of errors, the R of Hoeffding's inequality (memory/hoeffding.py)."""
        return self.high - self.low

    def within(self, max_tokens: int) -> Estimate:
        """Cut to what is possible: at least one token, at most `max_tokens`."""
        tokens, low, high = (max(1, min(max_tokens, n)) for n in (self.tokens, self.low, self.high))
        return Estimate(tokens, low, high, self.direction)


def unknown(max_tokens: int) -> Estimate:
    """What is said before anything has been seen: half of what is allowed, and it may be anything."""
    return Estimate(max_tokens // 2, 1, max_tokens).within(max_tokens)


class LengthPredictor(Protocol):
    """Estimates output lengths."""

    def predict(self, traits: Traits) -> Estimate:
        """The estimate for a request that arrives, within 1 and `traits.max_tokens`."""

    def observe(self, traits: Traits, tokens: int) -> None:
        """Learns from a request that has ended after so many tokens."""
