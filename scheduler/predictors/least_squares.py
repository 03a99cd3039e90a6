"""Linear least squares on line, by which old observations are forgotten bit by bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import Floats


class LeastSquares:
    """After n observations (x_i, y_i) the weights minimise sum_i f^(n-i) (w.x_i - y_i)^2 + r |w|^2.

    Recursive least squares with exponential forgetting, kept as the sums that the normal equations are made of and not
    as their inverse: the ridge r stays as it is while observations fade, so that a direction which has not been seen
    for long returns to 0 instead of blowing up the inverse (the wind-up of the usual form). Solving costs width^3 / 3
    multiplications, microseconds for a dozen features, and is done when it is asked for."""

    def __init__(self, width: int, forgetting: float = 0.999, ridge: float = 0.1) -> None:
        """`forgetting` is f, from 0.5 (two observations count) to 1 (all do); `ridge` is r, at least 1e-6. Raises
        ValueError for others."""
        within("forgetting", forgetting, 0.5, 1.0)
        within("ridge", ridge, 1e-6)
        self.width, self.forgetting, self.ridge = width, forgetting, ridge
        self.gram: Floats = np.zeros((width, width))
        self.moment: Floats = np.zeros(width)
        self._weights: Floats | None = np.zeros(width)

    def restore(self, gram: Sequence[Sequence[float]], moment: Sequence[float]) -> None:
        """Takes over the sums of another one. Raises ValueError if they cannot be those of any observations."""
        sums, sides = np.array(gram, dtype=np.float64), np.array(moment, dtype=np.float64)
        if sums.shape != (self.width, self.width) or sides.shape != (self.width,):
            raise ValueError(f"sums of {sums.shape} and {sides.shape}, width {self.width}")
        if not (np.isfinite(sums).all() and np.isfinite(sides).all()):
            raise ValueError("sums that are not finite")
        if not np.allclose(sums, sums.T) or np.linalg.eigvalsh(sums)[0] < -self.ridge / 2:
            raise ValueError("sums that no observations have")
        self.gram, self.moment, self._weights = sums, sides, None

    def add(self, x: Floats, y: float) -> None:
        """One observation: features [width], and what they should have given."""
        self.gram *= self.forgetting
        self.gram += np.outer(x, x)
        self.moment *= self.forgetting
        self.moment += y * x
        self._weights = None

    @property
    def weights(self) -> Floats:
        """w, [width]."""
        if self._weights is not None:
            return self._weights
        ridged = self.gram + self.ridge * np.eye(self.width)
        weights = np.linalg.solve(ridged, self.moment).astype(np.float64, copy=False)
        self._weights = weights
        return weights

    def predict(self, x: Floats) -> float:
        """w.x for features [width]."""
        return float(self.weights @ x)
