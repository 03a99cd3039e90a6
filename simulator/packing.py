"""How many of these fit at most? The linear relaxation of a knapsack of many constraints, with a certificate.

    maximise sum x    subject to  W x <= c,  0 <= x <= 1        (W, c >= 0)

By weak duality every vector of prices y >= 0 gives an upper bound, `y c + sum max(0, 1 - y W)`: whatever comes out is
one, and numerical trouble can only make it weaker. The dual simplex method for bounded variables finds the best
prices: all x begin at 1, which is best at the prices 0, and the constraint that is violated most enters.
"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.table import Floats

CLOSE = 1e-9
PIVOTS = 2000


def most_that_fit(weights: Floats, limits: Floats) -> float:
    """An upper bound on sum x. `weights` [rows, n], `limits` [rows]."""
    scale = np.maximum(limits, 1e-12)
    basis = _Basis(weights / scale[:, None], limits / scale)
    best = basis.bound()
    for _ in range(PIVOTS):
        if not basis.pivot():
            break
        best = min(best, basis.bound())
    return best


class _Basis:
    """`rows`: constraints that hold with equality; `inner`: as many x between bounds; all others are at 0 or 1."""

    def __init__(self, weights: Floats, limits: Floats) -> None:
        self.weights, self.limits = weights, limits
        self.x = np.ones(weights.shape[1])
        self.rows: list[int] = []
        self.inner: list[int] = []
        self._solve()

    def _solve(self) -> None:
        """The inner x, and the prices of the rows."""
        square = self.weights[np.ix_(self.rows, self.inner)]
        outer = self.x.copy()
        outer[self.inner] = 0.0
        self.inverse = np.linalg.inv(square) if self.rows else np.zeros((0, 0))
        self.x[self.inner] = self.inverse @ (
            self.limits[self.rows] - self.weights[self.rows] @ outer
        )
        self.prices = self.inverse.sum(axis=0)

    def bound(self) -> float:
        prices = np.maximum(self.prices, 0.0)
        gains = 1 - prices @ self.weights[self.rows]
        return float(prices @ self.limits[self.rows] + np.maximum(gains, 0.0).sum())

    def pivot(self) -> bool:
        """One step; False at the optimum, or where numbers are too bad to go on."""
        slack = self.limits - self.weights @ self.x
        slack[self.rows] = 0.0
        row = int(slack.argmin()) if len(slack) else -1
        inside = self.x[self.inner]
        beyond = np.maximum(-inside, inside - 1)
        worst = int(beyond.argmax()) if self.inner else -1
        by_row = -slack[row] if row >= 0 else 0.0
        by_x = beyond[worst] if worst >= 0 else 0.0
        if max(by_row, by_x) <= CLOSE:
            return False
        if by_row >= by_x:
            # How the slack of `row` answers to each x at a bound, and to the slacks of `rows`.
            mix = self.weights[row, self.inner] @ self.inverse
            to_x = mix @ self.weights[self.rows] - self.weights[row]
            return self._enter(to_x, mix, rising=True, row=row, leaving=-1)
        mix = self.inverse[worst]
        rising = bool(inside[worst] < 0)
        return self._enter(
            -mix @ self.weights[self.rows], -mix, rising, row=-1, leaving=self.inner[worst]
        )

    def _enter(self, to_x: Floats, to_slack: Floats, rising: bool, row: int, leaving: int) -> bool:
        """Lets the one change that costs least per unit, and puts `row` or `leaving` at its bound."""
        sign = 1.0 if rising else -1.0
        gains = 1 - self.prices @ self.weights[self.rows]
        steps_x = sign * np.where(self.x > 0.5, -1.0, 1.0) * to_x
        steps_x[self.inner] = 0.0
        steps_slack = sign * to_slack
        with np.errstate(divide="ignore"):
            costs = np.concatenate(
                [
                    np.where(steps_x > CLOSE, np.abs(gains) / np.maximum(steps_x, CLOSE), np.inf),
                    np.where(steps_slack > CLOSE, np.abs(self.prices) / np.maximum(steps_slack, CLOSE), np.inf),
                ]
            )  # fmt: skip
        entering = int(costs.argmin()) if len(costs) else -1
        if entering < 0 or not np.isfinite(costs[entering]):
            return False
        if leaving >= 0:
            self.inner.remove(leaving)
            self.x[leaving] = 0.0 if rising else 1.0
        if row >= 0:
            self.rows.append(row)
        if entering < len(to_x):
            self.inner.append(entering)
        else:
            del self.rows[entering - len(to_x)]
        try:
            self._solve()
        except np.linalg.LinAlgError:
            return False
        return bool(np.isfinite(self.x).all())
