"""How long will an iteration take? A knee form, fitted to samples and corrected online.

    T = a + b*N + b2*max(0, N - K) + c*D + d*S + e*W        [seconds]

with P prefill tokens, D decoding sequences, N = P + D, S = sum of decode context lengths, and
W = sum over prefill chunks of chunk * (prior + chunk/2). K is the knee: below it the weights have to be read whatever N
is, so further tokens are almost free; above it time grows with N.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from accelgen.proto.messages import Sample

KNEES = (1, 8, 16, 32, 64, 96, 128, 192, 256, 320, 512)
SATURATED = 0.85
"""The pivot is where throughput reaches this share of its limit; chosen such that the fit for OPT-13B on A100
(simulator/device.py) gives the 768 tokens that AccelGen's authors measured within 12 %."""


class Coefficients(Struct, frozen=True):
    """Seconds per unit; `knee` in tokens."""

    a: float
    b: float
    b2: float
    c: float
    d: float
    e: float
    knee: float


DEFAULT = Coefficients(a=2e-3, b=1e-4, b2=0.0, c=0.0, d=0.0, e=0.0, knee=1.0)
"""Used until the first samples arrive; wrong by any factor, which the online correction takes out."""


@dataclass(frozen=True, slots=True)
class Work:
    """The features of one iteration."""

    prefill_tokens: int = 0
    decode_seqs: int = 0
    decode_context: int = 0
    prefill_work: float = 0.0

    @classmethod
    def of(
        cls, computed: NDArray[np.int64], counts: NDArray[np.int64], decode: NDArray[np.bool_]
    ) -> Work:
        """Features of entries that process counts[i] tokens after computed[i]; decode[i] marks single tokens of
        requests past their prompt. All [n]."""
        prior, chunk = computed[~decode], counts[~decode]
        return cls(
            int(chunk.sum()),
            int(np.count_nonzero(decode)),
            int(computed[decode].sum()),
            float((chunk * (prior + chunk / 2)).sum()),
        )


def work_of(sample: Sample) -> Work:
    """The features of a sample."""
    return Work(
        sample.prefill_tokens, sample.decode_seqs, sample.decode_context, sample.prefill_work
    )


class CostModel:
    """Predicts iterations; `observe` what they really took. One per replica."""

    def __init__(self, coefficients: Coefficients = DEFAULT) -> None:
        self.coefficients = coefficients
        self.scale = 1.0  # online correction: measured / predicted, slowly moving
        self.upper = 1.5  # 95 % of measured / predicted lie below
        self.lower = 0.8  # 10 % lie below
        self.observed = 0

    def predict(self, work: Work) -> float:
        """Seconds the iteration will probably take."""
        return self.scale * evaluate(self.coefficients, work)

    def predict_upper(self, work: Work) -> float:
        """Seconds it will not exceed in 95 of 100 cases: the number promises are made with."""
        return self.predict(work) * self.upper

    def observe(self, work: Work, run_s: float) -> None:
        """Learns from one executed iteration. Quantiles move by stochastic steps (Robbins-Monro on the pinball loss),
        the scale faster at first."""
        if not work.prefill_tokens and not work.decode_seqs:
            return
        raw = evaluate(self.coefficients, work)
        self.observed += 1
        ratio = run_s / raw
        rate = max(0.02, 1.0 / self.observed)
        bounded = min(max(ratio, self.scale / 4), self.scale * 4) if self.observed > 8 else ratio
        self.scale += rate * (bounded - self.scale)
        relative = ratio / self.scale
        self.upper = max(1.0, self.upper + 0.05 * (0.95 - (relative <= self.upper)))
        self.lower = min(1.0, max(0.1, self.lower + 0.02 * (0.10 - (relative <= self.lower))))

    def invert(self, limit_s: float, work: Work, prior: int = 0) -> int:
        """The most prefill tokens (after `prior` computed ones) that keep `work` plus them within `limit_s`."""
        low, high = 0, 1 << 20
        while low < high:
            middle = (low + high + 1) // 2
            if self.predict(with_prompt(work, middle, prior)) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return low

    def pivot(self, most: int) -> tuple[int, float]:
        """AccelGen's pivot forward size S_pf in tokens (at most `most`) and its iteration time T_pf in seconds."""
        k = self.coefficients
        per_token = k.b + k.b2
        fixed = k.a - k.b2 * k.knee
        if per_token <= 0 or fixed <= 0:
            size = max(1, round(k.knee))
        else:
            size = round(SATURATED / (1 - SATURATED) * fixed / per_token)
        size = min(max(size, round(k.knee), 1), most)
        return size, self.predict(Work(prefill_tokens=size))


def evaluate(k: Coefficients, work: Work) -> float:
    """The formula above, in seconds, at least a microsecond."""
    tokens = work.prefill_tokens + work.decode_seqs
    above = max(0.0, tokens - k.knee)
    seconds = k.a + k.b * tokens + k.b2 * above + k.c * work.decode_seqs
    return max(1e-6, seconds + k.d * work.decode_context + k.e * work.prefill_work)


def fit(samples: Sequence[Sample]) -> Coefficients:
    """Least squares on relative errors with non-negative coefficients, over a grid of knees.

    Raises ValueError with fewer than three samples."""
    if len(samples) < 3:
        raise ValueError(f"{len(samples)} samples are too few to fit a cost model (at least 3)")
    rows = np.array(
        [
            (s.prefill_tokens + s.decode_seqs, s.decode_seqs, s.decode_context, s.prefill_work)
            for s in samples
        ],
        dtype=float,
    )
    seconds = np.maximum(np.array([s.run_s for s in samples]), 1e-6)
    best, best_error = DEFAULT, np.inf
    for knee in KNEES:
        above = np.maximum(0.0, rows[:, 0] - knee)
        design = np.column_stack([np.ones(len(rows)), rows[:, 0], above, rows[:, 1:]])
        solution = _non_negative(design / seconds[:, None], np.ones(len(rows)))
        error = float(np.square(design @ solution / seconds - 1).sum())
        if error < best_error - 1e-9:
            a, b, b2, c, d, e = map(float, solution)
            best, best_error = Coefficients(a, b, b2, c, d, e, float(knee)), error
    return best


def _non_negative(design: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    """Least squares, leaving out the most negative column until none is negative. Columns are scaled first."""
    width = np.maximum(np.abs(design).max(axis=0), 1e-30)
    used = list(range(design.shape[1]))
    solution = np.zeros(design.shape[1])
    while used:
        part = np.linalg.lstsq(design[:, used] / width[used], target, rcond=None)[0]
        if part.min() >= 0:
            solution[used] = part / width[used]
            break
        del used[int(part.argmin())]
    return solution


def with_prompt(work: Work, tokens: int, prior: int) -> Work:
    """`work`, and so many prompt tokens after `prior` computed ones."""
    return Work(
        work.prefill_tokens + tokens,
        work.decode_seqs,
        work.decode_context,
        work.prefill_work + tokens * (prior + tokens / 2),
    )
