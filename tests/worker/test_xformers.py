"""The xformers backend without a GPU: its masks and block tables, carried out densely by what the masks say they mean.

xformers' biases can be materialised on CPU; a dense attention with that stands in for the kernels. Everything else is
the backend's own code: tables, sequence lengths, windows, grouping of heads, order of rows."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from accelgen.worker import attention_xformers as backend
from accelgen.worker.kvcache import LayerShape
from accelgen.worker.packing import Span, pack

pytest.importorskip("xformers")


def dense(query: Tensor, key: Tensor, value: Tensor, bias: Any, scale: float, op: Any) -> Tensor:
    """What a kernel has to compute, from the bias alone."""
    rows, groups = query.shape[1], query.shape[3]
    paged = hasattr(bias, "block_tables")
    length = bias.block_tables.numel() * bias.page_size if paged else key.shape[1]
    mask = bias.materialize((1, 1, rows, length))[0, 0]
    key, value = (
        key[0, : mask.shape[-1]],
        value[0, : mask.shape[-1]],
    )  # up to the last block in a table
    assert (op is not None) == paged
    assert key.stride(2) == 0 or groups == 1  # heads of a group share their keys
    scores = torch.einsum("tkgd,nkgd->kgtn", query[0], key) * scale + mask
    return torch.einsum("kgtn,nkgd->tkgd", scores.softmax(-1), value)[None]


@pytest.mark.parametrize("gathered", [backend.GATHER_BYTES, 8000])
@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen3", "opt"])
def test_its_masks_mean_what_generate_computes(
    bench: Any, drive: Any, monkeypatch: pytest.MonkeyPatch, architecture: str, gathered: int
) -> None:
    """With little room for what is gathered, each chunk with a past attends by itself."""
    monkeypatch.setattr(backend, "GATHER_BYTES", gathered)
    made = bench(architecture)
    monkeypatch.setattr(backend, "attend", dense)
    monkeypatch.setattr(made.core.runner, "_make_pass", backend.XformersPass)
    Driver, Live = drive
    for seed in range(3):
        random = Random(seed)
        driver = Driver(made.core, random)
        driver.free.remove(
            0
        )  # pads the tables: a materialised mask cannot tell it from a block in use
        for id, (length, want) in enumerate([(40, 5), (3, 20), (23, 4), (23, 9)], 1):
            driver.add(Live(id, [random.randrange(97) for _ in range(length)], want))
        driver.run(max_chunk=random.choice([5, 23]))
        for request in driver.requests.values():
            with torch.inference_mode():
                logits = made.reference(torch.tensor([request.tokens])).logits[0]
            for at in range(len(request.prompt), len(request.tokens)):
                got = driver.logits[request.id, at]
                torch.testing.assert_close(got, logits[at - 1], atol=1e-4, rtol=0)


def test_what_it_cannot_do_is_said() -> None:
    plain = [LayerShape(2, 64, 64)]
    assert backend.unfit(plain, False, torch.bfloat16, 16) is None
    assert "float16" in (backend.unfit(plain, False, torch.float32, 16) or "")
    assert "soft cap" in (backend.unfit(plain, True, torch.bfloat16, 16) or "")
    assert "block size" in (backend.unfit(plain, False, torch.bfloat16, 24) or "")
    assert "96" in (backend.unfit([LayerShape(2, 96, 96)], False, torch.bfloat16, 16) or "")
    assert "192 and 128" in (
        backend.unfit([LayerShape(2, 192, 128)], False, torch.bfloat16, 16) or ""
    )


def test_the_kernel_step_divides_the_page() -> None:
    for block_size in (16, 32, 64, 128):
        assert block_size % backend.paged_op(block_size).BLOCK_N == 0
    assert backend.paged_op(16).NAME == backend.paged_op(64).NAME


def test_contexts_are_gathered_a_part_at_a_time(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verifications in every request: their contexts together would be as large as the cache."""
    cache = bench("llama").core.runner.cache
    token = 2 * cache.keys[0][0, 0].numel() * cache.keys[0].element_size()
    spans = [Span([1, 2, 3], 17, list(range(5))) for _ in range(10)]  # 20 tokens each
    spans += [Span([1] * 30, 0, list(range(8))) for _ in range(3)]
    packed = pack(spans, cache.block_size, torch.device("cpu"))
    for most, runs in ((200, 1), (199, 2), (60, 4), (39, 10), (1, 10)):
        monkeypatch.setattr(backend, "GATHER_BYTES", most * token)
        made = backend.XformersPass(cache, packed)._make_chunks(0)
        assert len([one for one in made if one.slots is not None]) == runs
        assert len([one for one in made if one.slots is None]) == 1
        assert [one.lo for one in made[1:]] == [one.hi for one in made[:-1]]
        assert all(len(one.slots) <= max(most, 20) for one in made if one.slots is not None)
