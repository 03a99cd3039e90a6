"""Output lengths by a regression that is trained on line, from every request that ends.

CacheOPT fine-tunes a language model to predict length and direction of the error (arXiv 2503.13773). Here, where no
such model comes with the server, the logarithm of the length is a linear function of what is known at arrival. Its
errors are multiplicative then, as those of lengths are, and what it predicts is the median rather than the mean. An
answer that was cut off at `max_tokens` counts as long as it got, since it held no more memory.
"""

from __future__ import annotations

from math import exp, log, log1p
from typing import Any
from zlib import crc32

import numpy as np

from accelgen.scheduler.predictors.class_quantiles import ClassMedian
from accelgen.scheduler.predictors.estimate import Estimate, Traits
from accelgen.scheduler.predictors.learnt import Learnt, Regression
from accelgen.scheduler.predictors.least_squares import LeastSquares
from accelgen.scheduler.predictors.residuals import Residuals
from accelgen.scheduler.table import Floats

PLAIN = 6  # features that are not the class
CLASSES = 8  # classes share so many places by their checksum: any name has one, and nothing grows
WIDTH = PLAIN + CLASSES
UNIT = 8.0  # e^8 = 3000 tokens are one unit of a feature, so that the ridge treats all alike
TRAINED = 4 * WIDTH  # observations after which predictions are judged
JUDGED = TRAINED  # judgements after which the better one is believed
RATE = 0.01  # weight of a new judgement


class LengthRegressor:
    """Says what the class median says until it has been the better one of the two: its lead, a moving average of
    |error of the median| - |error of the regression| in tokens on requests before they were learnt from, must be
    positive. `trim` as in residuals.py, `forgetting` and `ridge` as in least_squares.py."""

    name = "regressor"

    def __init__(
        self,
        learnt: Learnt | None = None,
        *,
        trim: float = 0.0,
        forgetting: float = 0.999,
        ridge: float = 0.1,
    ) -> None:
        """Raises ValueError for parameters out of range, or a regression that is none."""
        self._median = ClassMedian(learnt)
        self._line = LeastSquares(WIDTH, forgetting, ridge)
        known = None if learnt is None else learnt.regression
        self._residuals = Residuals(trim, known.errors if known is not None else None)
        self._observed, self._lead = 0, 0.0
        if known is not None:
            self._line.restore(known.gram, known.moment)
            self._observed, self._lead = known.observed, known.lead

    @property
    def params(self) -> dict[str, Any]:
        """What makes another one like it."""
        line = self._line
        trim = self._residuals.trim
        return {"trim": trim, "forgetting": line.forgetting, "ridge": line.ridge}

    @property
    def leads(self) -> bool:
        """Whether the regression is believed, and not the class median."""
        return self._observed >= TRAINED + JUDGED and self._lead > 0

    def learnt(self) -> Learnt:
        """Everything, to be kept."""
        line = self._line
        sums = (line.gram.tolist(), line.moment.tolist())
        regression = Regression(self._observed, self._lead, *sums, self._residuals.errors())
        return Learnt(self._median.learnt().outputs, regression)

    def predict(self, traits: Traits) -> Estimate:
        if not self.leads:
            return self._median.predict(traits)
        guess = self._guess(features(traits), traits.max_tokens)
        return self._residuals.around(guess, traits.max_tokens)

    def observe(self, traits: Traits, tokens: int) -> None:
        x = features(traits)
        self._observed += 1
        if self._observed > TRAINED:
            guess = self._guess(x, traits.max_tokens)
            ahead = abs(tokens - self._median.predict(traits).tokens) - abs(tokens - guess)
            self._lead += RATE * (ahead - self._lead)
            self._residuals.add(guess, tokens)
        self._line.add(x, log(max(1, tokens)))
        self._median.observe(traits, tokens)

    def _guess(self, x: Floats, max_tokens: int) -> int:
        """What the regression says, in tokens."""
        longest = log(max(1, max_tokens))
        return round(exp(min(max(self._line.predict(x), 0.0), longest)))


def features(traits: Traits) -> Floats:
    """What the regression goes by, [WIDTH]: a constant, lengths of prompt and limit, which objectives are stated, and
    the class."""
    slo = traits.objective
    x = np.zeros(WIDTH)
    x[0] = 1.0
    x[1] = log1p(traits.prompt_tokens) / UNIT
    x[2] = log(max(1, traits.max_tokens)) / UNIT
    x[3:PLAIN] = [stated is not None for stated in (slo.ttft_s, slo.tpot_s, slo.e2e_s)]
    x[PLAIN + crc32(traits.slo_class.encode()) % CLASSES] = 1.0
    return x
