"""`srpf`: shortest remaining prompt first. Sarathi-Serve's batches with the prompts in the order of the tokens that
they still have to process (docs/policies.md; read in QoServe's code, `scheduler_type` srpf, where it is a baseline).

Decodes first, then prompts within a fixed token budget. A shorter prompt overtakes one that has begun, at the end of a
chunk, if it is shorter than what is left of that one. Objectives play no part; long prompts may starve.

Reconstructed: that code asserts when blocks run out; here the latest arrival is preempted (recompute), as in
Sarathi-Serve, and what it has to compute again counts as prompt. Tokens found in the prefix cache do not count.
"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.policies.prompts import FixedChunk
from accelgen.scheduler.policies.shared import at_least
from accelgen.scheduler.table import Floats, Ints, RequestTable


class Srpf(FixedChunk):
    name = "srpf"

    def __init__(self, chunk_size: int = 512) -> None:
        at_least("chunk_size", chunk_size, 1, "tokens")
        self.chunk_size = chunk_size

    def keys(self, table: RequestTable, slots: Ints) -> Floats:
        remaining: Floats = (table.length[slots] - table.computed[slots]).astype(np.float64)
        return remaining
