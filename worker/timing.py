"""Timed synthetic iterations, for the scheduler's cost model.

A start takes a rough sample (at most 3 s); `accelgen profile` calls `measure` with a larger budget and grid. The cache
is written with finite rubbish: nothing may be stored in it yet."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from accelgen.proto.clocks import now_s
from accelgen.proto.messages import Sample
from accelgen.proto.messages import Sampling as SamplingParameters
from accelgen.worker.packing import Span
from accelgen.worker.runner import Runner
from accelgen.worker.sampler import Draw, sample

Grid = Sequence["Shape"]
REPEATS = 3
SHARES = 10  # no shape takes more than this fraction of the budget, except for one run


@dataclass(frozen=True)
class Shape:
    """A synthetic iteration: `chunk` prompt tokens after `past` computed ones, and `decodes` at `context` tokens."""

    chunk: int = 0
    past: int = 0
    decodes: int = 0
    context: int = 0

    def sample(self, run_s: float) -> Sample:
        """The features of this shape with a measured time."""
        work = self.chunk * (self.past + self.chunk / 2)
        return Sample(self.chunk, self.decodes, self.decodes * self.context, work, run_s)


ROUGH_GRID: Grid = (
    Shape(decodes=1, context=64),
    Shape(chunk=64),
    Shape(decodes=8, context=64),
    Shape(chunk=256),
    Shape(decodes=32, context=64),
    Shape(decodes=8, context=512),
    Shape(chunk=16),
    Shape(chunk=128, decodes=8, context=256),
    Shape(decodes=1, context=1024),
    Shape(chunk=512),
    Shape(decodes=64, context=256),
    Shape(chunk=256, past=1024),
    Shape(decodes=32, context=512),
    Shape(chunk=1024),
    Shape(decodes=128, context=256),
    Shape(chunk=2048),
    Shape(decodes=256, context=128),
)
"""Cheap and telling shapes first: the budget may end anywhere."""


def full_grid(max_tokens: int, max_seqs: int, max_len: int) -> Grid:
    """What `accelgen profile` measures: chunks, decodes and mixtures up to the server's limits."""

    def powers(first: int, last: int, factor: int) -> list[int]:
        found = []
        while first <= last:
            found.append(first)
            first *= factor
        return found

    chunks = powers(8, min(max_tokens, max_len - 1), 2)
    seqs, contexts = powers(1, max_seqs, 2), powers(32, max_len - 1, 4)
    shapes = [
        *(Shape(chunk=chunk) for chunk in chunks),
        *(Shape(decodes=n, context=context) for context in contexts for n in seqs),
        *(Shape(chunk=c, past=p) for p in contexts[1:] for c in chunks[::2] if c + p < max_len),
        *(Shape(c, 0, n, 256) for c in chunks[2::2] for n in seqs[2::2] if max_len > 256),
    ]
    return sorted(shapes, key=lambda shape: shape.chunk + shape.decodes)  # all kinds, small first


def measure(
    runner: Runner,
    budget_s: float,
    max_len: int,
    grid: Grid = ROUGH_GRID,
    repeats: int = REPEATS,
    beat: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Times the shapes of `grid` that fit cache, `max_len` and what is left of `budget_s`; medians of `repeats`.

    `beat` is called between iterations, so that a long measurement does not look like a hang."""
    end_s = now_s() + budget_s
    samples: list[Sample] = []
    s_per_token = 0.0  # of the last chunk: a shape that would overrun is left out
    for shape in _fitting(runner, grid, max_len):
        if now_s() + s_per_token * shape.chunk > end_s:
            continue
        run_s = _typical_s(runner, shape, repeats, budget_s / SHARES, beat)
        samples.append(shape.sample(run_s))
        s_per_token = run_s / shape.chunk if shape.chunk else s_per_token
        if now_s() >= end_s:
            break
    return samples


def _typical_s(
    runner: Runner, shape: Shape, repeats: int, share_s: float, beat: Callable[[], None]
) -> float:
    """Median of up to `repeats` runs behind one that warms up; a shape that is slow gets fewer."""
    times = [_run(runner, shape)]
    while len(times) <= repeats and sum(times) + times[-1] < share_s:
        beat()
        times.append(_run(runner, shape))
    return statistics.median(times[1:] or times)


def _fitting(runner: Runner, grid: Grid, max_len: int) -> Iterator[Shape]:
    size, blocks = runner.cache.block_size, runner.cache.num_blocks
    for shape in grid:
        longest = max(shape.chunk + shape.past, shape.context + 1)
        needed = -(-(shape.chunk + shape.past) // size) + shape.decodes * -(
            -(shape.context + 1) // size
        )
        if longest <= max_len and needed <= blocks:
            yield shape


def _run(runner: Runner, shape: Shape) -> float:
    size = runner.cache.block_size
    spans: list[Span] = []
    next_block = 0
    lengths = [shape.context + 1] * shape.decodes
    starts = [shape.context] * shape.decodes
    if shape.chunk:
        lengths, starts = [*lengths, shape.past + shape.chunk], [*starts, shape.past]
    for length, start in zip(lengths, starts, strict=True):
        count = -(-length // size)
        table = range(next_block, next_block + count)
        next_block += count
        spans.append(Span([1] * (length - start), start, table))
    begin_s = now_s()
    logits = runner.forward(spans)
    greedy = Draw(SamplingParameters(temperature=0.0), 0)
    sample(logits.rows, [greedy] * len(logits.order))
    return now_s() - begin_s
