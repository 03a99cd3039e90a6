"""Output lengths that a policy is told in a simulation: the true ones, with an error if wanted. What a perfect
predictor would be worth, and what a bad one costs (AccelGen's own is not published)."""

from __future__ import annotations

import numpy as np

from accelgen.simulator.workload import Arrival


class KnownLengths:
    """A LengthPredictor: the output of each request times exp(normal(0, `sigma`)), at least 1 token and at most what
    the client asks for. `expect` must be told of a request just before the scheduler is."""

    def __init__(self, sigma: float, seed: int) -> None:
        assert sigma >= 0
        self.sigma = sigma
        self._draw = np.random.default_rng([seed, 0x1E46])
        self._coming = 1

    def expect(self, arrival: Arrival) -> None:
        """The request that comes next."""
        factor = float(np.exp(self._draw.normal(0, self.sigma))) if self.sigma else 1.0
        self._coming = max(1, round(arrival.output_tokens * factor))

    def predict(self, slo_class: str, max_tokens: int) -> int:
        return min(self._coming, max_tokens)

    def observe(self, slo_class: str, tokens: int) -> None:
        """Nothing to learn."""
