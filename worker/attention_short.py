"""Short chunks with a past, of equal length, as where drafts are verified: they attend together, like decodes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from accelgen.worker.attention import Call
from accelgen.worker.attention_pages import Pages, additive, attention
from accelgen.worker.packing import PAD_FREE_BLOCKS, PAD_SHARE, ChunkGroup

SHORT = 16  # tokens
SHORT_BYTES = 16 << 20  # keys and values of one layer that are gathered for them at a time


def short_runs(
    groups: Sequence[ChunkGroup], block_size: int, most_tokens: int
) -> list[list[ChunkGroup]]:
    """Neighbours that attend together: short chunks of equal length with a past, as long as what is padded stays small,
    and all of it below `most_tokens`; every other group by itself. In order."""
    runs: list[list[ChunkGroup]] = []
    total = 0  # blocks of the last run
    for group in groups:
        blocks = -(-(group.start + group.count) // block_size)
        short = group.start > 0 and group.count <= SHORT
        if runs and short and runs[-1][0].start > 0 and runs[-1][0].count == group.count:
            padded = blocks * (len(runs[-1]) + 1)
            spare = max(PAD_FREE_BLOCKS, PAD_SHARE * total)
            if padded - total - blocks <= spare and padded * block_size <= most_tokens:
                runs[-1].append(group)
                total += blocks
                continue
        runs.append([group])
        total = blocks
    return runs


class ShortIndex:
    """How a run of short chunks of equal length reads its contexts: all whole blocks of all of them at once."""

    def __init__(
        self,
        groups: Sequence[ChunkGroup],
        block_size: int,
        window: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lo, self.hi = groups[0].lo, groups[-1].hi
        self.members, self.count = len(groups), groups[0].count
        starts = np.array([group.start for group in groups])
        ends = starts + self.count
        # first position that the first token of each sees
        lows = np.maximum(starts + 1 - window, 0) if window else np.zeros_like(starts)
        firsts = lows // block_size
        width = int((-(-ends // block_size) - firsts).max())
        blocks = np.empty((self.members, width), dtype=np.int64)
        for row, (group, first, end) in enumerate(zip(groups, firsts, ends, strict=True)):
            used = group.table[first : -(-int(end) // block_size)]
            blocks[row, : len(used)] = used
            blocks[row, len(used) :] = used[-1]  # its own: what is masked is not always finite
        self.pages = Pages(blocks.reshape(-1).tolist(), self.members, device)
        keys = firsts[:, None, None] * block_size + np.arange(width * block_size)
        queries = starts[:, None, None] + np.arange(self.count)[:, None]
        visible = keys <= queries
        if window:
            visible &= keys > queries - window
        self.mask = additive(torch.from_numpy(visible[:, None]).to(device), dtype)
        self._masks: dict[int, Tensor] = {}  # by query heads that share a key head

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, call: Call) -> Tensor:
        """query [members * count, H, D] -> [members * count, H, Dv]; heads that share a key head are folded."""
        heads, kv_heads = query.shape[1], keys.shape[2]
        groups = heads // kv_heads
        if groups not in self._masks:
            self._masks[groups] = self.mask.repeat(1, 1, groups, 1)
        split = query.reshape(self.members, self.count, kv_heads, groups, -1)
        folded = split.permute(0, 2, 3, 1, 4).flatten(2, 3)
        key, value = self.pages.read(keys), self.pages.read(values)
        out = attention(folded, key, value, self._masks[groups], call)
        back = out.unflatten(2, (groups, self.count)).permute(0, 3, 1, 2, 4)
        rows: Tensor = back.reshape(self.members * self.count, heads, -1)
        return rows
