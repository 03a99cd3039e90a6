"""What the parts of the `torch` backend share: reading blocks of the paged cache, masks, and the attention itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from accelgen.worker.attention import Call

MAX_RUNS = 8


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
