"""Batches with drafts where these leave more for prompts, else without (reconstructed: the authors' code has the one
planner or the other, and its speculative one, whose batches of a window are all alike, plans worse where drafts do not
pay)."""

from __future__ import annotations

from collections.abc import Iterator

from accelgen.scheduler.slos_serve.planner_ar import ArPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner
from accelgen.scheduler.slos_serve.slices import Planner, Slice
from accelgen.scheduler.slos_serve.tiers import Counts

LEAST_ROOM = 0.25  # of what drafts would leave, that a tail without them must


class EitherPlanner:
    """A Planner of two, both for the same tiers. Of a window it has the plan with more prompt tokens, without drafts if
    both have as many."""

    def __init__(self, plain: ArPlanner, drafting: SdPlanner) -> None:
        self.plain, self.drafting = plain, drafting
        self.steady_s = plain.steady_s

    @property
    def work(self) -> int:
        return self.plain.work + self.drafting.work

    def plan(self, window_s: float, counts: Counts) -> tuple[int, float] | None:
        return self._best(window_s, counts)[1]

    def slices(self, window_s: float, counts: Counts) -> Iterator[Slice]:
        return self._best(window_s, counts)[0].slices(window_s, counts)

    def lasting(self, counts: Counts) -> Iterator[Slice]:
        """Without drafts, even if these would leave more: nobody admitted waits for that, batches are shorter, and who
        arrives waits less. With them where there would be hardly any room for best-effort requests."""
        plain, drafting = (one.plan(self.steady_s, counts) for one in (self.plain, self.drafting))
        if plain is None or (drafting is not None and plain[0] < LEAST_ROOM * drafting[0]):
            return self.drafting.lasting(counts)
        return self.plain.lasting(counts)

    def reach(self, tokens: int, counts: Counts) -> float:
        return min(self.plain.reach(tokens, counts), self.drafting.reach(tokens, counts))

    def is_steady(self, counts: Counts) -> bool:
        return self.plain.is_steady(counts) or self.drafting.is_steady(counts)

    def _best(self, window_s: float, counts: Counts) -> tuple[Planner, tuple[int, float] | None]:
        """Who has it, and its plan."""
        plain, drafting = (one.plan(window_s, counts) for one in (self.plain, self.drafting))
        if drafting is not None and (plain is None or drafting[0] > plain[0]):
            return self.drafting, drafting
        return self.plain, plain
