"""The sampler: the right tokens with the right frequency, whatever else is in the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.messages import Sampling
from accelgen.worker import sampler
from accelgen.worker.sampler import Counts, Draw, probabilities, sample
from accelgen.worker.uniforms import uniforms

SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5, 0.01]),
    top_k=st.sampled_from([0, 1, 3, 40, 5000]),
    min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
    seed=st.integers(0, 2**63 - 1),
)


def kept_by(logits: np.ndarray, sampling: Sampling) -> tuple[np.ndarray, np.ndarray]:
    """The plain rule, one row: ids that may be drawn, most probable first, and their probabilities."""
    scaled = (logits - logits.max()) / sampling.temperature
    p = np.exp(scaled.astype(np.float64))
    p /= p.sum()
    order = np.argsort(-p, kind="stable")
    keep = len(order)
    if sampling.min_p:
        keep = min(keep, int((p[order] >= sampling.min_p * p[order[0]] * (1 - 1e-9)).sum()))
    if sampling.top_k:
        keep = min(keep, sampling.top_k)
    head = p[order[:keep]]
    cumulative = np.cumsum(head) / head.sum()
    if sampling.top_p < 1:
        keep = int(np.searchsorted(cumulative, sampling.top_p * (1 - 1e-9)) + 1)
    ids = order[:keep]
    return ids, p[ids] / p[ids].sum()


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.lists(SAMPLINGS, min_size=1, max_size=9), st.integers(0, 10**6), st.sampled_from([40, 700])
)
def test_tokens_obey_their_filters_and_no_neighbour(
    samplings: list[Sampling], seed: int, vocab: int
) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(0, 2.5, size=(len(samplings), vocab)).astype(np.float32)
    draws = [Draw(one, position) for position, one in enumerate(samplings)]
    tokens = sample(torch.from_numpy(logits.copy()), draws)
    for row, (draw, token) in enumerate(zip(draws, tokens, strict=True)):
        alone = sample(torch.from_numpy(logits[row : row + 1].copy()), [draw])
        assert alone == [token]
        if draw.sampling.temperature == 0:
            assert token == int(logits[row].argmax())
        else:
            assert token in kept_by(logits[row], draw.sampling)[0]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(temperature=2.0, top_k=7),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1),
        Sampling(top_p=0.9, top_k=20, min_p=0.01, temperature=1.3),
    ],
    ids=str,
)
@pytest.mark.parametrize("vocab", [64, 600])
def test_frequencies_are_the_probabilities(sampling: Sampling, vocab: int) -> None:
    """Chi-squared over 20,000 draws at consecutive positions of one seed, tokens with few expected draws joined."""
    logits = np.random.default_rng(vocab).normal(0, 1.5, size=vocab).astype(np.float32)
    ids, p = kept_by(logits, sampling)
    times, total = np.zeros(vocab), 20_000
    for begin in range(0, total, 2000):
        rows = torch.from_numpy(logits).repeat(2000, 1)
        tokens = sample(rows, [Draw(sampling, begin + i) for i in range(2000)])
        np.add.at(times, np.asarray(tokens), 1)
    assert times.sum() == times[ids].sum()
    expected = p * total
    common = expected >= 10
    bins = np.append(times[ids][common], times[ids][~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    bins, wanted = bins[wanted > 0], wanted[wanted > 0]
    chi = float(((bins - wanted) ** 2 / wanted).sum())
    degrees = len(bins) - 1
    assert chi < degrees + 5 * (2 * max(degrees, 1)) ** 0.5 + 5  # five standard deviations


def test_uniforms_are_uniform_and_independent() -> None:
    for seeds, positions in (([7] * 50_000, range(50_000)), (range(50_000), [3] * 50_000)):
        u = uniforms(list(seeds), list(positions))
        assert u.min() >= 0 and u.max() < 1
        assert abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.002
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03
        assert np.histogram(u, 100, (0, 1))[0].std() < 3 * 500**0.5
    assert len(set(uniforms([2**63 - 1, 0, 1], [0, 0, 0]))) == 3


def test_wide_heads_fall_back_to_a_whole_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tokens, whether the candidates suffice or not."""
    logits = torch.randn(6, 500, generator=torch.Generator().manual_seed(1))
    options = ({"top_p": 0.9}, {"top_p": 0.999}, {"top_k": 300}, {"min_p": 1e-4},
               {"top_k": 400, "top_p": 0.7}, {"min_p": 0.001, "top_p": 0.99})  # fmt: skip
    draws = [Draw(Sampling(seed=i, **o), 5) for i, o in enumerate(options)]
    wide = sample(logits.clone(), draws)
    monkeypatch.setattr(sampler, "CANDIDATES", 8)
    assert sample(logits.clone(), draws) == wide


