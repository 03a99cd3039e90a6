"""The model runner: spans in, logits out, keys and values kept in the paged cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accelgen.worker.attention import AttentionPass, running
from accelgen.worker.attention_torch import TorchPass
from accelgen.worker.kvcache import KvCache
from accelgen.worker.model import Loaded
from accelgen.worker.packing import Packed, Span, pack, split

CPU_PASS_TOKENS = 2048
"""Tokens of one forward pass on CPU: more bring no speed, but large intermediate tensors."""

GATHER_BYTES = 16 << 20
"""Keys and values of one layer that are gathered at a time: larger blocks of memory are costlier than more calls."""

MakePass = Callable[[KvCache, Packed], AttentionPass]


@dataclass(frozen=True)
class Logits:
    """float32 [S, vocab]; row j belongs to span `order[j]` of the spans given, as many rows as it asked for, in the
    order of its tokens."""

    rows: Tensor
    order: tuple[int, ...]


class Runner:
    """A loaded model with its KV cache. One forward pass at a time."""

    def __init__(self, loaded: Loaded, cache: KvCache, make_pass: MakePass = TorchPass) -> None:
        self.loaded, self.cache, self._make_pass = loaded, cache, make_pass
        widest = max(shape.token_bytes(loaded.dtype) for shape in loaded.shapes)
        self._group_tokens = GATHER_BYTES // widest
        self._limit = CPU_PASS_TOKENS if loaded.device.type == "cpu" else 1 << 30

    def forward(self, spans: Sequence[Span]) -> Logits:
        """Processes `spans`, in one packed pass or, if they are very long, in a few. Raises whatever the model raises;
        the cache then holds nothing of value at the spans' own positions, and is untouched elsewhere."""
        parts: list[Tensor] = []
        order: list[int] = []
        for run in split(spans, self._limit):
            rows, sampling = self._pass([span for _, span in run])
            parts.append(rows)
            order += [run[at][0] for at in sampling]
        return Logits(parts[0] if len(parts) == 1 else torch.cat(parts), tuple(order))

    def _pass(self, spans: Sequence[Span]) -> tuple[Tensor, tuple[int, ...]]:
        size, device = self.cache.block_size, self.loaded.device
        packed = pack(spans, size, device, self._group_tokens)
        with torch.inference_mode(), running(self._make_pass(self.cache, packed)):
            out = self.loaded.model(
                input_ids=packed.ids[None],
                position_ids=packed.positions[None],
                use_cache=False,
                logits_to_keep=packed.sample_rows,
            )
            return out.logits[0].float(), packed.sample_order
