"""How far predictions have been off: errors (true minus predicted tokens) by bucket of predicted length.

CacheOPT bounds the deviation of a prediction by Hoeffding's inequality (arXiv 2503.13773, the padding of its length
estimate). The R in it must be the range of the errors where such a length was predicted: with the range of all lengths
every pad would reach the longest one. Reconstructed, since the paper gives neither buckets nor calibration set: a
bucket is a power of two of the predicted length, and the last errors on line are the calibration set.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from accelgen.scheduler.parameters import within
from accelgen.scheduler.predictors.estimate import Direction, Estimate

WINDOW = 200  # errors kept per bucket
FEWEST = 16  # with fewer, a bucket says nothing of its own
MOST_TRIM = 49.0


def check_trim(trim: float) -> None:
    """Raises ValueError unless `trim` is a share that leaves a range over."""
    within("trim", trim, 0.0, MOST_TRIM, "%")


def deviation(errors: NDArray[np.int64], trim: float) -> tuple[int, int, Direction]:
    """The least and the greatest error in tokens, and the direction of the mean one. `trim` per cent of the errors are
    left out on each side: with 0 this is the range that Hoeffding's inequality holds for, with 1 the 1st to 99th
    percentile, which bounds nothing but is not given by the two worst cases either."""
    low, high = np.percentile(errors, [trim, 100.0 - trim])
    direction = Direction.UNDER if errors.mean() >= 0 else Direction.OVER
    return int(np.floor(low)), int(np.ceil(high)), direction


class Residuals:
    """The last errors of a predictor whose predictions differ from request to request."""

    def __init__(
        self, trim: float = 0.0, errors: Mapping[int, Sequence[int]] | None = None
    ) -> None:
        """`errors` by bucket, the newest last. Raises ValueError for a `trim` beyond 0 to 49 %."""
        check_trim(trim)
        self.trim = trim
        given = {bucket: few for bucket, few in (errors or {}).items() if few}
        self._errors = {bucket: deque(few, maxlen=WINDOW) for bucket, few in given.items()}
        self._known: dict[int, tuple[int, int, Direction]] = {}  # by bucket; 0: of all together

    def errors(self) -> dict[int, list[int]]:
        """What has been seen last, to be kept."""
        return {bucket: list(few) for bucket, few in self._errors.items()}

    def add(self, predicted: int, tokens: int) -> None:
        """A request of which `predicted` tokens were said has ended after `tokens`."""
        bucket = bucket_of(predicted)
        self._errors.setdefault(bucket, deque(maxlen=WINDOW)).append(tokens - predicted)
        self._known.pop(bucket, None)
        self._known.pop(0, None)

    def around(self, predicted: int, max_tokens: int) -> Estimate:
        """The estimate that such a prediction is worth: with the errors of its bucket; of all buckets if those are few;
        without any, everything is possible."""
        for bucket in (bucket_of(predicted), 0):
            found = self._known.get(bucket) or self._judge(bucket)
            if found is not None:
                low, high, direction = found
                estimate = Estimate(predicted, predicted + low, predicted + high, direction)
                return estimate.within(max_tokens)
        return Estimate(predicted, 1, max_tokens).within(max_tokens)

    def _judge(self, bucket: int) -> tuple[int, int, Direction] | None:
        if bucket:
            errors = [*self._errors.get(bucket, ())]
        else:
            errors = [error for few in self._errors.values() for error in few]
        if len(errors) < FEWEST:
            return None
        found = deviation(np.array(errors, dtype=np.int64), self.trim)
        self._known[bucket] = found
        return found


def bucket_of(predicted: int) -> int:
    """1 for 1 token, 2 for 2 and 3, 3 for 4 to 7, and so on."""
    return max(1, predicted).bit_length()
