"""How many KV blocks a request needs to its end, by the output length that is predicted."""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.table import Ints, RequestTable


def end_tokens(table: RequestTable, slots: Ints) -> Ints:
    """Tokens that requests will have at their end, [n]: at least one more than now, at most what is allowed. (The paper
    takes output lengths as known.)"""
    generated = table.length[slots] - table.prompt_len[slots]
    output = np.maximum(table.predicted_output[slots], generated + 1)
    ends: Ints = np.minimum(table.prompt_len[slots] + output, table.limit[slots])
    return ends


def whole_blocks(table: RequestTable, slots: Ints) -> Ints:
    """Blocks for all tokens of requests, [n]: prompt, and output to its end."""
    blocks: Ints = -(-end_tokens(table, slots) // table.block_size)
    return blocks


def missing_blocks(table: RequestTable, slots: Ints) -> int:
    """Further blocks that running requests will need together."""
    return int(np.maximum(whole_blocks(table, slots) - table.blocks[slots], 0).sum())
