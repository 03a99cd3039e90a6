"""Output lengths that a policy is told in a simulation: the true ones, with an error if wanted. What a perfect
predictor would be worth, and what a bad one costs (AccelGen's own is not published)."""

from __future__ import annotations

from math import ceil, exp, floor
from statistics import NormalDist

import numpy as np

from accelgen.scheduler.predictors.estimate import Estimate, Traits
from accelgen.simulator.workload import Arrival

FARTHEST = NormalDist().inv_cdf(0.99)  # standard deviations: 1st to 99th percentile


class KnownLengths:
    """A LengthPredictor: the output of each request times exp(normal(0, `sigma`)), at least 1 token and at most what
    the client asks for. `expect` must be told of a request just before the scheduler is.

    The range of its errors is not learnt but computed: 98 % of the truth lies within it. It predicts too low: around
    what it says, the true length has its median there, and its mean exp(sigma^2 / 2) times higher."""

    def __init__(self, sigma: float, seed: int) -> None:
        assert sigma >= 0
        self.sigma = sigma
        self._draw = np.random.default_rng([seed, 0x1E46])
        self._coming = 1

    def expect(self, arrival: Arrival) -> None:
        """The request that comes next."""
        factor = float(np.exp(self._draw.normal(0, self.sigma))) if self.sigma else 1.0
        self._coming = max(1, round(arrival.output_tokens * factor))

    def predict(self, traits: Traits) -> Estimate:
        most, factor = traits.max_tokens, exp(FARTHEST * self.sigma)
        low, high = floor(self._coming / factor), ceil(min(self._coming * factor, most))
        return Estimate(self._coming, low, high).within(most)

    def observe(self, traits: Traits, tokens: int) -> None:
        """Nothing to learn."""
