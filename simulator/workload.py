"""What is asked of a simulated server: requests with their moments, lengths and objectives."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from accelgen.proto.messages import Objective


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request. `output_tokens` is how many it will generate, which no policy knows unless its predictor does.

    `prefix` names the content of its leading blocks of `prefix_block` tokens, for traces that tell which prompts
    share them; without it a prompt shares nothing."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    objective: Objective = field(default_factory=Objective)
    slo_class: str = "standard"
    prefix: tuple[int, ...] = ()
    prefix_block: int = 0

    def __post_init__(self) -> None:
        assert self.at_s >= 0 and self.prompt_tokens >= 1 and self.output_tokens >= 1

    def tokens(self, number: int) -> list[int]:
        """Prompt tokens such that exactly the shared prefixes are the same; `number` is the request's own."""
        if not self.prefix:
            return [0] * self.prompt_tokens
        tokens: list[int] = []
        for name in self.prefix:
            tokens.extend([name % (1 << 30)] * self.prefix_block)
        del tokens[self.prompt_tokens :]
        own = (1 << 30) + number % (1 << 30)
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
    def shares_prefixes(self) -> bool:
        return any(arrival.prefix for arrival in self.arrivals)
