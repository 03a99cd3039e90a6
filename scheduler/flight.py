"""What a replica keeps of an iteration that has been planned and has not come back, and what its result brings."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelgen.proto.messages import Reason
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import Bools, Ints


@dataclass(slots=True)
class Flight:
    """An iteration that has been planned and has not come back."""

    step: int
    slots: Ints
    ids: list[int]
    counts: Ints
    held: Ints  # blocks of each before
    sampled: Bools
    started: set[int]  # slots that left the queue for it
    work: Work
    chunks: list[int]
    preempted: int
    planned_s: float
    begun_s: float  # (predicted) start of the forward pass
    predicted_s: float
    bound_s: float
    allocated: dict[int, int]  # by slot: blocks that it was given, ahead of need or cut
    reported: bool = False
    dropped: set[int] = field(default_factory=set)  # request ids


@dataclass(slots=True)
class Confirmed:
    """Tokens that the KV manager has not heard of: `counts` of each request, one after the other."""

    ids: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Outcome:
    """What a StepResult brought for one request: its new tokens, whether its thinking ended with them, and how it ended
    if it did."""

    request: Request
    tokens: list[int]
    reason: Reason | None = None
    detail: str = ""
    ends_thinking: bool = False
