"""What a planner says about one batch, and what a planner is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from msgspec import Struct

from accelgen.scheduler.slos_serve.tiers import Counts

STEADY_S = (
    1.0  # accepted decodes must keep their pace for so long (or for two tokens of the loosest tier)
)


def steady_s(tiers: tuple[float, ...]) -> float:
    """How long decodes of these tiers must keep their pace to be thought to keep it for ever. The paper's 1 s says
    nothing about decodes that need a token in more than that."""
    return max(STEADY_S, 2 * tiers[-1])


class Slice(Struct, frozen=True):
    """One planned batch: `size` tokens in `seconds`; `lengths[k]` of them for each decode of tier k (0: none, 1: the
    next one, more: with drafts), and what is left, `prefill`, for prompts."""

    size: int
    lengths: tuple[int, ...]
    prefill: int
    seconds: float


class Planner(Protocol):
    """Batches that keep the pace of decodes and leave the most for prompts. `work` counts what planning has cost, in
    simulated batches or tried configurations; `steady_s` is that of the tiers."""

    steady_s: float

    @property
    def work(self) -> int: ...

    def plan(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        """Prompt tokens that fit beside such decodes into `window_s`, and how much of it their batches take; None if
        the decodes alone cannot keep their pace. A window that is empty, or negative, has room for nothing."""

    def slices(self, window_s: float, counts: Counts) -> Iterator[Slice]:
        """The batches of such a plan; nothing where `plan` says None."""

    def lasting(self, counts: Counts) -> Iterator[Slice]:
        """Batches for `steady_s` that repeat while nobody new is admitted."""

    def reach(self, tokens: int, counts: Counts) -> float:
        """The shortest window in which `plan` finds room for so many prompt tokens; infinite if there is none."""

    def is_steady(self, counts: Counts) -> bool:
        """Whether such decodes can keep their pace for `steady_s`."""
