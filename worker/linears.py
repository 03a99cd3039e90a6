"""Faster linear layers on CPU: weights packed once for oneDNN, siblings joined, long bfloat16 products in float32.

Three facts, measured (benchmarks/bench_worker.py repeats them). Reading a packed weight is 1.2 to 1.8 times faster for
few rows, where the time is memory bandwidth. Layers that read the same input (query, key, value; gate, up) are one
product instead of two or three. And a processor without AMX multiplies bfloat16 at half the speed of float32, so from
some number of rows on it pays to expand the weight, multiply, and round the result; that number is measured at load.

The packed form replaces the plain weight, so memory stays the same, except for an output layer that shares its weight
with the embedding. The load-time self-check compares the result with the layers as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from accelgen.proto.clocks import now_s

PACK_ROWS = 32  # the batch size that oneDNN lays the packed weight out for
WIDE_ROWS = 1024
PROBED_ROWS = (64, 128, 256, 512)
PROBES = 5
NEVER = 1 << 60
MIN_WEIGHT = 1 << 14  # elements; smaller weights gain nothing
MAX_WIDE = (
    1 << 26
)  # elements of a weight that may be expanded or joined: 256 MiB for the moment of one product
SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names under which transformers' models call layers one after the other on the same input."""


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
    """One product for one or more nn.Linear with the same input; `wide_from` is the number of rows from which bfloat16
    is multiplied in float32."""

    def __init__(self, linears: Sequence[nn.Linear], wide_from: int) -> None:
        super().__init__()
        weights = [linear.weight.detach() for linear in linears]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        narrow = weight.dtype is torch.bfloat16 and weight.numel() <= MAX_WIDE
        self.in_features, self.out_features = weight.shape[1], weight.shape[0]
        self.wide_from = wide_from if narrow else NEVER
        self.packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
        self.bias = _join_biases(linears)

    def forward(self, given: Tensor) -> Tensor:
        """[..., in_features] -> [..., out_features]"""
        rows = given.numel() // self.in_features
        if rows == 0:
            return given.new_zeros(*given.shape[:-1], self.out_features)
        if rows < self.wide_from:
            return _multiply(given, self.packed, self.bias)
        return self._wide(given.reshape(rows, -1)).view(*given.shape[:-1], self.out_features)

    def _wide(self, given: Tensor) -> Tensor:
        """[rows, in_features] in float32, a slice of rows at a time: what is expanded stays in the cache."""
        weight = self.packed.to_dense(torch.float32)
        bias = None if self.bias is None else self.bias.float()
        out = given.new_empty(given.shape[0], self.out_features)
        for lo in range(0, given.shape[0], WIDE_ROWS):
            rows = slice(lo, lo + WIDE_ROWS)
            out[rows] = F.linear(given[rows].float(), weight, bias)
        return out


class Siblings:
    """The joined product of layers that are called in turn with the same tensor: computed at the first call, handed out
    by column at each, forgotten at the last."""

    def __init__(self, joined: PackedLinear, count: int) -> None:
        self.joined, self.last = joined, count - 1
        self._given: Tensor | None = None
        self._product: Tensor | None = None

    def columns(self, given: Tensor, index: int, lo: int, hi: int) -> Tensor:
        if index == 0 or self._product is None or given is not self._given:
            self._given, self._product = given, self.joined(given)
        part = self._product[..., lo:hi]
        if index == self.last:
            self._given = self._product = None
        return part


class Sibling(nn.Module):
    """Stands in for one of the joined layers: columns [lo, hi) of the product."""

    def __init__(self, family: Siblings, index: int, lo: int, hi: int) -> None:
        super().__init__()
        self.family, self.index, self.lo, self.hi = family, index, lo, hi

    def forward(self, given: Tensor) -> Tensor:
        """[..., in_features] -> [..., hi - lo]; a view of the joined product."""
        return self.family.columns(given, self.index, self.lo, self.hi)


def pack_linears(model: nn.Module) -> int:
    """Replaces the nn.Linear layers of `model` by packed ones; returns the bytes this costs on top (tied weights).

    Does nothing where oneDNN's packed form is missing."""
    singles = _find_linears(model)
    if not singles or not packing_works():
        return 0
    embeddings = {
        module.weight.data_ptr() for module in model.modules() if isinstance(module, nn.Embedding)
    }
    extra = sum(
        linear.weight.nbytes for _, _, linear in singles if linear.weight.data_ptr() in embeddings
    )
    wide_from = _probe_wide([linear for _, _, linear in singles])
    for parent in list(model.modules()):
        for names in SIBLINGS:
            _join(parent, names, wide_from)
    for parent, name, linear in _find_linears(model):
        setattr(parent, name, PackedLinear([linear], wide_from))
    return extra


def own_weights(model: nn.Module) -> None:
    """Copies what is left of the weight files' memory maps: a map stays resident as long as one tensor uses it."""
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()


def _find_linears(model: nn.Module) -> list[tuple[nn.Module, str, nn.Linear]]:
    return [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Linear and child.weight.numel() >= MIN_WEIGHT
    ]


def _join(parent: nn.Module, names: Sequence[str], wide_from: int) -> None:
    """Joins the children `names` of `parent` if all are plain linear layers that fit together."""
    found = [getattr(parent, name, None) for name in names]
    linears = [child for child in found if type(child) is nn.Linear]
    if len(linears) != len(names) or len({linear.in_features for linear in linears}) > 1:
        return
    size = sum(linear.weight.numel() for linear in linears)
    if not MIN_WEIGHT <= size <= MAX_WIDE or len({linear.bias is None for linear in linears}) > 1:
        return
    family = Siblings(PackedLinear(linears, wide_from), len(linears))
    lo = 0
    for index, (name, linear) in enumerate(zip(names, linears, strict=True)):
        setattr(parent, name, Sibling(family, index, lo, lo + linear.out_features))
        lo += linear.out_features


def _join_biases(linears: Sequence[nn.Linear]) -> Tensor | None:
    biases = [linear.bias.detach() for linear in linears if linear.bias is not None]
    return torch.cat(biases) if biases else None


def _probe_wide(linears: list[nn.Linear]) -> int:
    """From how many rows on float32 is the faster product, on the layer kind that costs most in all."""
    kinds: dict[Any, list[nn.Linear]] = {}
    for linear in linears:
        if linear.weight.numel() <= MAX_WIDE:
            kinds.setdefault(tuple(linear.weight.shape), []).append(linear)
    if not kinds:
        return NEVER
    linear = max(kinds.values(), key=lambda kind: kind[0].weight.numel() * len(kind))[0]
    if linear.weight.dtype is not torch.bfloat16:
        return NEVER
    narrow, wide = PackedLinear([linear], NEVER), PackedLinear([linear], 0)
    for rows in PROBED_ROWS:
        given = torch.ones(rows, linear.in_features, dtype=linear.weight.dtype)
        if best_s(partial(wide, given)) < 0.95 * best_s(partial(narrow, given)):
            return rows
    return NEVER


def best_s(work: Callable[[], Any]) -> float:
    """The shortest of a few times: other processes are starting beside us."""
    times = []
    with torch.inference_mode():
        work()
        for _ in range(PROBES):
            begin_s = now_s()
            work()
            times.append(now_s() - begin_s)
    return min(times)
