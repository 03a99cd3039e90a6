"""Verification leaves the distribution as it is: beside exact p and q on a small vocabulary, and beside the sampler."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from accelgen.proto.messages import Prompt, Sampling
from accelgen.worker.drafting.proposal import NOTHING, Proposal
from accelgen.worker.drafting.verify import FAULTY, Verdict, judge, matched, verify
from accelgen.worker.request import Request
from accelgen.worker.runner import Logits
from accelgen.worker.sampler import Draw, invert, probabilities, sample
from accelgen.worker.uniforms import ACCEPT, DRAFT, SAMPLE, uniforms

V = 6
ROUNDS = 20_000
# Upper 1e-4 quantiles of chi-squared by degrees of freedom: a comparison raises a false alarm for one seed in 10,000.
ALARM = {1: 15.14, 5: 25.74, 35: 74.93}


def chi_squared(counts: np.ndarray, expected: np.ndarray) -> float:
    used = expected > 0
    assert not counts[~used].any()
    return float(((counts[used] - expected[used]) ** 2 / expected[used]).sum())


def distributions(seed: int, count: int) -> torch.Tensor:
    """float64 [count, V], all tokens possible."""
    made = np.random.default_rng(seed).dirichlet(np.full(V, 1.5), size=count)
    return torch.from_numpy(0.95 * made + 0.05 / V)


@pytest.mark.parametrize("seed", range(4))
def test_one_draft_leaves_p_and_is_accepted_as_often_as_it_can(seed: int) -> None:
    """The first token has distribution p, whatever q; the draft is accepted with probability sum of min(p, q); and what
    follows an accepted one has the next p."""
    p, q, after = distributions(seed, 3)
    first, second, accepted = np.zeros(V), np.zeros(V), 0
    after_draws = invert(after.expand(ROUNDS, V), uniforms(range(ROUNDS), [9] * ROUNDS))
    drafts = invert(q.expand(ROUNDS, V), uniforms(range(ROUNDS), [8] * ROUNDS, DRAFT))
    for i in range(ROUNDS):
        draws = [Draw(Sampling(seed=i), 8), Draw(Sampling(seed=i), 9)]
        found = judge(Proposal((drafts[i],), q[None]), [p], draws, after_draws[i])
        first[found.tokens[0]] += 1
        if found.accepted:
            accepted += 1
            second[found.tokens[1]] += 1
    assert chi_squared(first, ROUNDS * p.numpy()) < ALARM[V - 1]
    assert chi_squared(second, accepted * after.numpy()) < ALARM[V - 1]
    share = float(torch.minimum(p, q).sum())
    expected = ROUNDS * np.array([share, 1 - share])
    assert chi_squared(np.array([accepted, ROUNDS - accepted]), expected) < ALARM[1]


def test_a_chain_of_drafts_has_the_joint_distribution() -> None:
    """Two drafts of a Markov chain: the first two tokens of the output are distributed as the chain's, 36 pairs. What
    is missing behind a rejection is drawn from the chain, as the next iteration would."""
    chain, guess = distributions(11, V + 1), distributions(12, V + 1)  # row V: the first token
    pairs = np.zeros((V, V))
    numbers = [uniforms(range(ROUNDS), [at] * ROUNDS, DRAFT) for at in (5, 6)]
    plain = [uniforms(range(ROUNDS), [at] * ROUNDS) for at in (6, 7)]
    for i in range(ROUNDS):
        one = invert(guess[V][None], numbers[0][i : i + 1])[0]
        two = invert(guess[one][None], numbers[1][i : i + 1])[0]
        draws = [Draw(Sampling(seed=i), at) for at in (5, 6, 7)]
        last = invert(chain[two][None], plain[1][i : i + 1])[0]
        proposal = Proposal((one, two), torch.stack([guess[V], guess[one]]))
        tokens = list(judge(proposal, [chain[V], chain[one]], draws, last).tokens)
        if len(tokens) == 1:
            tokens += invert(chain[tokens[0]][None], plain[0][i : i + 1])
        pairs[tokens[0], tokens[1]] += 1
    joint = (chain[V][:, None] * chain[:V]).numpy()
    assert chi_squared(pairs.ravel(), ROUNDS * joint.ravel()) < ALARM[35]


def test_the_same_distribution_is_always_accepted_and_a_foreign_one_never() -> None:
    p = distributions(3, 1)[0]
    for i in range(200):
        draws = [Draw(Sampling(seed=i), 4), Draw(Sampling(seed=i), 5)]
        token = invert(p[None], uniforms([i], [4], DRAFT))[0]
        assert judge(Proposal((token,), p[None]), [p], draws, 0).tokens == (token, 0)
        none = torch.zeros(V, dtype=torch.float64)
        none[2], zero = 1.0, p.clone()
        zero[2] = 0
        found = judge(Proposal((2,), none[None]), [zero / zero.sum()], draws, 0)
        assert found.accepted == 0 and found.tokens[0] != 2


def test_streams_are_independent() -> None:
    """Correlations of 20,000 pairs lie within 4 / sqrt(20,000), each exceeded by chance in one of 16,000 seeds."""
    columns = [uniforms([7] * ROUNDS, range(ROUNDS), stream) for stream in (SAMPLE, DRAFT, ACCEPT)]
    columns.append(uniforms([8] * ROUNDS, range(ROUNDS)))
    found = np.corrcoef(columns) - np.eye(4)
    assert np.abs(found).max() < 4 / ROUNDS**0.5
    assert all(abs(column.mean() - 0.5) < 4 * (1 / 12 / ROUNDS) ** 0.5 for column in columns)


SAMPLINGS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.3, 1.0, 1.7]),
    top_p=st.sampled_from([1.0, 0.95, 0.5]),
    top_k=st.sampled_from([0, 1, 3, 40]),
    min_p=st.sampled_from([0.0, 0.02, 0.3]),
    presence_penalty=st.sampled_from([0.0, 1.5, -0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.7]),
    repetition_penalty=st.sampled_from([1.0, 1.4]),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(SAMPLINGS, min_size=1, max_size=4), st.integers(0, 10**6))
def test_found_drafts_never_change_what_a_request_says(
    samplings: list[Sampling], seed: int
) -> None:
    """Each request is sampled token by token from logits that depend on its last token. The same with drafts, right
    ones up to some place: the same tokens, and all the right ones are accepted. Penalties count the drafts before."""
    vocab = 50
    random = np.random.default_rng(seed)
    lines = torch.from_numpy(random.normal(0, 2.0, size=(vocab, vocab)).astype(np.float32))
    requests, proposals, rows, order, wanted = [], [], [], [], []
    for i, sampling in enumerate(samplings):
        prompt = random.integers(0, vocab, size=5).tolist()
        alone = Request(Prompt(1, prompt, sampling), vocab)
        for _ in range(5):
            row = lines[alone.tokens[-1]].clone()[None]
            alone.extend([t for t in sample(row, [alone.draw()]) if t is not None], 0)
        right = alone.tokens[5:]
        good = int(random.integers(0, 5))
        drafts = [*right[:good], *([(right[good] + 1) % vocab] if random.random() < 0.7 else [])]
        requests.append(Request(Prompt(i + 1, prompt, sampling), vocab))
        proposals.append(Proposal(tuple(drafts)) if drafts else NOTHING)
        for token in [prompt[-1], *drafts]:
            rows.append(lines[token].clone())
            order.append(i)
        wanted.append(right[: good + 1])
    found = verify(Logits(torch.stack(rows), tuple(order)), requests, proposals)
    assert {i: list(verdict.tokens) for i, verdict in found.items()} == dict(enumerate(wanted))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(SAMPLINGS, min_size=1, max_size=6), st.integers(0, 10**6))
def test_probabilities_are_those_that_the_sampler_draws_with(
    samplings: list[Sampling], seed: int
) -> None:
    """What the sampler draws with many numbers is possible, and everything likely comes."""
    vocab = 40
    random = np.random.default_rng(seed)
    requests = [
        Request(Prompt(i, random.integers(0, vocab, size=6).tolist(), one, generated=3), vocab)
        for i, one in enumerate(samplings)
    ]
    logits = torch.from_numpy(random.normal(0, 2.0, size=(len(requests), vocab)).astype(np.float32))
    draws = [request.draw() for request in requests]
    chances, sound = probabilities(logits.clone(), draws)
    assert all(sound) and torch.allclose(chances.sum(-1), torch.ones(len(requests)).double())
    for row, draw in enumerate(draws):
        many = [Draw(draw.sampling, position, draw.counts) for position in range(400)]
        tokens = sample(logits[row].repeat(400, 1), many)
        assert all(chances[row, token] > 0 for token in tokens if token is not None)
        likely = torch.nonzero(chances[row] > 0.1).flatten().tolist()
        assert set(likely) <= set(tokens)


def test_numbers_that_are_none() -> None:
    sampling = Sampling(temperature=0.0)
    requests = [Request(Prompt(1, [1, 2], sampling), 5), Request(Prompt(2, [1, 2], sampling), 5)]
    rows = torch.zeros(6, 5)
    rows[0, 3] = rows[1, 4] = rows[3, 3] = 1.0
    rows[2] = rows[4] = float("nan")
    logits = Logits(rows, (0, 0, 0, 1, 1, 1))
    found = verify(logits, requests, [Proposal((3, 0)), Proposal((3, 0))])
    assert found[0] == Verdict((3, 4), tainted=True)  # the fault lies behind a rejected draft
    assert found[1] == FAULTY  # the first draft is accepted, and the row behind it is none
    assert matched((), [None]) == FAULTY and matched((), [3]) == Verdict((3,))


def test_numbers_that_are_none_amid_rejection_sampling() -> None:
    p = distributions(1, 2)
    draws = [Draw(Sampling(seed=1), at) for at in (3, 4, 5)]
    likely = int(p[0].argmax())
    q = torch.zeros(2, V, dtype=torch.float64)
    q[0], q[1] = p[0], p[1]
    proposal: Any = Proposal((likely, 0), q)
    assert judge(proposal, [None, p[1]], draws, 1) == FAULTY
    assert judge(proposal, [p[0], None], draws, 1) == FAULTY  # the first is accepted: q is p
    assert judge(Proposal((likely,), q[:1]), [p[0]], draws[:2], None) == FAULTY
