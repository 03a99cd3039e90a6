"""Faster linear layers on CPU: weights packed once for oneDNN, and for long bfloat16 chunks a product in float32.

Two facts, measured (benchmarks/bench_worker.py repeats them): reading a packed weight is 1.2 to 1.8 times faster for
few rows, where the time is memory bandwidth; and a processor without AMX multiplies bfloat16 at half the speed of
float32, so from some number of rows on it pays to expand the weight, multiply, and round the result. From which
number on is measured at load. The packed form replaces the plain weight: memory stays the same, except for an output
layer that shares its weight with the embedding.
"""

from __future__ import annotations

import statistics
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelgen.proto.clocks import now_s

PACK_ROWS = 32  # the batch size that oneDNN lays the packed weight out for
PROBED_ROWS = (64, 128, 256, 512)
PROBES = 3
NEVER = 1 << 60
MIN_WEIGHT = 1 << 14  # smaller weights gain nothing


def packing_works() -> bool:
    """Whether this build of torch has oneDNN's packed linear and it computes what F.linear does."""
    ops = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(ops, "_linear_pointwise")):
        return False
    if not hasattr(ops, "_reorder_linear_weight"):
        return False
    weight = torch.linspace(-1, 1, 48 * 40).view(48, 40)
    rows = torch.linspace(-1, 1, 3 * 40).view(3, 40)
    try:
        packed = ops._reorder_linear_weight(weight, PACK_ROWS)
        return torch.allclose(_multiply(rows, packed, None), F.linear(rows, weight), atol=1e-5)
    except RuntimeError:  # a private operation may change under us: then do without
        return False


def _multiply(rows: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")
    return out


class PackedLinear(nn.Module):
    """Stands in for nn.Linear. `wide_from`: number of rows from which bfloat16 is multiplied in float32."""

    def __init__(self, linear: nn.Linear, wide_from: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.wide_from = wide_from if linear.weight.dtype is torch.bfloat16 else NEVER
        weight = linear.weight.detach()
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        self.bias = linear.bias
        self.nbytes = weight.nbytes

    def forward(self, given: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]"""
        rows = given.numel() // self.in_features
        if rows == 0:
            return given.new_zeros(*given.shape[:-1], self.out_features)
        if rows < self.wide_from:
            return _multiply(given, self.packed, self.bias)
        return self._wide(given)

    def _wide(self, given: Tensor) -> Tensor:
        weight = self.packed.to_dense().float()
        bias = None if self.bias is None else self.bias.float()
        return F.linear(given.float(), weight, bias).to(given.dtype)


def pack_linears(model: nn.Module) -> int:
    """Replaces every nn.Linear of `model` by a packed one; returns the bytes this costs on top (tied weights).

    Does nothing where oneDNN's packed form is missing."""
    linears = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.numel() >= MIN_WEIGHT
    ]
    if not linears or not packing_works():
        return 0
    embeddings = {
        module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    wide_from = _probe_wide([linear for _, _, linear in linears])
    extra = 0
    for parent, name, linear in linears:
        if linear.weight.data_ptr() in embeddings:
            extra += linear.weight.nbytes
        setattr(parent, name, PackedLinear(linear, wide_from))
    return extra


def _probe_wide(linears: list[nn.Linear]) -> int:
    """From how many rows on float32 is the faster product, on the layer kind that costs most in all."""
    sums: dict[Any, list[nn.Linear]] = {}
    for linear in linears:
        sums.setdefault(tuple(linear.weight.shape), []).append(linear)
    group = max(sums.values(), key=lambda group: group[0].weight.numel() * len(group))
    linear = group[0]
    if linear.weight.dtype is not torch.bfloat16:
        return NEVER
    narrow, wide = PackedLinear(linear, NEVER), PackedLinear(linear, 0)
    for rows in PROBED_ROWS:
        given = torch.ones(rows, linear.in_features, dtype=linear.weight.dtype)
        if _median_s(wide, given) < 0.95 * _median_s(narrow, given):
            return rows
    return NEVER


def _median_s(layer: nn.Module, given: Tensor) -> float:
    times = []
    with torch.inference_mode():
        layer(given)
        for _ in range(PROBES):
            begin_s = now_s()
            layer(given)
            times.append(now_s() - begin_s)
    return statistics.median(times)
