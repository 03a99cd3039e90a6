"""What the scheduler keeps of one request besides the columns of the table; how it begins, and how it ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from msgspec import structs

from accelgen.proto.messages import End, Objective, Reason, Sampling, Submit
from accelgen.proto.stages import thought

SEED_SPACE = 1 << 63


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
    thought: int = 0  # tokens of its thinking, once it is over
    best_effort: bool = False  # its objectives are not promised

    def start(self, now_s: float) -> None:
        """It is planned; only the first time counts."""
        if self.started_s is None:
            self.started_s = now_s

    def queue_s(self, now_s: float, arrival_s: float) -> float:
        """From arrival until it was first planned; if it never was, until now."""
        started_s = now_s if self.started_s is None else self.started_s
        return max(0.0, started_s - arrival_s)

    def ends_thinking(self, begin: int) -> bool:
        """Whether it does so with one of the tokens generated from `begin` on."""
        thinking = self.objective.thinking
        if thinking is None or self.thought:
            return False
        self.thought = thought(thinking, self.generated, begin)
        return self.thought > 0


def requests_of(submit: Submit, frontend: int) -> list[Request]:
    """The request of a Submit and its siblings (choices 1..n-1), which fork from it."""
    prompt = submit.prompt
    split = len(prompt.tokens) - prompt.generated
    first, *siblings = (
        Request(
            id=id,
            frontend=frontend,
            prompt=prompt.tokens[:split],
            sampling=structs.replace(prompt.sampling, seed=(prompt.sampling.seed + i) % SEED_SPACE),
            max_tokens=submit.max_tokens,
            stop_token_ids=frozenset(submit.stop_token_ids),
            objective=submit.objective,
            slo_class=submit.slo_class,
            salt=prompt.salt,
            generated=prompt.tokens[split:] if i == 0 else [],
            parent=prompt.id if i else 0,
        )
        for i, id in enumerate([prompt.id, *submit.siblings])
    )
    first.children = siblings
    first.ends_thinking(0)  # if it has: what is generated came under the scheduler before
    return [first, *siblings]


def end_reason(request: Request) -> Reason | None:
    """STOP at a stop token (the newest one counts), LENGTH at max_tokens, else None."""
    if request.generated[-1] in request.stop_token_ids:
        return Reason.STOP
    if len(request.generated) >= request.max_tokens:
        return Reason.LENGTH
    return None


def up_to_end(request: Request, tokens: list[int]) -> list[int]:
    """Of new tokens those that still belong to the request: a stop token, or the last that was allowed, ends it amid
    accepted drafts."""
    room = request.max_tokens - len(request.generated)
    stops = (at + 1 for at, token in enumerate(tokens) if token in request.stop_token_ids)
    return tokens[: min(room, next(stops, len(tokens)))]


def end_of(
    request: Request,
    reason: Reason,
    detail: str,
    now_s: float,
    arrival_s: float,
    retry_after_s: float = 0.0,
) -> End:
    """What its frontend is told in the end."""
    return End(
        request.id,
        reason,
        detail,
        retry_after_s,
        request.queue_s(now_s, arrival_s),
        request.cached_tokens,
        request.preemptions,
        request.best_effort,
    )
