"""How many tokens will a request generate? An interface, and the online per-class estimate used by default."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

WINDOW = 500


class LengthPredictor(Protocol):
    """Estimates output lengths in tokens."""

    def predict(self, slo_class: str, max_tokens: int) -> int:
        """Expected number of output tokens, between 1 and `max_tokens`."""

    def observe(self, slo_class: str, tokens: int) -> None:
        """Learns from a finished request."""


class ClassMedian:
    """The median output of the last finished requests of the same class; half of `max_tokens` before there are any.

    AccelGen predicts output lengths of requests with a completion-time objective and calls accurate
    prediction unsolved; any LengthPredictor can take this one's place."""

    def __init__(self, outputs: Mapping[str, Sequence[int]] | None = None) -> None:
        """`outputs`: lengths seen before, by class, the newest last."""
        seen = {name: lengths for name, lengths in (outputs or {}).items() if lengths}
        self._outputs = {name: deque(lengths, maxlen=WINDOW) for name, lengths in seen.items()}
        self._median = {name: int(np.median(lengths)) for name, lengths in self._outputs.items()}

    def outputs(self) -> dict[str, list[int]]:
        """What has been seen last, to be kept."""
        return {name: list(lengths) for name, lengths in self._outputs.items()}

    def predict(self, slo_class: str, max_tokens: int) -> int:
        return max(1, min(max_tokens, self._median.get(slo_class, max_tokens // 2)))

    def observe(self, slo_class: str, tokens: int) -> None:
        outputs = self._outputs.setdefault(slo_class, deque(maxlen=WINDOW))
        outputs.append(tokens)
        if len(outputs) < 16 or len(outputs) % 16 == 0:
            self._median[slo_class] = int(np.median(outputs))
