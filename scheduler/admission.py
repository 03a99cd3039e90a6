"""May a request enter the queue? Bounds in requests and tokens, and a time limit per class (the queue never grows
without end: overflow is a refusal with a reason and a time after which trying again makes sense)."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from msgspec import Struct

from accelgen.proto.config import Config
from accelgen.proto.messages import Reason, Submit
from accelgen.scheduler.policy import View
from accelgen.scheduler.request import Request


class Refusal(Struct, frozen=True):
    """Why a request was not taken. `retry_after_s` 0: trying again does not help."""

    reason: Reason
    detail: str
    retry_after_s: float = 0.0


def judge(config: Config, submit: Submit, views: list[View], draining: bool) -> Refusal | None:
    """The refusal of a request that arrives, or None to take it."""
    if draining:
        return Refusal(Reason.REFUSED_DRAINING, "the server is shutting down", 1.0)
    choices = 1 + len(submit.siblings)
    if choices > config.max_num_seqs:
        detail = f"n: {choices} choices, at most {config.max_num_seqs} can run together"
        return Refusal(Reason.REFUSED_TOO_LONG, detail)
    tokens = len(submit.prompt.tokens) - submit.prompt.generated + submit.max_tokens
    room = max(map(_room, views))
    if tokens > room:
        detail = f"prompt and max_tokens need {tokens} tokens, the KV cache holds {room}"
        return Refusal(Reason.REFUSED_TOO_LONG, detail)
    waiting = sum(len(view.table) - len(view.table.running) for view in views)
    if waiting + choices > config.max_queued_requests:
        detail = f"{waiting} requests are waiting, the limit is {config.max_queued_requests}"
        return Refusal(Reason.REFUSED_SATURATED, detail, drain_s(views))
    queued = sum(view.table.waiting_tokens for view in views)
    needed = queued + choices * len(submit.prompt.tokens)
    if queued and needed > config.max_queued_tokens:
        detail = f"{queued} tokens are waiting, the limit is {config.max_queued_tokens}"
        return Refusal(Reason.REFUSED_SATURATED, detail, drain_s(views))
    return None


def roomy(views: Mapping[int, View], tokens: int) -> dict[int, View]:
    """The replicas, by index, whose KV cache holds so many tokens; all of them if none does (then it was accepted by
    others)."""
    found = {index: view for index, view in views.items() if tokens <= _room(view)}
    return found or {**views}


def _room(view: View) -> int:
    """Tokens that a replica's KV cache holds."""
    return view.total_blocks * view.table.block_size


def drain_s(views: list[View]) -> float:
    """Seconds until about half of the waiting tokens are processed, between 0.1 and 60."""
    size, seconds = views[0].cost.pivot(views[0].limits.max_num_batched_tokens)
    queued = sum(view.table.waiting_tokens for view in views)
    return min(60.0, max(0.1, queued / (2 * len(views)) / size * seconds))


class Expiry:
    """Requests that must have started by a moment, soonest first."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Request]] = []

    def add(self, request: Request) -> None:
        heapq.heappush(self._heap, (request.expires_s, request.id, request))

    def next_s(self) -> float:
        """The moment of the first one, infinite if there is none."""
        return self._heap[0][0] if self._heap else float("inf")

    def due(self, now_s: float) -> Iterator[Request]:
        """Takes out those whose moment has come and that have not started."""
        while self._heap and self._heap[0][0] <= now_s:
            request = heapq.heappop(self._heap)[2]
            if request.started_s is None:
                yield request
