"""What a benchmark sends: the same for the same seed, at the rate asked for, with exact lengths."""

from __future__ import annotations

import gzip
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from accelgen.scripts.bench_workload import (
    Part,
    Prompts,
    Shape,
    WorkloadError,
    draw_shapes,
    find_trace,
    parse_mix,
    poisson_arrivals,
    read_trace,
    select,
    trace_arrivals,
)

MIX = (Part("short", 0.65, 64, 128), Part("long", 0.35, 2048, 64))


def test_mix() -> None:
    assert parse_mix("short=0.65:64:128,long=0.35:2048:64") == MIX
    shapes = draw_shapes(MIX, 2000, 0.0, seed=1)
    short = [shape for shape in shapes if shape.label == "short"]
    assert {(shape.prompt, shape.output) for shape in short} == {(64, 128)}
    assert 0.6 < len(short) / 2000 < 0.7


@pytest.mark.parametrize(
    "text",
    ["", "a", "a=1:2", "a=0:1:1", "a=inf:1:1", "a=1:0:1", "a=1:1:1:1", "=1:1:1", "a=1:1:1,a=1:1:1"],
)
def test_mixes_that_cannot_be(text: str) -> None:
    with pytest.raises(WorkloadError):
        parse_mix(text)


@given(st.integers(1, 500), st.floats(0, 1), st.integers(0, 5))
def test_lengths_stay_in_range(length: int, ratio: float, seed: int) -> None:
    shapes = draw_shapes([Part("", 1, length, length)], 50, ratio, seed)
    for shape in shapes:
        for tokens in (shape.prompt, shape.output):
            assert (
                max(1, math.floor((1 - ratio) * length))
                <= tokens
                <= math.ceil((1 + ratio) * length)
            )
    assert shapes == draw_shapes([Part("", 1, length, length)], 50, ratio, seed)


@given(st.integers(2, 300), st.floats(0.1, 1000), st.floats(0.05, 5), st.integers(0, 9))
def test_arrivals_take_the_time_that_the_rate_says(
    count: int, rate: float, burstiness: float, seed: int
) -> None:
    arrivals = poisson_arrivals(count, rate, burstiness, seed)
    assert len(arrivals) == count and arrivals[0] == 0 and arrivals == sorted(arrivals)
    assert arrivals[-1] == pytest.approx((count - 1) / rate)
    assert arrivals == poisson_arrivals(count, rate, burstiness, seed)


def test_poisson_gaps_and_bursts() -> None:
    def variation(burstiness: float) -> float:
        arrivals = poisson_arrivals(4000, 10.0, burstiness, seed=3)
        gaps = [after - before for before, after in zip(arrivals, arrivals[1:], strict=False)]
        mean = sum(gaps) / len(gaps)
        return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / len(gaps)) / mean

    assert variation(1.0) == pytest.approx(1.0, abs=0.1)
    assert variation(0.25) == pytest.approx(2.0, abs=0.25)
    assert poisson_arrivals(3, math.inf, 1.0, 0) == [0.0, 0.0, 0.0]


def test_prompts_have_the_length_and_share_the_prefix_only() -> None:
    prompts = Prompts(seed=7, vocab_size=1000, prefix_len=8)
    first, second = prompts.make(0, 20), prompts.make(1, 20)
    assert len(first) == len(second) == 20
    assert first[:8] == second[:8] and first[8:] != second[8:]
    assert prompts.make(0, 20) == first == Prompts(7, 1000, 8).make(0, 20)
    assert prompts.make(-1, 20) not in (first, second)
    assert prompts.make(3, 5) == first[:5]
    assert all(100 <= token < 1000 for token in first)
    assert all(1 <= token < 3 for token in Prompts(0, 3, 0).make(0, 50))


def test_a_trace(tmp_path: Path, monkeypatch: Any) -> None:
    path = tmp_path / "small.csv.gz"
    rows = "arrived_at,prompt_tokens,output_tokens,other\n2.0,100,0,x\n3.5,9000,10,x\n4.0,40,7,x\n"
    path.write_bytes(gzip.compress(rows.encode()))
    monkeypatch.setenv("ACCELGEN_TRACES", str(tmp_path))
    assert find_trace("small") == path == find_trace(str(path))
    shapes, too_long = select(read_trace(path), None, 4096)
    assert shapes == [Shape(100, 1, "", 2.0), Shape(40, 7, "", 4.0)] and too_long == 1
    assert trace_arrivals(shapes, 4.0) == [0.0, 0.5]
    assert [shape.prompt for shape in read_trace(path, 0.1)] == [10, 900, 4]
    assert select(read_trace(path), 1, None) == ([Shape(100, 1, "", 2.0)], 0)
    with pytest.raises(WorkloadError, match="no file large"):
        find_trace("large")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", "no column output_tokens, prompt_tokens"),
        ("prompt_tokens\n3\n", "no column output_tokens"),
        ("prompt_tokens,output_tokens\n3,4\n-1,4\n", "line 3"),
        ("prompt_tokens,output_tokens\n3\n", "line 2"),
        ("prompt_tokens,output_tokens\nmany,4\n", "line 2"),
        ("prompt_tokens,output_tokens,arrived_at\n3,4,inf\n", "line 2"),
    ],
)
def test_traces_that_cannot_be_read(tmp_path: Path, text: str, names: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(WorkloadError, match=names):
        list(read_trace(path))


def test_a_file_that_is_no_trace(tmp_path: Path) -> None:
    for name, data in (
        ("t.csv.gz", b"not gzip"),
        ("t.csv", b"\xff\xfe\x00"),
        ("cut.csv.gz", gzip.compress(b"a,b" * 99)[:20]),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(WorkloadError, match=name):
            list(read_trace(path))
