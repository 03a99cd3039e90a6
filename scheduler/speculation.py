"""What is known of a replica's drafts: how many tokens were drafted, how many of them accepted.

A verification of m drafts of which a are accepted tells of min(a + 1, m) tokens whether they are right: a were, and the
one behind them, if there is one, was not; the rest was never judged. The rate is a mean over what was judged, the
newest counting most: of the replica, and of each request, drawn towards the replica's as long as little of it was
judged. That is the alpha of the speculative planner of SLOs-Serve (arXiv 2504.08784), which is a constant there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from msgspec import Struct

from accelgen.proto.config import Config
from accelgen.scheduler.table import Floats, Ints, RequestTable

PRIOR_RATE, PRIOR_TRIALS = 0.6, 16.0  # before anything is known; the rate is SLOs-Serve's
OWN_TRIALS = 4.0  # judged tokens of a request that weigh as much as all that the replica knows
TIMED = 32  # iterations that the time of the drafter is a mean over
DECAY, OWN_DECAY = 0.995, 0.9  # per verification, of the replica and of the request


class DraftState(Struct, frozen=True):
    """A Speculation's knowledge as a value, for a successor."""

    hits: float
    trials: float
    filled: float
    step_s: float = 0.0


@dataclass(slots=True)
class Speculation:
    """`most` tokens may be drafted for a request in an iteration (0: there is no drafter); `adaptive` says how many are
    if the policy does not. `filled` is the part of the planned drafts that the drafter really makes; `step_s` are the
    seconds that it takes for each token of an iteration's longest draft, which no model of the device knows."""

    most: int = 0
    adaptive: bool = True
    hits: float = PRIOR_RATE * PRIOR_TRIALS
    trials: float = PRIOR_TRIALS
    filled: float = 1.0
    step_s: float = 0.0
    timed: int = 0  # iterations that `step_s` is known from, as far as that matters
    drafted: int = 0
    accepted: int = 0
    verified: int = 0  # entries with drafts

    @classmethod
    def of(cls, config: Config) -> Speculation:
        """What a server with this configuration does."""
        most = config.max_draft_tokens if config.drafter else 0
        return cls(most, config.draft_tokens == "adaptive")

    @property
    def rate(self) -> float:
        """The probability that a drafted token, the ones before it being right, is accepted."""
        return self.hits / self.trials

    def rates(self, table: RequestTable, slots: Ints) -> Floats:
        """The same for each of `slots`, [n]."""
        hits = table.draft_hits[slots] + OWN_TRIALS * self.rate
        found: Floats = hits / (table.draft_trials[slots] + OWN_TRIALS)
        return found

    def in_flight(self, table: RequestTable, slots: Ints) -> Floats:
        """Tokens that the drafts in flight of each of `slots` will bring on average, [n]."""
        chance = np.clip(self.rates(table, slots) * self.filled, 0.0, 0.999)
        found: Floats = chance * (1 - chance ** table.drafted[slots]) / (1 - chance)
        return found

    def observe(
        self, table: RequestTable, slot: int, planned: int, drafted: int, accepted: int
    ) -> None:
        """Of `planned` drafts of the request `drafted` were made and the first `accepted` of them accepted."""
        self.filled += (1 - DECAY) * (drafted / planned - self.filled)
        if not drafted:
            return
        self.verified += 1
        self.drafted += drafted
        self.accepted += accepted
        judged = min(accepted + 1, drafted)
        self.hits = DECAY * self.hits + accepted
        self.trials = DECAY * self.trials + judged
        table.draft_hits[slot] = OWN_DECAY * table.draft_hits[slot] + accepted
        table.draft_trials[slot] = OWN_DECAY * table.draft_trials[slot] + judged

    def observe_time(self, longest: int, draft_s: float) -> None:
        """Drafts of at most `longest` tokens took the drafter `draft_s` in one iteration."""
        if longest:
            self.timed = min(self.timed + 1, TIMED)
            self.step_s += (draft_s / longest - self.step_s) / self.timed

    def seconds(self, drafts: Ints | None) -> float:
        """What the drafter will take in an iteration with these drafts, [n]."""
        return 0.0 if drafts is None else self.step_s * int(drafts.max(initial=0))

    def state(self) -> DraftState:
        return DraftState(self.hits, self.trials, self.filled, self.step_s)

    def go_on_from(self, state: DraftState) -> None:
        """What a forerunner has learnt."""
        self.hits, self.trials, self.filled = state.hits, state.trials, state.filled
        self.step_s, self.timed = state.step_s, TIMED if state.step_s else 0

    def gauges(self, prefix: str, label: str) -> dict[str, float]:
        """Samples by name; none without a drafter."""
        if not self.most:
            return {}
        found: dict[str, Any] = {
            "num_drafts_total": self.verified,
            "num_draft_tokens_total": self.drafted,
            "num_accepted_tokens_total": self.accepted,
            "acceptance_rate": self.rate,
            "drafter_seconds": self.step_s,
        }
        return {f"{prefix}spec_decode_{name}{label}": float(n) for name, n in found.items()}
