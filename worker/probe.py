"""What a loaded model's attention layers look like, found by running them once on two tokens.

The configuration alone does not tell: head counts, head sizes and windows can differ per layer, and some models keep
state outside of the attention interface. What the layers actually pass is the truth.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from accelgen.worker.attention import Call, UnsupportedAttention, running
from accelgen.worker.faults import LoadError, one_line
from accelgen.worker.kvcache import LayerShape


class ProbePass:
    """Records what each layer hands over, and answers zeros."""

    def __init__(self) -> None:
        self.shapes: dict[int, LayerShape] = {}
        self.softcap = False

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, call: Call) -> Tensor:
        """See AttentionPass."""
        shape = LayerShape(key.shape[1], key.shape[2], value.shape[2], call.window)
        if self.shapes.setdefault(layer, shape) != shape:
            raise UnsupportedAttention(f"layer {layer} calls its attention twice in different ways")
        if query.shape[1] % key.shape[1]:
            raise UnsupportedAttention(
                f"layer {layer} has {query.shape[1]} query heads for {key.shape[1]} key heads"
            )
        self.softcap = self.softcap or bool(call.softcap)
        return query.new_zeros(query.shape[0], query.shape[1], value.shape[2])


def probe_layers(model: Any, name: str) -> tuple[list[LayerShape], bool]:
    """Shapes of all layers in order, and whether any uses a soft cap. Raises LoadError for a model that keeps
    context anywhere else than in the keys and values of the attention interface."""
    config, device = model.config, next(model.parameters()).device
    probe = ProbePass()
    ids = torch.zeros(1, 2, dtype=torch.int64, device=device)
    positions = torch.arange(2, device=device)[None]
    try:
        with torch.inference_mode(), running(probe):
            model(input_ids=ids, position_ids=positions, use_cache=False)
    except Exception as error:  # anything a foreign model's forward pass may raise
        raise LoadError(f"model {name}: does not run on a packed row: {one_line(error)}") from error
    layers = int(config.num_hidden_layers)
    if sorted(probe.shapes) != list(range(layers)):
        raise LoadError(
            f"model {name}: {len(probe.shapes)} of {layers} layers use transformers' attention interface;"
            " recurrent and hybrid models are not served"
        )
    shapes = [probe.shapes[layer] for layer in range(layers)]
    _check_windows(config, shapes, name)
    return shapes, probe.softcap


def _check_windows(config: Any, shapes: list[LayerShape], name: str) -> None:
    """A window that the configuration states must reach the attention call: we see no masks."""
    window = getattr(config, "sliding_window", None)
    if not window or getattr(config, "use_sliding_window", True) is False:
        return
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * len(shapes)
    for layer, (kind, shape) in enumerate(zip(kinds, shapes, strict=True)):
        if kind == "sliding_attention" and shape.window != window:
            raise LoadError(
                f"model {name}: layer {layer} has a sliding window of {window} by its configuration,"
                f" but calls its attention with {shape.window or 'none'}"
            )
