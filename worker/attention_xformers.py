"""The `xformers` backend: CUDA, float16 and bfloat16. Not exercised on a GPU yet; its masks are tested on CPU.

Decodes read the cache where it lies, through block tables (the split-K kernel with a paged mask; with a sliding window
the mask that skips keys at the front). Prefill chunks use block-diagonal causal masks aligned at the bottom right: on
the packed row itself where there is no past, else on their gathered context. Which kernel serves them is left to
xformers (flash attention 3 or 2, cutlass). Whatever these kernels cannot do is left to the `torch` backend: see
`covers`.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from accelgen.worker.attention import Call
from accelgen.worker.kvcache import KvCache, LayerShape
from accelgen.worker.packing import ChunkGroup, DecodeGroup, Packed

HEAD_DIMS = {16, 32, 64, 128, 256}  # of the split-K kernel, and at most 256 of flash attention
KERNEL_BLOCK = 64  # keys that the split-K kernel takes at a time by default; must divide the page
MIN_CAPABILITY = (8, 0)
GATHER_BYTES = (
    128 << 20
)  # keys and values of one layer that are gathered for chunks with a past at a time


def covers(
    shapes: Sequence[LayerShape], softcap: bool, dtype: torch.dtype, block_size: int
) -> str | None:
    """None if this backend can serve such layers, else the reason why not."""
    if importlib.util.find_spec("xformers") is None:
        return "xformers is not installed"
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if torch.cuda.get_device_capability() < MIN_CAPABILITY:
        return f"the GPU's compute capability is below {MIN_CAPABILITY[0]}.{MIN_CAPABILITY[1]}"
    return unfit(shapes, softcap, dtype, block_size)


def unfit(
    shapes: Sequence[LayerShape], softcap: bool, dtype: torch.dtype, block_size: int
) -> str | None:
    """The part of `covers` that depends on the model alone."""
    if dtype not in (torch.float16, torch.bfloat16):
        return "its paged kernel computes in float16 and bfloat16 only"
    if softcap:
        return "it has no soft cap"
    if block_size < 16 or block_size & (block_size - 1):
        return f"its paged kernel needs a block size of 16, 32, 64, ..., not {block_size}"
    for shape in shapes:
        if shape.key_dim != shape.value_dim or shape.key_dim not in HEAD_DIMS:
            return f"it has no kernel for heads of {shape.key_dim} and {shape.value_dim}"
    return None


def _fmha() -> Any:
    """xformers.ops.fmha, imported when first needed and without its warning about missing extensions."""
    logging.getLogger("xformers").setLevel(logging.ERROR)
    from xformers.ops import fmha

    return fmha


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float, op: Any) -> Tensor:
    """query [1, T, KV, G, D], key and value [1, N, KV, G, D] (heads of a group share memory) -> [1, T, KV, G, D]."""
    out: Tensor = _fmha().memory_efficient_attention_forward(
        query, key, value, attn_bias=bias, scale=scale, op=op
    )
    return out


def paged_op(block_size: int) -> Any:
    """The split-K kernel for pages of `block_size` tokens. Its step must divide the page."""
    base = _fmha().triton_splitk.FwOp
    if block_size % KERNEL_BLOCK == 0:
        return base
    return type(f"PagedFwOp{block_size}", (base,), {"BLOCK_N": block_size})


@dataclass(frozen=True)
class Chunks:
    """Prefill chunks that attend in one call: rows [lo, hi); `slots` of their whole contexts, None for the rows
    themselves."""

    lo: int
    hi: int
    bias: Any
    slots: Tensor | None


class XformersPass:
    """One iteration over `packed`; masks are made once per window and shared by all layers."""

    def __init__(self, cache: KvCache, packed: Packed) -> None:
        self.cache, self.packed = cache, packed
        self.device = packed.ids.device
        self._paged: dict[int, Any] = {}
        self._chunks: dict[int, list[Chunks]] = {}
        self._op = paged_op(cache.block_size) if packed.decodes else None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See AttentionPass."""
        self.cache.write(layer, self.packed.slots, key, value)
        keys, values = self.cache.keys[layer].flatten(0, 1), self.cache.values[layer].flatten(0, 1)
        if call.window not in self._chunks:
            self._chunks[call.window] = self._make_chunks(call.window)
            if self.packed.decodes:
                self._paged[call.window] = self._make_paged(call.window)
        parts: list[Tensor] = []
        if self.packed.decodes:
            ones = query[: self.packed.decodes[-1].hi]
            parts.append(self._call(ones, keys, values, self._paged[call.window], call, self._op))
        for chunks in self._chunks[call.window]:
            rows = slice(chunks.lo, chunks.hi)
            if chunks.slots is None:
                pair = key[rows], value[rows]
            else:
                pair = keys.index_select(0, chunks.slots), values.index_select(0, chunks.slots)
            parts.append(self._call(query[rows], *pair, chunks.bias, call, None))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    @staticmethod
    def _call(query: Tensor, key: Tensor, value: Tensor, bias: Any, call: Call, op: Any) -> Tensor:
        """query [T, H, D] in groups that share a key head; the group dimension of key and value has stride 0."""
        rows, heads, dim = query.shape
        kv_heads = key.shape[1]
        groups = heads // kv_heads

        def expand(tensor: Tensor) -> Tensor:
            return tensor[None, :, :, None].expand(-1, -1, -1, groups, -1)

        folded = query.reshape(1, rows, kv_heads, groups, dim)
        return attend(folded, expand(key), expand(value), bias, call.scaling, op).reshape(
            rows, heads, dim
        )

    def _make_paged(self, window: int) -> Any:
        biases = _fmha().attn_bias
        ends, tables = _decode_lists(self.packed.decodes)
        size, count = self.cache.block_size, len(ends)
        lows = [max(0, end - window) if window else 0 for end in ends]
        firsts = [low // size for low in lows]
        width = max(-(-end // size) - first for end, first in zip(ends, firsts, strict=True))
        pages = np.zeros((count, width), dtype=np.int32)
        for row, (table, first, end) in enumerate(zip(tables, firsts, ends, strict=True)):
            used = table[first : -(-end // size)]
            pages[row, : len(used)] = used
        block_tables = torch.from_numpy(pages).to(self.device)
        ones, padding = [1] * count, width * size
        if not window:
            return biases.PagedBlockDiagonalPaddedKeysMask.from_seqlens(
                ones, ends, block_tables, size, device=self.device
            )
        skipped = [low - first * size for low, first in zip(lows, firsts, strict=True)]
        starts = [row * padding + skip for row, skip in enumerate(skipped)]
        visible = [end - low for end, low in zip(ends, lows, strict=True)]
        gappy = biases.BlockDiagonalGappyKeysMask.from_seqlens(
            ones, [*starts, count * padding], visible, device=self.device
        )
        return gappy.make_paged(block_tables, size, padding, biases.PagedBlockDiagonalGappyKeysMask)

    def _make_chunks(self, window: int) -> list[Chunks]:
        """One call for each run of neighbours that all have none, or all a past; of these so many that their contexts,
        which are gathered, are of at most GATHER_BYTES in a layer."""
        most = GATHER_BYTES // max(map(_token_bytes, self.cache.keys, self.cache.values))
        runs: list[list[ChunkGroup]] = []
        gathered = 0
        for group in self.packed.chunks:
            length = group.start + group.count if group.start else 0
            gathered += length
            if runs and (runs[-1][-1].start > 0) == (group.start > 0) and gathered <= most:
                runs[-1].append(group)
            else:
                runs.append([group])
                gathered = length
        return [self._make_run(run, window) for run in runs]

    def _make_run(self, run: list[ChunkGroup], window: int) -> Chunks:
        counts = [group.count for group in run for _ in range(group.members)]
        past = run[0].start > 0
        lengths = [group.start + group.count for group in run] if past else counts
        mask = _fmha().attn_bias.BlockDiagonalMask.from_seqlens(counts, lengths, device=self.device)
        bias = (
            mask.make_local_attention_from_bottomright(window)
            if window
            else mask.make_causal_from_bottomright()
        )
        slots = torch.cat([self._slots(group) for group in run]) if past else None
        return Chunks(run[0].lo, run[-1].hi, bias, slots)

    def _slots(self, group: ChunkGroup) -> Tensor:
        """Where the whole context of a chunk lies in the cache."""
        size, length = self.cache.block_size, group.start + group.count
        blocks = torch.tensor(list(group.table[: -(-length // size)]), device=self.device)
        offsets = torch.arange(size, device=self.device)
        return (blocks[:, None] * size + offsets).flatten()[:length]


def _token_bytes(keys: Tensor, values: Tensor) -> int:
    """Of one token's keys and values in a layer; both [blocks, size, heads, dim]."""
    return sum(one[0, 0].numel() * one.element_size() for one in (keys, values))


def _decode_lists(groups: Sequence[DecodeGroup]) -> tuple[list[int], list[Sequence[int]]]:
    """Context lengths and tables of all decodes, in the order of their rows."""
    ends = [end for group in groups for end in group.ends]
    tables = [table for group in groups for table in group.tables]
    return ends, tables
