"""Output lengths by class: a quantile of what the last finished requests of the same class have generated."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.predictors.estimate import Estimate, Traits, unknown
from accelgen.scheduler.predictors.learnt import Learnt
from accelgen.scheduler.predictors.residuals import check_trim, deviation

WINDOW = 500
FEW = 16  # up to so many lengths each of them counts at once, afterwards each 16th


class ClassQuantiles:
    """The `quantile` of the last outputs of the class; half of `max_tokens` before there are any. All requests of a
    class are told the same, so the class is the bucket of their errors; `trim` as in residuals.py."""

    name = "class-quantiles"

    def __init__(
        self, learnt: Learnt | None = None, *, quantile: float = 0.5, trim: float = 0.0
    ) -> None:
        """Raises ValueError for a quantile beyond 0 to 1, a `trim` beyond 0 to 49 %."""
        within("quantile", quantile, 0.0, 1.0)
        check_trim(trim)
        self.quantile, self.trim = quantile, trim
        outputs = {} if learnt is None else learnt.outputs
        seen = {name: lengths for name, lengths in outputs.items() if lengths}
        self._outputs = {name: deque(lengths, maxlen=WINDOW) for name, lengths in seen.items()}
        self._known = {name: self._judge(lengths) for name, lengths in self._outputs.items()}
        self._seen = {name: len(lengths) for name, lengths in self._outputs.items()}

    @property
    def params(self) -> dict[str, Any]:
        """What makes another one like it."""
        return {"quantile": self.quantile, "trim": self.trim}

    def learnt(self) -> Learnt:
        """What has been seen last, to be kept."""
        return Learnt({name: list(lengths) for name, lengths in self._outputs.items()})

    def predict(self, traits: Traits) -> Estimate:
        known = self._known.get(traits.slo_class)
        if known is None:
            return unknown(traits.max_tokens)
        return known.within(traits.max_tokens)

    def observe(self, traits: Traits, tokens: int) -> None:
        outputs = self._outputs.setdefault(traits.slo_class, deque(maxlen=WINDOW))
        outputs.append(tokens)
        seen = self._seen[traits.slo_class] = self._seen.get(traits.slo_class, 0) + 1
        if seen < FEW or seen % FEW == 0:
            self._known[traits.slo_class] = self._judge(outputs)

    def _judge(self, outputs: deque[int]) -> Estimate:
        lengths = np.array(outputs, dtype=np.int64)
        tokens = int(np.quantile(lengths, self.quantile))
        low, high, direction = deviation(lengths - tokens, self.trim)
        return Estimate(tokens, tokens + low, tokens + high, direction)


class ClassMedian(ClassQuantiles):
    """The median of the class: what is used by default.

    AccelGen predicts output lengths of requests with a completion-time objective and calls accurate
    prediction unsolved (arXiv 2503.13737); any LengthPredictor can take this one's place."""

    name = "class-median"

    def __init__(self, learnt: Learnt | None = None) -> None:
        super().__init__(learnt)

    @property
    def params(self) -> dict[str, Any]:
        return {}
