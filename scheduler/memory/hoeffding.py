"""How much memory a predicted length is worth: CacheOPT's pad (arXiv 2503.13773, its padding of output lengths).

Hoeffding's inequality says of one observation X with mean m, out of a range R wide:

    P(X - m >= t) <= exp(-2 t^2 / R^2)

For a deviation that is exceeded with probability 1 - conf at most this gives

    t = R * sqrt(-ln(1 - conf) / 2)

R is the range of the prediction's errors (`Estimate.spread`), and the pad is added where predictions are too low,
subtracted where they are too high. The confidence falls as requests come faster, conf = alpha / (1 + beta * lambda):
under load memory for waiting requests is worth more than safety from preemption.

Reconstructed: the paper says only that the confidence is adapted to the arrival rate; the form of conf, alpha and beta
are a third party's, which does not say in what unit lambda is (here requests per second, with which so small a beta
does little: at 8 per second conf is 0.942). The bound holds around the true mean; here the prediction stands for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p, sqrt

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.predictors.estimate import Estimate
from accelgen.scheduler.table import Ints

MOST_CONFIDENCE = 0.999999


@dataclass(frozen=True, slots=True)
class Pad:
    """The rule with its constants: `alpha` is the confidence without load (0: no pad), `beta` how fast it falls, in
    seconds per request. Raises ValueError unless 0 <= alpha <= 0.999999 and beta >= 0."""

    alpha: float = 0.95
    beta: float = 0.001

    def __post_init__(self) -> None:
        within("alpha", self.alpha, 0.0, MOST_CONFIDENCE)
        within("beta", self.beta, 0.0, unit="s")

    def confidence(self, arrivals_s: float) -> float:
        """The share of lengths that shall not exceed the padded one, at so many arrivals per second."""
        return self.alpha / (1.0 + self.beta * max(0.0, arrivals_s))

    def length(self, estimate: Estimate, generated: int, max_tokens: int, arrivals_s: float) -> int:
        """Output tokens to be given room, from `generated` + 1 to `max_tokens`."""
        one = np.ones(1, dtype=np.int64)
        lengths = padded(
            one * estimate.tokens,
            one * estimate.spread,
            one * int(estimate.direction),
            one * generated,
            one * max_tokens,
            self.confidence(arrivals_s),
        )
        return int(lengths[0])


def deviation(spread: float, confidence: float) -> float:
    """t in tokens: an error out of a range of `spread` tokens is exceeded with probability 1 - `confidence` at most."""
    return spread * sqrt(-log1p(-confidence) / 2)


def padded(
    tokens: Ints,
    spreads: Ints,
    directions: Ints,
    generated: Ints,
    most: Ints,
    confidence: float,
) -> Ints:
    """Output lengths to be given room, [n], from columns [n]: predicted length, range of its errors, direction (1 too
    low, -1 too high), tokens generated so far, tokens allowed.

    A running request needs room for one more than it has, whatever was predicted, and none beyond what it may have."""
    pads = deviation(1.0, confidence) * spreads
    lengths = np.ceil(tokens + directions * pads).astype(np.int64)
    found: Ints = np.minimum(np.maximum(lengths, generated + 1), most)
    return found
