"""The layout of a packed row: every token once, groups contiguous, padding bounded."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.config import Config
from accelgen.worker.engine import start_engine
from accelgen.worker.packing import PAD_FREE_BLOCKS, PAD_SHARE, Span, pack, split
from accelgen.worker.runner import Runner
from accelgen.worker.timing import Shape, full_grid, measure

CPU = torch.device("cpu")


@st.composite
def spans(draw: Any) -> list[Span]:
    found = []
    for index in range(draw(st.integers(1, 12))):
        start = draw(st.integers(0, 300))
        count = draw(st.one_of(st.just(1), st.integers(1, 40)))
        table = [1000 * index + i for i in range(-(-(start + count) // 4))]
        tokens = [100 * index + i for i in range(count)]
        found.append(Span(tokens, start, table, draw(st.booleans())))
    return found


@settings(max_examples=80, deadline=None, derandomize=True)
@given(spans(), st.sampled_from([1, 400, 1 << 30]))
def test_every_token_lies_in_one_row_and_one_group(given_spans: list[Span], most: int) -> None:
    packed = pack(given_spans, 4, CPU, most)
    rows = [
        (token, span.start + i, span.table[(span.start + i) // 4] * 4 + (span.start + i) % 4)
        for span in given_spans
        for i, token in enumerate(span.tokens)
    ]
    columns = (packed.ids.tolist(), packed.positions.tolist(), packed.slots.tolist())
    assert sorted(zip(*columns, strict=True)) == sorted(rows)
    covered = [(group.lo, group.hi) for group in (*packed.decodes, *packed.chunks)]
    assert covered[0][0] == 0 and covered[-1][1] == len(packed.ids)
    assert all(a[1] == b[0] for a, b in zip(covered, covered[1:], strict=False))
    for group in packed.decodes:
        blocks = [-(-end // 4) for end in group.ends]
        padding = max(blocks) * len(blocks) - sum(blocks)
        assert padding <= max(PAD_FREE_BLOCKS, PAD_SHARE * sum(blocks))
        assert max(blocks) * len(blocks) * 4 <= most or len(blocks) == 1
        assert packed.positions[group.lo : group.hi].tolist() == [end - 1 for end in group.ends]
    sampled = [i for i, span in enumerate(given_spans) if span.samples]
    assert sorted(packed.sample_order) == sampled
    for row, i in zip(packed.sample_rows.tolist(), packed.sample_order, strict=True):
        assert packed.ids[row] == given_spans[i].tokens[-1]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(spans(), st.integers(1, 50))
def test_split_keeps_order_and_limit(given_spans: list[Span], limit: int) -> None:
    runs = split(given_spans, limit)
    assert all(0 < sum(len(span.tokens) for _, span in run) <= limit for run in runs)
    again: dict[int, list[int]] = {}
    for run in runs:
        for index, part in run:
            seen = again.setdefault(index, [])
            assert part.start == given_spans[index].start + len(seen)
            seen.extend(part.tokens)
            last = len(seen) == len(given_spans[index].tokens)
            assert part.samples == (last and given_spans[index].samples)
    assert again == {i: list(span.tokens) for i, span in enumerate(given_spans)}


def test_timed_shapes_fit_the_cache_and_carry_their_features(bench: Any) -> None:
    runner: Runner = bench("llama").core.runner  # 96 blocks of 4, at most 128 tokens
    grid = (
        Shape(chunk=100, past=20),
        Shape(decodes=3, context=30),
        Shape(chunk=8, decodes=2, context=5),
        Shape(chunk=200),
        Shape(decodes=50, context=30),
    )
    samples = measure(runner, 1.0, 128, grid, repeats=1)
    features = [
        (s.prefill_tokens, s.decode_seqs, s.decode_context, s.prefill_work) for s in samples
    ]
    assert features == [(100, 0, 0, 7000.0), (0, 3, 90, 0.0), (8, 2, 10, 32.0)]
    assert all(sample.run_s > 0 for sample in samples)
    assert len(measure(runner, 0.0, 128, grid)) <= 1


def test_a_profile_covers_chunks_decodes_and_both(tiny: Any) -> None:
    config = Config(
        model=str(tiny("llama")), kv_blocks=128, max_model_len=300, max_num_seqs=4, profile_file="none",
    )  # fmt: skip
    grid = full_grid(config.max_num_batched_tokens, config.max_num_seqs, config.max_model_len)
    samples = measure(start_engine(config).core.runner, 4.0, config.max_model_len, grid)
    kinds = {(s.prefill_tokens > 0, s.decode_seqs > 0) for s in samples}
    assert kinds == {(True, False), (False, True), (True, True)}
    assert max(s.prefill_tokens for s in samples) <= 300
