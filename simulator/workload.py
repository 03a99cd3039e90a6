"""What is asked of a simulated server: requests with their moments, lengths and objectives, and their follow-ups."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from accelgen.proto.messages import Objective

OWN = 1 << 30  # token ids from here on belong to one request; below, to named prefixes


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `output_tokens` is how many it will generate, which no policy knows unless its predictor does.

    `max_tokens` is what the client allows, which every policy sees; 0 for exactly `output_tokens`. `prefix` names the
    content of its leading blocks of `prefix_block` tokens, for traces that tell which prompts share them; without it
    a prompt shares nothing. `follow_up` is sent `think_s` after the answer to this one has ended: the next stage of
    the same session. The first `shared_tokens` of a follow-up's prompt (None: as many as can be) are the leading ones
    of what came before it, prompt and answer; its own `at_s` counts for nothing. `stage` says which call of a session
    it is (tool, answer; "" for none).

    The first `thinking_tokens` of its output are thinking, the last of them the mark that ends it. They count as such
    where the objective has a thinking."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    objective: Objective = field(default_factory=Objective)
    slo_class: str = "standard"
    prefix: tuple[int, ...] = ()
    prefix_block: int = 0
    max_tokens: int = 0
    follow_up: Arrival | None = None
    think_s: float = 0.0
    shared_tokens: int | None = None
    thinking_tokens: int = 0
    stage: str = ""

    def __post_init__(self) -> None:
        assert 0 <= self.thinking_tokens < self.output_tokens
        assert self.at_s >= 0 and self.prompt_tokens >= 1 and self.output_tokens >= 1
        assert self.think_s >= 0 and (not self.max_tokens or self.max_tokens >= self.output_tokens)

    @property
    def limit_tokens(self) -> int:
        """The most it may generate."""
        return self.max_tokens or self.output_tokens

    @property
    def thought(self) -> int:
        """Tokens of a thinking that has a pace of its own; 0 without."""
        thinking = self.objective.thinking
        if thinking is None:
            return 0
        most = thinking.max_tokens
        marked = self.thinking_tokens or self.output_tokens
        return min(marked, most) if most else marked

    def pace_s(self, number: int) -> float | None:
        """The time per token that holds for output token `number` (from 1 on)."""
        thinking = self.objective.thinking
        if thinking is not None and number <= self.thought:
            return thinking.tpot_s
        return self.objective.tpot_s

    @property
    def stages(self) -> int:
        """Requests of the session from here on."""
        count, stage = 1, self.follow_up
        while stage is not None:
            count, stage = count + 1, stage.follow_up
        return count

    def tokens(self, number: int, earlier: Sequence[int] = ()) -> list[int]:
        """Prompt tokens such that exactly the shared prefixes are the same; `number` is the request's own, `earlier`
        the prompt and answer before a follow-up."""
        own = OWN + number % OWN
        if not self.prefix and not earlier:
            return [own] * self.prompt_tokens
        tokens: list[int] = []
        for name in self.prefix:
            tokens.extend([name % OWN] * self.prefix_block)
        if earlier:
            shared = len(earlier) if self.shared_tokens is None else self.shared_tokens
            tokens = list(earlier[:shared])
        del tokens[self.prompt_tokens :]
        return tokens + [own] * (self.prompt_tokens - len(tokens))


@dataclass(frozen=True, slots=True)
class Workload:
    """Arrivals in the order of time."""

    name: str
    arrivals: Sequence[Arrival]

    @classmethod
    def of(cls, name: str, arrivals: Iterable[Arrival]) -> Workload:
        return cls(name, sorted(arrivals, key=lambda arrival: arrival.at_s))

    @property
    def requests(self) -> int:
        """How many there will be, follow-ups included."""
        return sum(arrival.stages for arrival in self.arrivals)


def session(stages: Sequence[Arrival]) -> Arrival:
    """The first of `stages`, each of which follows the one before; `think_s` is that of each stage but the last."""
    assert stages
    first = stages[-1]
    for stage in reversed(stages[:-1]):
        first = replace(stage, follow_up=first)
    return first
