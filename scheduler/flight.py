"""What a replica keeps of an iteration that has been planned and has not come back, and what its result brings."""

from __future__ import annotations

from dataclasses import dataclass, field

from accelgen.proto.messages import Reason, StepResult
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.decision import Entries
from accelgen.scheduler.request import Request, end_reason, up_to_end
from accelgen.scheduler.table import Bools, Ints, RequestTable


@dataclass(slots=True)
class Flight:
    """An iteration that has been planned and has not come back."""

    step: int
    entries: Entries
    ids: list[int]
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

    def drafts_of(self, i: int) -> int:
        """Tokens drafted, at most, for entry i."""
        drafts = self.entries.drafts
        return 0 if drafts is None else int(drafts[i])


@dataclass(slots=True)
class Outcome:
    """What a StepResult brought for one request: its new tokens, whether its thinking ended with them, and how it ended
    if it did."""

    request: Request
    tokens: list[int]
    reason: Reason | None = None
    detail: str = ""
    ends_thinking: bool = False


@dataclass(slots=True)
class Confirmed:
    """Tokens that the KV manager has not heard of: `counts` of each request, one after the other."""

    ids: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def take_in(self, result: StepResult, table: RequestTable, now_s: float) -> list[Outcome]:
        """Adds a result's tokens to their requests, and notes those that the KV manager must hear of. Returns what it
        brought, request by request."""
        outcomes = []
        at = 0
        for id, count in zip(result.ids, result.counts, strict=True):
            tokens = result.tokens[at : at + count]
            at += count
            slot = table.slot_of.get(id)
            if slot is None or not count:  # it ended meanwhile: the token is dropped
                continue
            outcomes.append(self._extend(table, slot, tokens, now_s))
        for id, cause in zip(result.failed, result.causes, strict=True):
            slot = table.slot_of.get(id)
            if slot is not None:
                outcomes.append(Outcome(table.request(slot), [], Reason.FAILED, cause))
        return outcomes

    def _extend(self, table: RequestTable, slot: int, tokens: list[int], now_s: float) -> Outcome:
        request, count = table.request(slot), len(tokens)
        if count > 1:
            tokens = up_to_end(request, tokens)
        request.generated.extend(tokens)
        if len(request.generated) == len(tokens):
            table.first_s[slot] = now_s
        table.last_s[slot] = now_s
        ends_thinking = request.ends_thinking(len(request.generated) - len(tokens))
        if ends_thinking:
            table.respond(slot, request.thought, now_s)
        reason = end_reason(request)
        if reason is None:
            self.ids.append(request.id)
            self.counts.append(count)
            self.tokens.extend(tokens)
        return Outcome(request, tokens, reason, "", ends_thinking)
