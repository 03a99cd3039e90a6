"""Short chunks that attend together compute what each of them computes alone."""

from __future__ import annotations

from random import Random

import pytest
import torch

from accelgen.worker import attention_short
from accelgen.worker.attention import Call
from accelgen.worker.attention_short import SHORT, short_runs
from accelgen.worker.attention_torch import TorchPass
from accelgen.worker.kvcache import KvCache, LayerShape
from accelgen.worker.packing import PAD_FREE_BLOCKS, PAD_SHARE, ChunkGroup, Span, pack

CPU = torch.device("cpu")
SIZE = 4


def chunk(start: int, count: int) -> ChunkGroup:
    return ChunkGroup(0, 1, count, start, range(-(-(start + count) // SIZE)))


@pytest.mark.parametrize("window", [0, 5, 16])
@pytest.mark.parametrize("softcap", [0.0, 2.0])
@pytest.mark.parametrize("heads", [2, 6])
def test_together_as_alone(
    monkeypatch: pytest.MonkeyPatch, window: int, softcap: float, heads: int
) -> None:
    random = Random(heads + window)
    torch.manual_seed(window)
    cache = KvCache([LayerShape(2, 8, 12, window)], 200, SIZE, torch.float32, CPU)
    cache.keys[0].normal_()
    cache.values[0].normal_()
    blocks, spans = list(range(200)), []
    random.shuffle(blocks)
    for start, count in [
        (0, 7),
        (3, 3),
        (20, 3),
        (21, 3),
        (24, 3),
        (9, 5),
        (12, 5),
        (30, 1),
        (33, 40),
    ]:
        table = [blocks.pop() for _ in range(-(-(start + count) // SIZE))]
        spans.append(Span([1] * count, start, table))
    packed = pack(spans, SIZE, CPU)
    rows = len(packed.ids)
    query, key = torch.randn(rows, heads, 8), torch.randn(rows, 2, 8)
    value, call = torch.randn(rows, 2, 12), Call(0.3, window, softcap)
    together = TorchPass(cache, packed)
    out = together.attend(0, query, key, value, call)
    kinds = [type(one).__name__ for one in together._chunks[window]]
    assert kinds.count("ShortIndex") == 2 and kinds.count("ChunkIndex") == 2
    monkeypatch.setattr(attention_short, "SHORT", 0)
    alone = TorchPass(cache, packed)
    torch.testing.assert_close(out, alone.attend(0, query, key, value, call), atol=1e-5, rtol=1e-5)
    assert len(alone._chunks[window]) == 8


def test_who_attends_together() -> None:
    groups = [
        ChunkGroup(0, 3, 5, 0, ()), chunk(8, 3), chunk(9, 3), chunk(40, 3), chunk(900, 3),
        chunk(901, 3), chunk(20, 4), chunk(64, SHORT + 1), chunk(64, SHORT + 1),
    ]  # fmt: skip
    runs = short_runs(groups, SIZE, 1 << 30)
    assert [len(run) for run in runs] == [1, 3, 2, 1, 1, 1]
    assert [group for run in runs for group in run] == groups
    for run in runs:
        blocks = [len(group.table) for group in run]
        padding = max(blocks, default=0) * len(blocks) - sum(blocks)
        assert padding <= max(PAD_FREE_BLOCKS, PAD_SHARE * sum(blocks))


def test_no_more_is_gathered_than_allowed() -> None:
    groups = [chunk(37, 3) for _ in range(10)]  # 10 blocks of 4 tokens each
    runs = short_runs(groups, SIZE, 125)
    assert [len(run) for run in runs] == [3, 3, 3, 1]
