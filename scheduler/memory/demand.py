"""What a waiting request must be given to start (CacheOPT, arXiv 2503.13773, sections 3.3.1 and 3.3.2).

One that can wait gets blocks for its prompt and its padded predicted output. One that cannot, because it must start in
the next iteration, gets what it has tokens for and one quantum B: a new one the prompt and B; of one that returns from
preemption the KV comes back, or is computed again, and B is what it gets beyond that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.memory.growth import Growth
from accelgen.scheduler.memory.hoeffding import padded
from accelgen.scheduler.memory.waiting import latest_start_s
from accelgen.scheduler.table import Floats, Ints, RequestTable


@dataclass(frozen=True, slots=True)
class Demands:
    """Waiting requests in their order, [n] each. Blocks, those that are theirs already included: `needed` for their
    tokens so far, `least` to start at once, `whole` for all that is to come; `output`: tokens to come, padded; by when
    each must start."""

    slots: Ints
    needed: Ints
    least: Ints
    whole: Ints
    output: Ints
    latest_s: Floats


def demands_of(
    table: RequestTable,
    slots: Ints,
    confidence: float,
    growth: Growth,
    chunk: int,
    longest_s: float,
) -> Demands:
    """The demands of the waiting `slots` at that confidence of the pad, if an iteration takes `longest_s` and processes
    `chunk` tokens of a prompt."""
    size, length, prompt = table.block_size, table.length[slots], table.prompt_len[slots]
    most = np.maximum(table.limit[slots] - 1, length)  # the last token is never in the cache
    error = table.predicted_range[slots]
    outputs = padded(
        table.predicted_output[slots],
        np.abs(error),
        np.where(error < 0, -1, 1),
        length - prompt,
        table.limit[slots] - prompt,
        confidence,
    )
    return Demands(
        slots,
        _blocks(length, size),
        _blocks(np.minimum(length + growth.quantum, most), size),
        np.maximum(_blocks(np.minimum(prompt + outputs, most), size), _blocks(length, size)),
        np.maximum(prompt + outputs - length, 1),
        latest_start_s(table, slots, chunk, longest_s),
    )


def _blocks(tokens: Ints, size: int) -> Ints:
    blocks: Ints = -(-tokens // size)
    return blocks
