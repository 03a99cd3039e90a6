"""Who gives way when KV runs out: CacheOPT's order of victims (arXiv 2503.13773, section 3.4).

First whoever has the longest objective from token to token (it bears an interruption best), of those whoever has most
output left (it would hold its memory longest), of those whoever holds least KV (it is away and back soonest). So
that a hair's breadth in the first does not decide everything, each is compared in buckets.

Reconstructed: the widths, and the tie-break, which the paper does not have: the latest request first, as vLLM does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import FAR_S, Floats, Ints

SHORTEST_TBT_S = 1e-6  # an objective below counts as this: no width is 0


@dataclass(frozen=True, slots=True)
class Widths:
    """Of the buckets: TBT objectives as a share of the smallest one stated, predicted remaining output in tokens, KV
    in blocks. Raises ValueError unless the share is at least 0.01 and the others at least 1."""

    tbt_share: float = 0.25
    remaining: int = 64
    blocks: int = 8

    def __post_init__(self) -> None:
        within("tbt_share", self.tbt_share, 0.01)
        within("remaining", self.remaining, 1, unit="tokens")
        within("blocks", self.blocks, 1)


def victim_order(
    ids: Ints,
    arrival_s: Floats,
    tbt_s: Floats,
    remaining: Ints,
    blocks: Ints,
    widths: Widths | None = None,
) -> Ints:
    """Positions of the requests, the first victim first, [n], from columns [n]: request ids, each one once; arrival;
    objective from token to token in seconds (FAR_S: none, a bucket beyond all others); predicted tokens to come;
    blocks held.

    A total order of requests: it does not depend on the order in which they are given."""
    widths = widths or Widths()
    stated = tbt_s[tbt_s < FAR_S / 2]
    shortest_s = max(float(stated.min(initial=FAR_S)), SHORTEST_TBT_S)
    by_tbt = np.floor(tbt_s / (widths.tbt_share * shortest_s))
    by_remaining = remaining // widths.remaining
    by_blocks = blocks // widths.blocks
    order: Ints = np.lexsort((ids, -arrival_s, by_blocks, -by_remaining, -by_tbt))
    return order
