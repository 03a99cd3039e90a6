"""Packed, joined and widened linear layers compute what the plain ones do."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from accelgen.worker import linears
from accelgen.worker.linears import NEVER, PackedLinear, Sibling, own_weights, pack_linears

needs_packing = pytest.mark.skipif(
    not linears.packing_works(), reason="no oneDNN in this build of torch"
)


class Block(nn.Module):
    """The layers of a gated block, called as transformers' models call them."""

    def __init__(self, bias: bool, grouped: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(160, 160, bias=bias)
        self.k_proj = nn.Linear(160, 160 // grouped, bias=bias)
        self.v_proj = nn.Linear(160, 160 // grouped, bias=bias)
        self.gate_proj = nn.Linear(160, 256, bias=False)
        self.up_proj = nn.Linear(160, 256, bias=False)
        self.down_proj = nn.Linear(256, 160, bias=False)
        self.tiny = nn.Linear(160, 8)

    def forward(self, x: torch.Tensor) -> list[torch.Tensor]:
        mlp = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return [self.q_proj(x), self.k_proj(x), self.v_proj(x), mlp, self.tiny(x)]


@needs_packing
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 7, 300])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_a_packed_block_equals_the_plain_one(
    bias: bool, rows: int, dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(linears, "WIDE_ROWS", 128)
    monkeypatch.setattr(linears, "_probe_wide", lambda _: 200)
    block = Block(bias, 4).to(dtype).eval()
    given = torch.randn(1, rows, 160, dtype=dtype)
    with torch.inference_mode():
        want = block(given)
        assert pack_linears(block) == 0
        own_weights(block)
        got = block(given)
    assert isinstance(block.k_proj, Sibling) and isinstance(block.down_proj, PackedLinear)
    assert type(block.tiny) is nn.Linear
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=tolerance)


@needs_packing
def test_siblings_called_out_of_turn_or_with_other_inputs_are_still_right() -> None:
    torch.manual_seed(0)
    block = Block(True, 1).eval()
    a, b = torch.randn(2, 1, 3, 160)
    with torch.inference_mode():
        want = [block.v_proj(a), block.k_proj(b), block.q_proj(a), block.k_proj(a), block.v_proj(b)]
        pack_linears(block)
        got = [block.v_proj(a), block.k_proj(b), block.q_proj(a), block.k_proj(a), block.v_proj(b)]
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, atol=1e-5, rtol=1e-5)
    family = block.q_proj.family  # type: ignore[union-attr]
    assert family._given is None and family._product is None  # nothing is kept alive


@needs_packing
def test_a_tied_output_layer_is_counted_as_extra_and_leaves_the_embedding_alone() -> None:
    model = nn.Module()
    model.embedding = nn.Embedding(300, 64)
    model.head = nn.Linear(64, 300, bias=False)
    model.head.weight = model.embedding.weight
    before = model.embedding.weight.clone()
    assert pack_linears(model) == 300 * 64 * 4
    assert torch.equal(model.embedding.weight, before)


@needs_packing
def test_weights_too_large_to_expand_never_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "MAX_WIDE", 160 * 160)
    assert PackedLinear([nn.Linear(160, 161).bfloat16()], 1).wide_from == NEVER
    assert PackedLinear([nn.Linear(160, 160).bfloat16()], 1).wide_from == 1
    block = Block(False, 1)
    pack_linears(block)
    assert isinstance(block.q_proj, PackedLinear)  # joined, they would be too large


def test_without_packing_the_model_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linears, "packing_works", lambda: False)
    block = Block(True, 1)
    assert pack_linears(block) == 0 and type(block.q_proj) is nn.Linear
