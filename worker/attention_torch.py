"""The `torch` backend: paged attention from PyTorch's own operations, on any device.

Decodes: whole blocks are gathered with one index_select per group, query heads that share a key head are folded into
the query length, and one scaled_dot_product_attention with a mask does the group (measured:
advanced indexing and per-request loops are 2 to 4 times slower). Prefill chunks: causal attention on the packed row
itself where there is no past, else on the gathered context, in pieces that bound the mask. `wide` computes them in
float32: twice as fast as bfloat16 on processors without AMX (measured at load), and more exact. Short chunks of equal
length with a past, as where drafts are verified, attend together like decodes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from accelgen.worker.attention import Call
from accelgen.worker.kvcache import KvCache
from accelgen.worker.linears import best_s
from accelgen.worker.packing import (
    PAD_FREE_BLOCKS,
    PAD_SHARE,
    ChunkGroup,
    DecodeGroup,
    Packed,
)

MAX_RUNS = 8
SHORT = 16  # tokens of a chunk that attends together with others of its length
SHORT_BYTES = 16 << 20  # keys and values of one layer that are gathered for them at a time
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
        blocks = np.zeros((self.members, width), dtype=np.int64)
        for row, (group, first, end) in enumerate(zip(groups, firsts, ends, strict=True)):
            used = group.table[first : -(-int(end) // block_size)]
            blocks[row, : len(used)] = used
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
        return back.reshape(self.members * self.count, heads, -1)


class Pages:
    """Blocks [count * n] to read: of one request as slices of the cache where they lie side by side (no copy at all for
    a single run), else gathered."""

    def __init__(self, blocks: Sequence[int], count: int, device: torch.device) -> None:
        self.count = count
        self.runs = _runs(blocks) if count == 1 else []
        if not 0 < len(self.runs) <= MAX_RUNS:
            self.runs = []
            self.index = torch.tensor(blocks, dtype=torch.int64, device=device)

    def read(self, pages: Tensor) -> Tensor:
        """Of pages [num_blocks, block_size, KV, D]: [count, KV, n * block_size, D]."""
        num_blocks, _, heads, dim = pages.shape
        if not self.runs:
            rows = pages.view(num_blocks, -1).index_select(0, self.index)
        elif len(self.runs) == 1:
            rows = pages[self.runs[0]]
        else:
            rows = torch.cat([pages[run] for run in self.runs])
        return rows.view(self.count, -1, heads, dim).transpose(1, 2)


def _runs(blocks: Sequence[int]) -> list[slice]:
    """Consecutive numbers as slices, at most MAX_RUNS + 1 of them."""
    runs: list[slice] = []
    for block in blocks:
        if runs and runs[-1].stop == block:
            runs[-1] = slice(runs[-1].start, block + 1)
        elif len(runs) > MAX_RUNS:
            break
        else:
            runs.append(slice(block, block + 1))
    return runs


def causal_mask(
    first: int, last: int, key_lo: int, key_hi: int, window: int, device: torch.device
) -> Tensor:
    """Bool [last - first, key_hi - key_lo]: query position i sees key positions j <= i, and j > i - window."""
    query = torch.arange(first, last, device=device)[:, None]
    key = torch.arange(key_lo, key_hi, device=device)[None, :]
    mask = key <= query
    return mask & (key > query - window) if window else mask


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as what is added to the scores: 0 where visible, -inf elsewhere. Made once for all layers."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(
        ~visible, float("-inf")
    )


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    call: Call,
    is_causal: bool = False,
) -> Tensor:
    """softmax(query key^T * scaling) value with an additive mask, [B, H, Q, D] x [B, KV, T, D] -> [B, H, Q, Dv]."""
    if call.softcap:
        return _capped(query, key, value, mask, call, is_causal)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=is_causal,
        scale=call.scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def _capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, call: Call, is_causal: bool
) -> Tensor:
    """With scores squeezed to softcap * tanh(score / softcap) before the mask (Gemma 2)."""
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = torch.matmul(query, key.transpose(2, 3)) * call.scaling
    scores = torch.tanh(scores / call.softcap) * call.softcap
    if is_causal:
        visible = causal_mask(0, query.shape[2], 0, key.shape[2], 0, query.device)
        mask = additive(visible, scores.dtype)
    if mask is not None:
        scores = scores + mask
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    return torch.matmul(weights, value)


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
