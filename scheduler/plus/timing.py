"""How long will an iteration take, closely enough to fill it up to a deadline?

The cost model's own correction is a factor. What the host adds to each iteration is not, so that a model corrected by a
factor predicts small iterations too short or large ones too long. Here: seconds = h + s * (the model's formula), by
least squares that forget, with the scatter of what they leave unexplained as the safety to be kept."""

from __future__ import annotations

from math import sqrt
from typing import Any

from msgspec import Struct

from accelgen.scheduler.cost_model import Coefficients, CostModel, Work, evaluate, with_prompt

DECAY = 0.99  # weight of what was known, per iteration
TRUST = 20.0  # iterations that the cost model's own prediction counts for
FLOOR_S = 0.001  # the least safety
Number = Any  # a float, or an array of floats


class Timing(Struct, frozen=True):
    """Weighted sums over past iterations: how many, x (the formula), y (seconds), and their products. `untold`: those
    that have run since, to be counted when the formula is at hand."""

    count: float = 0.0
    x: float = 0.0
    y: float = 0.0
    xx: float = 0.0
    xy: float = 0.0
    yy: float = 0.0
    untold: tuple[tuple[Work, float], ...] = ()

    def hear(self, work: Work, run_s: float) -> Timing:
        """An iteration has run."""
        if not work.prefill_tokens and not work.decode_seqs:
            return self
        return Timing(
            self.count, self.x, self.y, self.xx, self.xy, self.yy,
            (*self.untold[-7:], (work, run_s)),
        )  # fmt: skip

    def told(self, cost: CostModel) -> Timing:
        """With what it has heard in its sums."""
        sums = [self.count, self.x, self.y, self.xx, self.xy, self.yy]
        for work, run_s in self.untold:
            raw = evaluate(cost.coefficients, work)
            new = (1.0, raw, run_s, raw * raw, raw * run_s, run_s * run_s)
            sums = [DECAY * old + one for old, one in zip(sums, new, strict=True)]
        count, x, y, xx, xy, yy = sums
        return Timing(count, x, y, xx, xy, yy)

    def fitted(self, cost: CostModel) -> Fitted:
        """The line, drawn towards the cost model's own as long as little has been seen."""
        weight, mean = TRUST / (1.0 + self.count), self.x / self.count if self.count else 0.0
        pull = weight * (mean * mean or 1.0)
        count, x, y = self.count + weight, self.x, self.y
        xx, xy = self.xx + pull, self.xy + cost.scale * pull
        below = count * xx - x * x
        slope = (count * xy - x * y) / below
        host_s = max(0.0, (y - slope * x) / count)
        slope = max(slope, 0.2 * cost.scale)
        spread_s = 0.0
        if self.count:
            square = (
                self.yy - 2 * slope * self.xy - 2 * host_s * self.y
                + slope * slope * self.xx + 2 * slope * host_s * self.x
                + host_s * host_s * self.count
            )  # fmt: skip
            spread_s = sqrt(max(0.0, square / self.count))
        return Fitted(cost.coefficients, host_s, slope, spread_s)


class Fitted(Struct, frozen=True):
    """seconds = `host_s` + `slope` * formula, give or take `spread_s`."""

    coefficients: Coefficients
    host_s: float
    slope: float
    spread_s: float

    @classmethod
    def of(cls, cost: CostModel) -> Fitted:
        """The cost model's own prediction, with the quantile that promises are made with as the slope."""
        return cls(cost.coefficients, 0.0, cost.scale * cost.upper, 0.0)

    @property
    def safety_s(self) -> float:
        """What to keep between a prediction and a deadline."""
        return FLOOR_S + 2 * self.spread_s

    def seconds(self, work: Work) -> float:
        return self.host_s + self.slope * evaluate(self.coefficients, work)

    def tokens_within(self, limit_s: float, work: Work, prior: int, most: int) -> int:
        """The most prompt tokens, up to `most`, after `prior` computed ones that keep `work` and them in `limit_s`."""
        if most <= 0 or self.seconds(work) > limit_s:
            return 0
        low, high = 0, most
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds(with_prompt(work, middle, prior)) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return low

    def prompt_seconds(self, tokens: Number, prior: Number) -> Number:
        """What prompt tokens add to iterations that are full anyway: no fixed part. Numbers or arrays."""
        k = self.coefficients
        return self.slope * ((k.b + k.b2) * tokens + k.e * tokens * (prior + tokens / 2))
