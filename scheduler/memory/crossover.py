"""Swap or recompute, whichever is faster (CacheOPT, arXiv 2503.13773, section 3.5).

Two measured curves over the length of a request: copying its KV to the host and back, a line with a start-up for each
direction; computing it again, which the fitted cost model predicts, chunk by chunk. The paper finds one sweet spot,
shorter ones are computed again and longer ones swapped. With a fitted cost model the curves may cross more than once
(below the knee tokens cost almost nothing, and even one token takes an iteration), so that the decision compares them
at the length in question, and the sweet spot is only reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from msgspec import Struct

from accelgen.proto.messages import SwapSample
from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import Floats


class Way(IntEnum):
    """How a victim's memory is freed."""

    DROP = 0  # and computed again later
    SWAP = 1  # to the host, and back later


class Line(Struct, frozen=True):
    """Seconds that a copy takes: a start-up, and so many per byte."""

    start_s: float
    byte_s: float

    def seconds(self, copied_bytes: int) -> float:
        return self.start_s + self.byte_s * copied_bytes


class Copies(Struct, frozen=True):
    """What moving KV takes on a replica: to the host, back, and the bytes of a block."""

    out: Line
    back: Line
    block_bytes: int


def fit_copies(swaps: Sequence[SwapSample]) -> Copies | None:
    """From timed copies in both directions; None if they are too few to tell."""
    try:
        out, back = (
            fit_line([one.bytes for one in way], [one.run_s for one in way])
            for way in ([s for s in swaps if s.out], [s for s in swaps if not s.out])
        )
    except ValueError:
        return None
    return Copies(out, back, swaps[0].bytes // max(1, swaps[0].blocks))


def fit_line(sizes: Sequence[int], seconds: Sequence[float]) -> Line:
    """The line with the least squared relative error and nothing negative, from copies of sizes[i] bytes that took
    seconds[i]. Raises ValueError unless there are two different sizes and every size and time is above 0."""
    x, y = np.array(sizes, dtype=np.float64), np.array(seconds, dtype=np.float64)
    if x.shape != y.shape or len(np.unique(x)) < 2:
        detail = f"{len(x)} sizes, {len(np.unique(x))} of them different, {len(y)} times"
        raise ValueError(f"copies: {detail}; a line takes at least two different sizes")
    if not (np.isfinite(x).all() and np.isfinite(y).all() and x.min() > 0 and y.min() > 0):
        raise ValueError(f"copies: least size {x.min()}, least time {y.min()} s, must be above 0")
    start, slope = 1.0 / y, x / y  # columns of the design; the target is 1 everywhere
    unit = np.array([start.max(), slope.max()])
    both = np.linalg.lstsq(np.column_stack([start, slope]) / unit, np.ones(len(x)), rcond=None)[0]
    if both.min() >= 0:
        return Line(*map(float, both / unit))
    lines = [Line(_alone(start), 0.0), Line(0.0, _alone(slope))]  # the optimum has one of them 0
    return min(lines, key=lambda line: _error(line, start, slope))


@dataclass(frozen=True, slots=True)
class Crossover:
    """What both ways cost on a replica: copies `out` and `back`, bytes and tokens of a KV block, and the tokens of the
    largest chunk in which KV is computed again."""

    out: Line
    back: Line
    block_bytes: int
    block_size: int
    chunk: int

    def __post_init__(self) -> None:
        within("block_bytes", self.block_bytes, 1)
        within("block_size", self.block_size, 1, unit="tokens")
        within("chunk", self.chunk, 1, unit="tokens")

    def swap_s(self, tokens: int) -> float:
        """Seconds for the KV of so many tokens to the host and back, in whole blocks."""
        copied_bytes = -(-tokens // self.block_size) * self.block_bytes
        return self.out.seconds(copied_bytes) + self.back.seconds(copied_bytes)

    def recompute_s(self, tokens: int, cost: CostModel) -> float:
        """Seconds for computing it again, in iterations of its own. Those of whole chunks are an arithmetic series: the
        cost model is linear in the work, and the work of a chunk in the tokens before it."""
        whole, rest = divmod(tokens, self.chunk)
        seconds = 0.0
        if whole:
            first_s = _chunk_s(cost, self.chunk, 0)
            last_s = _chunk_s(cost, self.chunk, (whole - 1) * self.chunk)
            seconds = whole * (first_s + last_s) / 2
        return seconds + (_chunk_s(cost, rest, whole * self.chunk) if rest else 0.0)

    def way(self, tokens: int, cost: CostModel) -> Way:
        """The faster one for a request with so many tokens in the cache; of equals, to drop."""
        return Way(self.swap_s(tokens) < self.recompute_s(tokens, cost))

    def length(self, cost: CostModel, most: int) -> int | None:
        """The sweet spot in tokens, a whole number of blocks: from there up to `most` tokens swapping is faster at
        every whole number of blocks. None if it is not even at the last one, or `most` is less than a block."""
        sweet = None
        for tokens in range(most // self.block_size * self.block_size, 0, -self.block_size):
            if self.way(tokens, cost) is Way.DROP:
                break
            sweet = tokens
        return sweet


def _chunk_s(cost: CostModel, tokens: int, prior: int) -> float:
    return cost.predict(Work(tokens, prefill_work=tokens * (prior + tokens / 2)))


def _alone(column: Floats) -> float:
    """The coefficient of the only column of a least-squares problem with the target 1."""
    return float(column.sum() / (column @ column))


def _error(line: Line, start: Floats, slope: Floats) -> float:
    return float(np.square(line.start_s * start + line.byte_s * slope - 1.0).sum())
