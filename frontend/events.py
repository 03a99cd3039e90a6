"""What goes into the journal for a call, and what comes out for it."""

from __future__ import annotations

from msgspec import Struct

from accelgen.proto.messages import End, Objective, Sampling


class Demand(Struct, frozen=True):
    """What a call asks for: `prompts` (token ids), each `n` times. `max_tokens` per prompt.

    `continues`: the answer goes on where the prompt ends, in the middle of a text (completions)."""

    prompts: list[list[int]]
    n: int
    max_tokens: list[int]
    sampling: Sampling
    stop_ids: tuple[int, ...]
    stops: tuple[str, ...]
    objective: Objective
    slo_class: str
    salt: bytes
    continues: bool
    received_s: float


class Part(Struct, frozen=True):
    """Thinking or response of a choice that ended: its tokens, the mean time to each of them (but to the first token of
    all), and what was asked for; None: undefined, not stated."""

    stage: str
    tokens: int
    tpot_s: float | None
    aim_s: float | None

    @property
    def kept(self) -> bool:
        """The boundary counts as kept; what has no gap cannot be late."""
        return self.aim_s is None or self.tpot_s is None or self.tpot_s <= self.aim_s


class Outcome(Struct, frozen=True):
    """The figures of a choice that ended. Times in seconds since the receipt of the call; None: undefined. `parts`:
    its stages, if it was to think at a pace of its own."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    preemptions: int
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float
    parts: tuple[Part, ...] = ()
    best_effort: bool = False


class Admission(Struct, frozen=True):
    """The choice entered the scheduler's queue."""

    call: int
    choice: int
    predicted_ttft_s: float
    cached_tokens: int


class Text(Struct, frozen=True):
    """New text of a choice ("" while a character or a possible stop string is incomplete). `tokens`: so far.
    `gap_s`: since its previous tokens; None for the first, then `ttft_s` is set."""

    call: int
    choice: int
    text: str
    tokens: int
    gap_s: float | None
    ttft_s: float | None


class Ended(Struct, frozen=True):
    """The choice is complete. `text` is what had been held back. `reason`: stop or length."""

    call: int
    choice: int
    text: str
    reason: str
    outcome: Outcome


class Refused(Struct, frozen=True):
    """The choice ended without success."""

    call: int
    choice: int
    end: End


Event = Admission | Text | Ended | Refused
