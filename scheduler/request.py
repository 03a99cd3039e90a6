"""What the scheduler keeps of one request besides the columns of the table: lists and names."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelgen.proto.messages import Objective, Sampling


@dataclass(slots=True, eq=False)
class Request:
    """One request (one choice of a client's request). `generated` holds confirmed tokens only."""

    id: int
    frontend: int
    prompt: list[int]
    sampling: Sampling
    max_tokens: int
    stop_token_ids: frozenset[int]
    objective: Objective
    slo_class: str
    salt: bytes = b""
    generated: list[int] = field(default_factory=list)
    parent: int = 0
    children: list[Request] = field(default_factory=list)  # to be forked; emptied when they are
    predicted_ttft_s: float = 0.0
    expires_s: float = float("inf")  # must have started by then
    started_s: float | None = None  # first planned
    preemptions: int = 0
    cached_tokens: int = 0
