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
from accelgen.worker.packing import Packed, Span, pack

MakePass = Callable[[KvCache, Packed], AttentionPass]


@dataclass(frozen=True)
class Logits:
    """float32 [S, vocab]; row j belongs to span `order[j]` of the spans given."""

    rows: Tensor
    order: tuple[int, ...]


class Runner:
    """A loaded model with its KV cache. One forward pass at a time."""

    def __init__(self, loaded: Loaded, cache: KvCache, make_pass: MakePass = TorchPass) -> None:
        self.loaded, self.cache, self._make_pass = loaded, cache, make_pass

    def forward(self, spans: Sequence[Span]) -> Logits:
        """Processes `spans` in one packed pass. Raises whatever the model raises; the cache then holds nothing of value
        at the spans' own positions, and is untouched elsewhere."""
        packed = pack(spans, self.cache.block_size, self.loaded.device)
        with torch.inference_mode(), running(self._make_pass(self.cache, packed)):
            out = self.loaded.model(
                input_ids=packed.ids[None],
                position_ids=packed.positions[None],
                use_cache=False,
                logits_to_keep=packed.sample_rows,
            )
            return Logits(out.logits[0].float(), packed.sample_order)
