"""`edf`: earliest deadline first. Sarathi-Serve's batches with the prompts in the order of their first-token deadlines
(docs/policies.md; read in QoServe's code, `scheduler_type` edf, where it is a baseline).

Decodes first, then prompts by deadline within a fixed token budget. A prompt with an earlier deadline overtakes one
that has begun, at the end of a chunk. The deadline of a request with an end-to-end objective is that minus its
predicted output at `offline_tpot_s` per token, as in that code.

Reconstructed: that code asserts when blocks run out; here the latest arrival is preempted (recompute), as in
Sarathi-Serve. Requests without any objective come last, in order of arrival.
"""

from __future__ import annotations

from accelgen.scheduler.policies.prompts import FixedChunk
from accelgen.scheduler.policies.shared import at_least
from accelgen.scheduler.policies.slack import first_token_due_s
from accelgen.scheduler.table import Floats, Ints, RequestTable


class Edf(FixedChunk):
    name = "edf"

    def __init__(self, chunk_size: int = 512, offline_tpot_s: float = 0.4) -> None:
        at_least("chunk_size", chunk_size, 1, "tokens")
        at_least("offline_tpot_s", offline_tpot_s, 0, "s")
        self.chunk_size, self.offline_tpot_s = chunk_size, offline_tpot_s

    def keys(self, table: RequestTable, slots: Ints) -> Floats:
        return first_token_due_s(table, slots, self.offline_tpot_s)
