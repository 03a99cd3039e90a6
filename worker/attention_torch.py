"""The `torch` backend: paged attention from PyTorch's own operations, on any device.

Decodes: whole blocks are gathered with one index_select per group, query heads that share a key head are folded into
the query length, and one scaled_dot_product_attention with a mask does the group (measured:
advanced indexing and per-request loops are 2 to 4 times slower). Prefill chunks: causal attention on the packed row
itself where there is no past, else on the gathered context, in pieces that bound the mask. `wide` computes them in
float32: twice as fast as bfloat16 on processors without AMX (measured at load), and more exact. Short chunks of equal
length with a past, as where drafts are verified, attend together like decodes.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accelgen.worker.attention import Call
from accelgen.worker.attention_pages import Pages, additive, attention, causal_mask
from accelgen.worker.attention_short import SHORT_BYTES, ShortIndex, short_runs
from accelgen.worker.kvcache import KvCache
from accelgen.worker.linears import best_s
from accelgen.worker.packing import ChunkGroup, DecodeGroup, Packed

QUERY_PIECE = 512  # rows of a chunk with a past that attend at a time; the mask is [512, context]


class TorchPass:
    """One iteration over `packed`. Index tensors and masks are made once per window and shared by all layers."""

    def __init__(self, cache: KvCache, packed: Packed, wide: bool = False) -> None:
        self.cache, self.packed = cache, packed
        self.dtype = cache.keys[0].dtype
        self.chunk_dtype = torch.float32 if wide else self.dtype
        self._decodes: dict[int, list[DecodeIndex]] = {}
        self._chunks: dict[int, list[ChunkIndex | ShortIndex]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See AttentionPass. Writes key and value first: a token attends to itself."""
        self.cache.write(layer, self.packed.slots, key, value)
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        parts: list[Tensor] = []
        if call.window not in self._decodes:
            self._index(call.window)
        for decode in self._decodes[call.window]:
            parts.append(decode.attend(query[decode.lo : decode.hi], keys, values, call))
        for chunk in self._chunks[call.window]:
            if isinstance(chunk, ShortIndex):
                parts.append(chunk.attend(query[chunk.lo : chunk.hi], keys, values, call))
                continue
            rows, wide = slice(chunk.group.lo, chunk.group.hi), self.chunk_dtype
            given = query[rows].to(wide)
            if chunk.pieces:
                out = chunk.attend_past(given, keys, values, call)
            else:
                out = chunk.attend_self(given, key[rows].to(wide), value[rows].to(wide), call)
            parts.append(out.to(query.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _index(self, window: int) -> None:
        size, device = self.cache.block_size, self.packed.ids.device
        self._decodes[window] = [
            DecodeIndex(group, size, window, self.dtype, device) for group in self.packed.decodes
        ]
        widest = max(shape.token_bytes(self.dtype) for shape in self.cache.shapes)
        self._chunks[window] = [
            ShortIndex(run, size, window, self.dtype, device)
            if len(run) > 1
            else ChunkIndex(run[0], size, window, self.chunk_dtype, device)
            for run in short_runs(self.packed.chunks, size, SHORT_BYTES // widest)
        ]


class DecodeIndex:
    """Which blocks a group of decodes reads, and what of them is masked."""

    def __init__(
        self,
        group: DecodeGroup,
        block_size: int,
        window: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.lo, self.hi = group.lo, group.hi
        ends = np.asarray(group.ends)
        # first visible position of each
        lows = np.maximum(ends - window, 0) if window else np.zeros_like(ends)
        firsts = lows // block_size
        width = int((-(-ends // block_size) - firsts).max())
        blocks = np.zeros((len(ends), width), dtype=np.int64)
        for row, (table, first, end) in enumerate(zip(group.tables, firsts, ends, strict=True)):
            used = table[first : -(-int(end) // block_size)]
            blocks[row, : len(used)] = used
        self.pages = Pages(blocks.reshape(-1).tolist(), len(ends), device)
        positions = firsts[:, None] * block_size + np.arange(width * block_size)[None, :]
        visible = (positions < ends[:, None]) & (positions >= lows[:, None])
        self.mask: Tensor | None = None
        if not visible.all():
            self.mask = additive(torch.from_numpy(visible[:, None, None, :]).to(device), dtype)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor, call: Call) -> Tensor:
        """query [B, H, D] -> [B, H, Dv]"""
        count, heads, _ = query.shape
        kv_heads = keys.shape[2]
        folded = query.reshape(count, kv_heads, heads // kv_heads, -1)
        key, value = self.pages.read(keys), self.pages.read(values)
        return attention(folded, key, value, self.mask, call).reshape(count, heads, -1)


class ChunkIndex:
    """How a group of prefill chunks attends: on itself, or piece by piece on its gathered past and itself."""

    def __init__(
        self,
        group: ChunkGroup,
        block_size: int,
        window: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.group, self.block_size, self.dtype = group, block_size, dtype
        self.pieces: list[tuple[int, int, int, int, Tensor]] = []  # rows lo, hi; keys lo, hi; mask
        self.self_mask: Tensor | None = None
        if group.start > 0:
            self._cut(window, device)
        elif window and group.count > window:
            mask = causal_mask(0, group.count, 0, group.count, window, device)
            self.self_mask = additive(mask, dtype)

    def _cut(self, window: int, device: torch.device) -> None:
        group, size = self.group, self.block_size
        end = group.start + group.count
        low = max(0, group.start - window + 1) if window else 0
        self.base = low // size * size
        used = list(group.table[low // size : -(-end // size)])
        self.pages = Pages(used, 1, device)
        for lo in range(0, group.count, QUERY_PIECE):
            hi = min(lo + QUERY_PIECE, group.count)
            first, last = group.start + lo, group.start + hi
            key_lo = max(self.base, first - window + 1) if window else 0
            mask = causal_mask(first, last, key_lo, last, window, device)
            self.pieces.append((lo, hi, key_lo, last, additive(mask, self.dtype)))

    def attend_self(self, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """Chunks without a past: query [n * count, H, D] -> [n * count, H, Dv]"""
        members, count = self.group.members, self.group.count

        def split(tensor: Tensor) -> Tensor:
            return tensor.reshape(members, count, *tensor.shape[1:]).transpose(1, 2)

        out = attention(
            split(query), split(key), split(value), self.self_mask, call, self.self_mask is None
        )
        return out.transpose(1, 2).flatten(0, 1)

    def attend_past(self, query: Tensor, keys: Tensor, values: Tensor, call: Call) -> Tensor:
        """A chunk with a past: query [count, H, D] -> [count, H, Dv]"""
        key = self.pages.read(keys).to(self.dtype)
        value = self.pages.read(values).to(self.dtype)
        parts = []
        for lo, hi, key_lo, key_hi, mask in self.pieces:
            span = slice(key_lo - self.base, key_hi - self.base)
            rows = query[lo:hi].transpose(0, 1).unsqueeze(0)
            out = attention(rows, key[:, :, span], value[:, :, span], mask, call)
            parts.append(out[0].transpose(0, 1))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def float32_is_faster(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether causal attention over a chunk of 256 is faster in float32, conversions included."""
    if dtype is not torch.bfloat16:
        return False
    chunk = torch.ones(1, 8, 256, head_dim, dtype=dtype)

    def narrow() -> Tensor:
        return F.scaled_dot_product_attention(chunk, chunk, chunk, is_causal=True)

    def wide() -> Tensor:
        given = chunk.float()
        out = F.scaled_dot_product_attention(given, chunk.float(), chunk.float(), is_causal=True)
        return out.to(dtype)

    return best_s(wide) < 0.95 * best_s(narrow)
