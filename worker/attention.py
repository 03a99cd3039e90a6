"""The door between transformers' models and the paged KV cache.

`register()` adds one attention function to transformers' AttentionInterface. Models call it once per layer with the
packed row: query [1, H, T, D], key and value [1, KV, T, D]; it hands them to the pass that is `running` and returns
[1, T, H, D]. The registry is global to the process and has no room for arguments of ours, hence the one global here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from torch import Tensor, nn

NAME = "accelgen_paged"
HARMLESS = {"dropout", "is_causal", "use_cache", "position_ids", "cache_position", "output_attentions",
            "output_hidden_states", "output_router_logits", "return_dict", "position_embeddings", "past_key_values",
            "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"}  # fmt: skip


class UnsupportedAttention(ValueError):
    """A model asks its attention for something that no backend here does; the text names it."""


class AttentionPass(Protocol):
    """One forward pass over a packed row, as the attention layers see it."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """query [T, H, D], key [T, KV, D], value [T, KV, Dv] of the packed row; returns [T, H, Dv]."""
        ...


class Call:
    """The keywords of one attention call: scale of the scores, window (0: none), soft cap (0: none)."""

    __slots__ = ("scaling", "softcap", "window")

    def __init__(self, scaling: float, window: int, softcap: float) -> None:
        self.scaling, self.window, self.softcap = scaling, window, softcap


_running: AttentionPass | None = None


@contextmanager
def running(current: AttentionPass) -> Iterator[None]:
    """Attention layers called inside belong to `current`."""
    global _running
    assert _running is None, "one forward pass at a time"
    _running = current
    try:
        yield
    finally:
        _running = None


def register() -> None:
    """Makes NAME known to transformers. The mask function gives none: the backends make their own."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def _no_mask(*_: Any, **__: Any) -> None:
    return None


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    assert _running is not None, "an attention layer ran outside of a forward pass of the worker"
    for name, given in others.items():
        if given is not None and name not in HARMLESS:
            raise UnsupportedAttention(
                f"{type(module).__name__} asks its attention for {name!r}, which is not supported"
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = Call(scale, sliding_window or 0, softcap or 0.0)
    layer = int(module.layer_idx)  # type: ignore[arg-type]
    out = _running.attend(
        layer, query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), call
    )
    return out.unsqueeze(0), None
