"""The paged KV cache: per layer two tensors [num_blocks, block_size, kv_heads, head_dim], zero at the start.

Stale contents are harmless as long as they are finite: masked positions get weight 0. (0 x NaN is NaN, therefore
`scrub` exists, and the memory starts as zeros instead of as whatever was there.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores per token, and its sliding window (0: none)."""

    kv_heads: int
    key_dim: int
    value_dim: int
    window: int = 0

    def token_bytes(self, dtype: torch.dtype) -> int:
        return self.kv_heads * (self.key_dim + self.value_dim) * dtype.itemsize


class KvCache:
    """Keys and values of all layers. `keys[i]` is [num_blocks, block_size, kv_heads, key_dim] of layer i."""

    def __init__(
        self,
        shapes: Sequence[LayerShape],
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.shapes, self.num_blocks, self.block_size = tuple(shapes), num_blocks, block_size

        def zeros(heads: int, dim: int) -> Tensor:
            return torch.zeros(num_blocks, block_size, heads, dim, dtype=dtype, device=device)

        self.keys = [zeros(shape.kv_heads, shape.key_dim) for shape in shapes]
        self.values = [zeros(shape.kv_heads, shape.value_dim) for shape in shapes]

    @property
    def total_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))

    def write(self, layer: int, slots: Tensor, key: Tensor, value: Tensor) -> None:
        """Stores key [T, kv_heads, key_dim] and value [T, kv_heads, value_dim] at `slots` [T] (block * size +
        offset)."""
        keys, values = self.keys[layer], self.values[layer]
        keys.view(-1, *keys.shape[2:]).index_copy_(0, slots, key)
        values.view(-1, *values.shape[2:]).index_copy_(0, slots, value)

    def copy(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copies whole blocks, all sources read before any target is written."""
        if not sources:
            return
        device = self.keys[0].device
        source = torch.tensor(sources, device=device)
        target = torch.tensor(targets, device=device)
        for tensor in (*self.keys, *self.values):
            tensor[target] = tensor[source]

    def scrub(self, blocks: Sequence[int]) -> None:
        """Replaces what is not finite by zero in `blocks`, so that their next owner does not inherit it."""
        if not blocks:
            return
        index = torch.tensor(sorted(set(blocks)), device=self.keys[0].device)
        for tensor in (*self.keys, *self.values):
            tensor[index] = tensor[index].nan_to_num_(0.0, 0.0, 0.0)