def test_penalties_follow_their_definition() -> None:
    logits = torch.tensor([[2.0, 1.9, -1.0, 0.5]] * 4)
    counts = Counts(np.array([0, 2]), np.array([0]), np.array([3.0], dtype=np.float32))
    greedy = {"temperature": 0.0}
    draws = [
        Draw(Sampling(**greedy), 9),
        Draw(Sampling(**greedy, repetition_penalty=2.0), 9, counts),
        Draw(Sampling(**greedy, presence_penalty=0.2), 9, counts),
        Draw(Sampling(**greedy, frequency_penalty=0.01), 9, counts),
    ]
    assert sample(logits, draws) == [0, 1, 1, 0]
    torch.testing.assert_close(logits[1], torch.tensor([1.0, 1.9, -2.0, 0.5]))
    torch.testing.assert_close(logits[2], torch.tensor([1.8, 1.9, -1.0, 0.5]))
    torch.testing.assert_close(logits[3], torch.tensor([1.97, 1.9, -1.0, 0.5]))


def test_rows_that_are_not_numbers_are_reported_alone() -> None:
    logits = torch.randn(4, 50)
    logits[1, 3] = float("nan")
    logits[2, 7] = float("inf")
    tokens = sample(logits, [Draw(Sampling(seed=i), 1) for i in range(4)])
    assert tokens[1] is None and tokens[2] is None
    assert tokens[0] is not None and tokens[3] is not None


def test_tiny_temperatures_and_flat_or_extreme_logits() -> None:
    flat = torch.zeros(1, 1000)
    extreme = torch.full((1, 1000), -1e30)
    extreme[0, 17] = 3e4
    for sampling in (
        Sampling(),
        Sampling(temperature=1e-9),
        Sampling(top_p=0.5),
        Sampling(min_p=1.0),
    ):
        assert sample(extreme.clone(), [Draw(sampling, 1)]) == [17]
        assert 0 <= (sample(flat.clone(), [Draw(sampling, 1)])[0] or 0) < 1000


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.lists(SAMPLINGS, min_size=1, max_size=9), st.integers(0, 10**6), st.sampled_from([0.2, 2.5])
)
def test_probabilities_of_many_rows_are_those_of_each(
    samplings: list[Sampling], seed: int, spread: float
) -> None:
    """By the plain rule; flat rows keep more tokens than are looked at first."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, spread, size=(len(samplings), 700)).astype(np.float32)
    draws = [Draw(one, position) for position, one in enumerate(samplings)]
    chances, sound = probabilities(torch.from_numpy(logits.copy()), draws)
    assert all(sound)
    for row, one in enumerate(samplings):
        wanted = np.zeros(700)
        if one.temperature == 0:
            wanted[logits[row].argmax()] = 1
        else:
            ids, p = kept_by(logits[row], one)
            wanted[ids] = p
        found = chances[row].numpy()
        edge = np.flatnonzero((found > 0) != (wanted > 0))  # ties with the last that is kept
        assert len(edge) <= 2
        assert np.abs(found - wanted).max() < 1e-6 or len(edge)
