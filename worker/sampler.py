"""From logits to tokens, all rows of an iteration at once.

Order, as vLLM: repetition penalty (prompt and generated tokens), frequency and presence penalty (generated tokens),
temperature, then min_p, top_k, top_p. Each of the last three keeps a head of the tokens sorted by probability, so they
are found on the `CANDIDATES` most probable ones; only a row whose head is longer is sorted whole. top_p counts
probability after min_p and top_k.

A token is drawn by inversion: the one uniform number of (seed, position) picks it from the cumulative distribution, in
vocabulary order without a filter and in order of probability with one. What a row draws depends on its own logits and
its own number alone, never on the other rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from accelgen.proto.messages import Sampling
from accelgen.worker.uniforms import uniforms

CANDIDATES = 256
CHUNK = 256  # tokens per partial sum of the cumulative distribution


@dataclass(frozen=True)
class Counts:
    """Tokens a request has seen: ids of prompt and generated ones, and how often each generated one came."""

    seen: np.ndarray
    generated: np.ndarray
    times: np.ndarray


@dataclass(frozen=True)
class Draw:
    """One row to sample: parameters, position of the new token, counts if a penalty is on."""

    sampling: Sampling
    position: int
    counts: Counts | None = None


def needs_counts(sampling: Sampling) -> bool:
    """Whether any penalty is on."""
    return (
        sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or sampling.repetition_penalty != 1
    )


@torch.inference_mode()  # logits come from a forward pass under it and may only be changed under it
def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int | None]:
    """One token for each row of `logits` [S, vocab] (float32, changed in place); None where they are not numbers."""
    assert logits.shape[0] == len(draws)
    _penalise(logits, draws)
    best = logits.max(dim=-1)  # NaN wins a maximum: one pass finds the choice and the fault
    tokens = best.indices.tolist()
    finite = torch.isfinite(best.values).tolist()
    random = [
        row for row, draw in enumerate(draws) if draw.sampling.temperature > 0 and finite[row]
    ]
    if random:
        for row, token in zip(random, _draw(logits, draws, random), strict=True):
            tokens[row] = token
    return [token if good else None for token, good in zip(tokens, finite, strict=True)]


def _penalise(logits: Tensor, draws: Sequence[Draw]) -> None:
    for row, draw in enumerate(draws):
        if draw.counts is None:
            continue
        sampling, counts, line = draw.sampling, draw.counts, logits[row]
        if sampling.repetition_penalty != 1 and len(counts.seen):
            seen = torch.from_numpy(counts.seen).to(logits.device)
            old = line[seen]
            factor = sampling.repetition_penalty
            line[seen] = torch.where(old > 0, old / factor, old * factor)
        if len(counts.generated):
            generated = torch.from_numpy(counts.generated).to(logits.device)
            times = torch.from_numpy(counts.times).to(logits)
            line[generated] -= sampling.frequency_penalty * times + sampling.presence_penalty


def _draw(logits: Tensor, draws: Sequence[Draw], rows: list[int]) -> list[int]:
    """Tokens of the rows with a temperature."""
    chosen = [draws[row] for row in rows]
    part = _scores(logits if len(rows) == logits.shape[0] else logits[rows], chosen)
    number = torch.from_numpy(
        uniforms([d.sampling.seed for d in chosen], [d.position for d in chosen])
    ).to(logits.device)
    filtered = [at for at, d in enumerate(chosen) if _has_filter(d.sampling)]
    tokens = [0] * len(rows)
    free = sorted(set(range(len(rows))) - set(filtered))
    if free:
        for at, token in zip(free, _draw_free(part[free], number[free]), strict=True):
            tokens[at] = token
    if filtered:
        found = _draw_head(
            part[filtered], number[filtered], [chosen[at].sampling for at in filtered]
        )
        for at, token in zip(filtered, found, strict=True):
            tokens[at] = token
    return tokens


def _scores(logits: Tensor, draws: Sequence[Draw]) -> Tensor:
    """Logits [n, vocab] over temperature, relative to the maximum: a tiny temperature must not overflow."""
    scale = torch.tensor([1 / max(d.sampling.temperature, 1e-5) for d in draws]).to(logits)
    return (logits - logits.amax(dim=-1, keepdim=True)) * scale[:, None]


def _has_filter(sampling: Sampling) -> bool:
    return sampling.top_k > 0 or sampling.top_p < 1 or sampling.min_p > 0


@torch.inference_mode()
def probabilities(logits: Tensor, draws: Sequence[Draw]) -> tuple[Tensor, list[bool]]:
    """What `sample` draws from: float64 [S, vocab], each row of sum 1 (one token has it all at temperature 0); and
    which rows are numbers. `logits` [S, vocab] (float32) are changed in place."""
    assert logits.shape[0] == len(draws)
    _penalise(logits, draws)
    best = logits.max(dim=-1)
    sound: list[bool] = torch.isfinite(best.values).tolist()
    chances = torch.zeros(logits.shape, dtype=torch.float64, device=logits.device)
    chances.scatter_(1, best.indices[:, None], 1.0)
    random = [row for row, draw in enumerate(draws) if draw.sampling.temperature > 0 and sound[row]]
    filtered = [row for row in random if _has_filter(draws[row].sampling)]
    for row in sorted(
        {*random} - {*filtered}
    ):  # several rows of a large vocabulary are large in float64
        weights = _scores(logits[row : row + 1], [draws[row]]).exp().double()
        chances[row] = weights[0] / weights.sum()
    wide = _fill_heads(chances, logits, draws, filtered, min(CANDIDATES, logits.shape[1]))
    for row in wide:
        _fill_heads(chances, logits, draws, [row], logits.shape[1])
    return chances, sound


def _fill_heads(
    chances: Tensor, logits: Tensor, draws: Sequence[Draw], rows: list[int], width: int
) -> list[int]:
    """Writes what min_p, top_k and top_p leave of the `width` best tokens of each of `rows` into its `chances`. Returns
    the rows for which that is not wide enough."""
    if not rows:
        return []
    chosen = [draws[row] for row in rows]
    scores = _scores(logits[rows], chosen)
    total = scores.exp().sum(-1, dtype=torch.float64)
    ids, weights, inside = _kept(scores, [draw.sampling for draw in chosen], total, width)
    done = [at for at, enough in enumerate(inside) if enough]
    target = torch.tensor([rows[at] for at in done], dtype=torch.int64, device=logits.device)
    chances[target] = 0.0
    chances[target[:, None], ids[done]] = weights[done] / weights[done].sum(-1, keepdim=True)
    return [row for row, enough in zip(rows, inside, strict=True) if not enough]


def invert(weights: Tensor, numbers: np.ndarray) -> list[int]:
    """Inversion in vocabulary order: from each row of weights (float64 [n, vocab], of any positive sum) the token that
    its number in [0, 1) picks."""
    cumulative = weights.cumsum(-1)
    target = torch.from_numpy(numbers).to(weights.device) * cumulative[:, -1]
    found: list[int] = _pick(cumulative, target).tolist()
    return found


def _draw_free(scores: Tensor, number: Tensor) -> list[int]:
    """Inversion over the whole vocabulary in its own order; scores are logits minus their maximum.

    Sums of `CHUNK` tokens are accumulated first, in float64, then the tokens of the chunk that is hit: a running sum
    over a large vocabulary in float32 would lose the rare tokens."""
    rows, vocab = scores.shape
    weights = torch.nn.functional.pad(scores.exp(), (0, -vocab % CHUNK)).view(rows, -1, CHUNK)
    sums = weights.sum(-1, dtype=torch.float64).cumsum(-1)
    target = number * sums[:, -1]
    chunk = _pick(sums, target)
    before = torch.where(chunk > 0, sums.gather(1, (chunk[:, None] - 1).clamp_(min=0))[:, 0], 0.0)
    inside = weights[torch.arange(rows, device=scores.device), chunk].double().cumsum(-1)
    found: list[int] = (chunk * CHUNK + _pick(inside, target - before)).tolist()
    return found


def _pick(cumulative: Tensor, target: Tensor) -> Tensor:
    """First index whose cumulative weight exceeds target; rounding never reaches the weightless ones at the end."""
    index = torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
    last = torch.searchsorted(cumulative, cumulative[:, -1:].contiguous())[:, 0]
    return torch.minimum(index, last)


def _draw_head(scores: Tensor, number: Tensor, sampling: Sequence[Sampling]) -> list[int]:
    """Inversion over the tokens that min_p, top_k and top_p leave, most probable first."""
    vocab = scores.shape[1]
    total = scores.exp().sum(-1, dtype=torch.float64)
    width = min(CANDIDATES, vocab)
    tokens, whole = _head(scores, number, sampling, total, width)
    again = [row for row, inside in enumerate(whole) if not inside]
    if again:
        rest, _ = _head(
            scores[again], number[again], [sampling[row] for row in again], total[again], vocab
        )
        for row, token in zip(again, rest, strict=True):
            tokens[row] = token
    return tokens


def _head(
    scores: Tensor, number: Tensor, sampling: Sequence[Sampling], total: Tensor, width: int
) -> tuple[list[int], list[bool]]:
    """Draws from the `width` best tokens; the second list says whether the kept head lies within them."""
    ids, weights, inside = _kept(scores, sampling, total, width)
    cumulative = weights.cumsum(-1)
    index = _pick(cumulative, number * cumulative[:, -1])
    return ids.gather(1, index[:, None])[:, 0].tolist(), inside


def _kept(
    scores: Tensor, sampling: Sequence[Sampling], total: Tensor, width: int
) -> tuple[Tensor, Tensor, list[bool]]:
    """The `width` best tokens [n, width], most probable first, their weights (0 for those that are filtered out), and
    whether the kept head lies within them."""
    top = scores.topk(width, dim=-1)
    weight = top.values.double().exp()  # the best one is 1
    vocab = scores.shape[1]

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=scores.device)[:, None]

    min_p = column([s.min_p for s in sampling])
    top_k = column([float(s.top_k or vocab) for s in sampling])
    top_p = column([s.top_p for s in sampling])
    rank = torch.arange(width, device=scores.device)[None, :]
    kept = (weight >= min_p) & (rank < top_k)
    running = (weight * kept).cumsum(-1)
    cut = (~kept).any(-1)  # min_p or top_k end the head here: its mass is known
    mass = torch.where(cut, running[:, -1], total)
    kept &= (running - weight) < top_p * mass[:, None]  # the token that crosses top_p stays
    unknown = ~cut & ((top_k < vocab) | (min_p > 0))[:, 0]  # their end, hence the mass, lies beyond
    inside = (((~kept).any(-1) & ~unknown) | (width == vocab)).tolist()
    return top.indices, weight * kept, inside
