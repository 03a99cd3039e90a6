"""Generators: published statistics come out again; the same seed gives the same requests."""

from __future__ import annotations

import numpy as np
import pytest

from accelgen.simulator.synthetic import (
    STAND_INS,
    Bursts,
    LogNormal,
    LogUniform,
    Quantiles,
    bursty,
    gamma,
    poisson,
)


def spread(times: np.ndarray, window_s: float) -> float:  # type: ignore[type-arg]
    """Variance over mean of the counts in windows: 1 for a Poisson process."""
    counts = np.histogram(times, np.arange(0, times[-1], window_s))[0]
    return float(counts.var() / counts.mean())


def test_arrival_processes() -> None:
    draw = np.random.default_rng(0)
    for times, cv in ((poisson(20000, 4.0, draw), 1.0), (gamma(20000, 4.0, 3.0, draw), 3.0)):
        gaps = np.diff(times)
        assert times[0] == 0 and (gaps >= 0).all()
        assert gaps.mean() == pytest.approx(1 / 4, rel=0.1)
        assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.1)


def test_bursts_keep_the_mean_rate() -> None:
    bursts = Bursts(duty=0.3, quiet=0.0, mean_s=15.4)
    times = bursty(50000, 3.0, bursts, np.random.default_rng(0))
    assert len(times) == 50000 and times[0] == 0 and (np.diff(times) >= 0).all()
    assert len(times) / times[-1] == pytest.approx(3.0, rel=0.1)
    assert bursts.loud == pytest.approx(1 / 0.3)
    assert np.diff(times).std() * 3.0 > 8 and spread(times, 60) > 80


def test_lengths() -> None:
    draw = np.random.default_rng(0)
    found = LogNormal(median=100, p90=400, low=10, high=1000).draw(20000, draw)
    assert np.percentile(found, [50, 90]) == pytest.approx([100, 400], rel=0.05)
    assert found.min() >= 10 and found.max() == 1000
    found = LogUniform(100, 10000).draw(20000, draw)
    assert np.median(found) == pytest.approx(1000, rel=0.05)
    found = Quantiles((1, 10, 1000), (0, 0.5, 1)).draw(20000, draw)
    assert np.percentile(found, [25, 50, 75]) == pytest.approx([3, 10, 100], rel=0.1)


PUBLISHED = {  # prompt mean, p50, p90; output mean, p50, p90
    "azure2023_code": (2048, 1469, 5188, 28, 13, 55),
    "mooncake_conversation": (12035, 6909, 27367, 343, 350, 597),
    "lengths_sharegpt_8k_llama2": (2340, 1730, 5696, 439, 415, 834),
    "lengths_sharegpt_val10k_llama2": (246, 35, 761, 326, 286, 681),
    "lengths_arxiv_summarization_llama2": (2588, 2730, 3702, 291, 167, 372),
    "lengths_bwb_llama2": (1067, 1037, 1453, 1613, 1601, 2149),
    "servegen_deepseek-r1_1h_resampled": (1764, 302, 3081, 909, 484, 1480),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_stand_ins_have_the_published_lengths(name: str) -> None:
    rows = STAND_INS[name].rows(name, 20000, seed=0)
    found = [
        figure
        for lengths in (rows.prompt, rows.output)
        for figure in (lengths.mean(), *np.percentile(lengths, [50, 90]))
    ]
    assert found == pytest.approx(PUBLISHED[name], rel=0.2)
    assert rows.name == f"synthetic:{name}"


def test_stand_ins_are_as_bursty_as_their_traces() -> None:
    rows = STAND_INS["azure2023_code"].rows("azure2023_code", 30000, seed=0)
    assert rows.at_s is not None
    gaps = np.diff(rows.at_s)
    assert gaps.std() / gaps.mean() == pytest.approx(13, rel=0.2)  # 13.2 in the trace
    assert spread(rows.at_s, 60) == pytest.approx(161, rel=0.4)


@pytest.mark.parametrize("name", STAND_INS)
def test_the_same_seed_gives_the_same_requests(name: str) -> None:
    first, again, other = (STAND_INS[name].rows(name, 50, seed) for seed in (1, 1, 2))
    assert first.prompt.tolist() == again.prompt.tolist() != other.prompt.tolist()
    assert first.output.tolist() == again.output.tolist()
    assert (first.at_s is None) == (STAND_INS[name].rate == 0)
    if first.at_s is not None and again.at_s is not None:
        assert first.at_s.tolist() == again.at_s.tolist()


def test_shares_of_thinking_are_those_of_the_trace() -> None:
    """Mean 0.70, median 0.70, 90 % below 0.956; never the whole output."""
    rows = STAND_INS["servegen_deepseek-r1_1h_resampled"].rows("r1", 20000, seed=0)
    assert rows.thinking is not None and (rows.thinking < rows.output).all()
    shares = rows.thinking / rows.output
    found = [shares.mean(), *np.percentile(shares, [50, 90])]
    assert found == pytest.approx([0.70, 0.697, 0.956], abs=0.02)


def test_sessions_of_tool_loops() -> None:
    """4.0 calls on average; each prompt is what was said before, and more."""
    rows = STAND_INS["toolbench"].rows("toolbench", 5000, seed=0)
    assert rows.later is not None and rows.name == "synthetic:toolbench"
    calls = np.array([1 + len(later) for later in rows.later])
    assert calls.mean() == pytest.approx(4.0, rel=0.05) and calls.min() == 1
    for i, later in enumerate(rows.later):
        said = int(rows.prompt[i] + rows.output[i])
        for stage in later:
            assert stage.shared == said < stage.prompt and stage.think_s >= 0
            said = stage.prompt + stage.output
