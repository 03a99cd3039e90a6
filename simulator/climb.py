"""Local search over orders of requests, with random restarts."""

from __future__ import annotations

import numpy as np

from accelgen.simulator.candidates import (
    GRID,
    Candidate,
    Judge,
    Outcome,
    order_of_run,
    without,
)

PATIENCE = 20  # steps without a better outcome before it begins again
MOVES = ("add", "exchange", "advance", "delay", "drop", "turn")
ODDS = (0.3, 0.25, 0.15, 0.1, 0.1, 0.1)


class Chain:
    """One climb. `best` so far, of `candidate`. Chains begin from different orders: by deadline of the first token, by
    work, by the moment a prompt must begin, and from those that attained in `start`, the run of a policy."""

    def __init__(self, judge: Judge, seed: int, number: int, start: Outcome | None) -> None:
        self.judge, self.number = judge, number
        self.draw = np.random.default_rng([seed, number])
        orders = [judge.by(key) for key in ("first_due_s", "work_s", "begin_due_s")]
        if start is not None and start.attained:
            orders.append(order_of_run(start))
        kept = orders[number % len(orders)]
        self.pending = [Candidate(kept, knobs) for knobs in GRID]
        self.best, self.candidate = Outcome(-1.0), self.pending[0]
        self.now, self.place = self.best, self.candidate
        self.stalled = 0

    def describe(self) -> str:
        """What the best one is."""
        kept, all_ = len(self.candidate.kept), self.judge.requests
        return f"chain {self.number}: {kept} of {all_} kept in an order of their own, {self.candidate.knobs.describe()}"

    def step(self) -> None:
        """Tries one candidate."""
        first = bool(self.pending)
        candidate = self.pending.pop(0) if first else self._neighbour()
        outcome = self.judge.try_candidate(candidate, beat=self.now.value)
        if outcome.value >= self.now.value:
            self.stalled = 0 if outcome.value > self.now.value else self.stalled + 1
            self.now, self.place = outcome, candidate
        else:
            self.stalled += 1
        if outcome.value > self.best.value:
            self.best, self.candidate = outcome, candidate
        if self.stalled >= PATIENCE and not self.pending:
            self._restart()

    def _restart(self) -> None:
        """From the best one, a part of its order shaken."""
        kept = np.array(self.candidate.kept)
        noise = self.draw.normal(0, 1 + len(kept) / 20, size=len(kept))
        shaken = kept[np.argsort(np.arange(len(kept)) + noise, kind="stable")]
        stays = self.draw.uniform(size=len(kept)) > 0.05
        self.pending = [Candidate(tuple(shaken[stays].tolist()), self.candidate.knobs)]
        self.now, self.stalled = Outcome(-1.0), 0

    # --- neighbours --------------------------------------------------------------------------------------------------

    def _neighbour(self) -> Candidate:
        """The place where it stands, changed by one move; half the time without those that were kept in vain."""
        kept, knobs = self.place.kept, self.place.knobs
        missed = frozenset(self.judge.facts.attainable) - self.now.attained
        if self.draw.uniform() < 0.5:
            kept = without(kept, missed)
        move = str(self.draw.choice(MOVES, p=ODDS))
        if move == "turn":
            return Candidate(kept, GRID[int(self.draw.integers(len(GRID)))])
        if move in ("add", "exchange") and not missed:
            move = "advance"
        match move:
            case "add":
                many = min(len(missed), int(self.draw.geometric(0.4)))
                for id in self.draw.choice(sorted(missed), size=many, replace=False).tolist():
                    kept = self._placed(kept, id)
            case "exchange":
                kept = self._exchanged(kept, int(self.draw.choice(sorted(missed))))
            case "advance" if missed or kept:
                chosen = sorted(missed) or list(kept)
                kept = self._moved(kept, int(self.draw.choice(chosen)), -1)
            case "delay" if kept:
                kept = self._moved(kept, int(self.draw.choice(kept)), 1)
            case "drop" if kept:
                kept = without(kept, frozenset([int(self.draw.choice(kept))]))
        return Candidate(kept, knobs)

    def _placed(self, kept: tuple[int, ...], id: int) -> tuple[int, ...]:
        """With `id` before the first whose first token is due later."""
        due_s = self.judge.facts.first_due_s
        rest = without(kept, frozenset([id]))
        at = next((at for at, other in enumerate(rest) if due_s[other] > due_s[id]), len(rest))
        return (*rest[:at], id, *rest[at:])

    def _exchanged(self, kept: tuple[int, ...], id: int) -> tuple[int, ...]:
        """With `id` in place of one that is there at about the same time, and gives more room the likelier."""
        facts = self.judge.facts
        begins_s, ends_s = facts.sent_s, facts.sent_s + 2 * facts.residence_s
        met = [
            other for other in kept
            if other != id and begins_s[other] < ends_s[id] and begins_s[id] < ends_s[other]
        ]  # fmt: skip
        if met:
            work_s = facts.work_s[met]
            gone = int(self.draw.choice(met, p=work_s / work_s.sum()))
            kept = without(kept, frozenset([gone]))
        return self._placed(kept, id)

    def _moved(self, kept: tuple[int, ...], id: int, sign: int) -> tuple[int, ...]:
        """With `id` some places earlier (-1) or later (1) than it is, or would be."""
        if id not in kept:
            kept = self._placed(kept, id)
        rest = without(kept, frozenset([id]))
        at = kept.index(id) + sign * int(self.draw.geometric(0.15))
        at = min(max(at, 0), len(rest))
        return (*rest[:at], id, *rest[at:])
