"""benchmarks/live_table.py: what a comparison of live policies says of its rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest

_PATH = Path(__file__).parents[2] / "benchmarks" / "live_table.py"


@pytest.fixture(scope="module")
def table() -> Any:
    spec = importlib.util.spec_from_file_location("live_table", _PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def row(table: Any, policy: str, rate: float, **figures: float | None) -> dict[str, Any]:
    return {"policy": policy, "rate": rate, **dict.fromkeys(table.FIGURES, 1.0), **figures}


@pytest.mark.parametrize(
    ("shares", "highest"),
    [
        ([1.0, 0.95, 0.85, 0.2], 2.5),  # half way between 2 and 3
        ([1.0, 1.0, 1.0, 0.9], 4.0),
        ([0.8, 1.0, 1.0, 1.0], None),  # a border that single points make is none
        ([1.0, 0.8, 1.0, 0.5], 1.5),
        ([None, 1.0, 0.8, 0.5], 2.5),
        ([None, None, None, None], None),
    ],
)
def test_the_highest_rate(table: Any, shares: list[float | None], highest: float | None) -> None:
    found = table.highest_rate([1.0, 2.0, 3.0, 4.0], shares, 0.9)
    assert found == (None if highest is None else pytest.approx(highest))


def test_better_is_more_than_one(table: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        row(table, "cacheopt", 1.0, ttft_p95_ms=each, goodput=2.0, attained=0.95)
        for each in (90.0, 100.0, 900.0)
    ]
    rows.append(
        row(table, "vllm", 1.0, ttft_p95_ms=300.0, goodput=1.0, attained=0.45, itl_p95_ms=None)
    )
    found = table.report(rows, ["cacheopt", "vllm"], [1.0], 0.9)
    [ratio] = found["ratios"]
    assert ratio["ttft_p95_ms"] == pytest.approx(3.0)  # of the median of rounds
    assert ratio["goodput"] == pytest.approx(2.0) and ratio["attained"] == pytest.approx(50)
    assert ratio["itl_p95_ms"] is None
    assert found["highest"] == {"cacheopt": 1.0, "vllm": None}
    shown = capsys.readouterr().out
    assert "cacheopt at least 1.00 req/s" in shown and "vllm below all rates tried" in shown
