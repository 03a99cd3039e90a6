"""Which drafted tokens stand, and the token behind them: the output is distributed as if there had been no drafts.

Rejection sampling (Leviathan et al., arXiv 2211.17192; Chen et al., arXiv 2302.01318): with p the distribution of the
model at a position and q the one that the draft t was drawn from, t is accepted with probability min(1, p(t) / q(t));
the first that is not is replaced by a token drawn from the positive part of p - q, normalised, and ends the run; behind
a run that is accepted whole comes a token drawn from p. All of p, with every rule of the sampler, depends on the drafts
before (penalties). Uniform numbers come from (seed, position), of one stream for the decision and of another for what
is drawn instead.

A draft without a distribution was not drawn but found: q is all on t. Then p(t) is the probability of acceptance, and
what replaces t is drawn from p without t. Drawing a token from p, accepting t if it is that token and taking the token
if it is not, is exactly this; and the token is the one that the sampler draws with the number of (seed, position),
drafts or not. So such drafts never change what a request says, greedy or not, whatever they are and wherever they
begin: also a replay after a crash, which drafts elsewhere, goes on identically. (With distributions only its law is the
same.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from accelgen.worker.drafting.proposal import Proposal
from accelgen.worker.request import Request
from accelgen.worker.runner import Logits
from accelgen.worker.sampler import Draw, invert, probabilities, sample
from accelgen.worker.uniforms import ACCEPT, uniforms


class Verdict(NamedTuple):
    """The tokens of one request: the drafts that were accepted, then one more; none if the logits are not numbers where
    it matters. `tainted`: they are not, somewhere behind."""

    tokens: tuple[int, ...]
    tainted: bool = False

    @property
    def accepted(self) -> int:
        return max(len(self.tokens) - 1, 0)


FAULTY = Verdict((), True)


def verify(
    logits: Logits, requests: Sequence[Request], proposals: Sequence[Proposal]
) -> dict[int, Verdict]:
    """Verdicts by index of the span. Span i was of requests[i]; it asked for no logits, or for those of its last
    tokens: the newest and proposals[i]. The rows are changed in place."""
    if not any(proposal.tokens for proposal in proposals):
        return _sampled(logits, requests)
    rows: dict[int, list[int]] = {}
    for row, i in enumerate(logits.order):
        rows.setdefault(i, []).append(row)
    draws: dict[int, Draw] = {
        row: requests[i].draw(proposals[i].tokens[:ahead])
        for i, own in rows.items()
        for ahead, row in enumerate(own)
    }
    judged = {
        row for i, own in rows.items() if proposals[i].chances is not None for row in own[:-1]
    }
    chances = _judged_chances(logits.rows, sorted(judged), draws)
    drawn = _drawn(logits.rows, sorted(draws.keys() - judged), draws)
    found: dict[int, Verdict] = {}
    for i, own in rows.items():
        if proposals[i].chances is None:
            found[i] = matched(proposals[i].tokens, [drawn[row] for row in own])
        else:
            found[i] = judge(
                proposals[i],
                [chances[row] for row in own[:-1]],
                [draws[row] for row in own],
                drawn[own[-1]],
            )
    return found


def _sampled(logits: Logits, requests: Sequence[Request]) -> dict[int, Verdict]:
    """Without drafts: a row for each span that has one."""
    if not logits.order:
        return {}
    tokens = sample(logits.rows, [requests[i].draw() for i in logits.order])
    return {
        i: FAULTY if token is None else Verdict((token,))
        for i, token in zip(logits.order, tokens, strict=True)
    }


def matched(drafts: Sequence[int], drawn: Sequence[int | None]) -> Verdict:
    """Of `drawn`, the model's own choice at each of the 1 + len(drafts) positions if the drafts before it stand, those
    up to the first that is not the draft."""
    count = 1
    while count <= len(drafts) and drawn[count - 1] == drafts[count - 1]:
        count += 1
    tokens = [token for token in drawn[:count] if token is not None]
    if len(tokens) < count:
        return FAULTY
    return Verdict(tuple(tokens), None in drawn)


def judge(
    proposal: Proposal, chances: Sequence[Tensor | None], draws: Sequence[Draw], last: int | None
) -> Verdict:
    """Rejection sampling. `chances` are p at the position of each draft (float64 [vocab], None where it is not made of
    numbers), `last` the token drawn behind all of them; `draws` [1 + drafts] say with which numbers."""
    assert proposal.chances is not None
    seeds, positions = [d.sampling.seed for d in draws], [d.position for d in draws]
    accept, again = uniforms(seeds, positions, ACCEPT), uniforms(seeds, positions)
    tokens: list[int] = []
    tainted = last is None or any(p is None for p in chances)
    for at, token in enumerate(proposal.tokens):
        p, q = chances[at], proposal.chances[at]
        if p is None:
            return FAULTY
        if accept[at] * float(q[token]) < float(p[token]):
            tokens.append(token)
            continue
        rest = (p - q).clamp_(min=0)
        rest = rest if float(rest.sum()) > 0 else p  # both are the same, up to rounding
        return Verdict((*tokens, *invert(rest[None], again[at : at + 1])), tainted)
    return FAULTY if last is None else Verdict((*tokens, last), tainted)


def _judged_chances(
    logits: Tensor, rows: list[int], draws: dict[int, Draw]
) -> dict[int, Tensor | None]:
    if not rows:
        return {}
    chances, sound = probabilities(logits[rows], [draws[row] for row in rows])
    return {row: chances[at] if sound[at] else None for at, row in enumerate(rows)}


def _drawn(logits: Tensor, rows: list[int], draws: dict[int, Draw]) -> dict[int, int | None]:
    if not rows:
        return {}
    part = logits if len(rows) == logits.shape[0] else logits[rows]
    tokens = sample(part, [draws[row] for row in rows])
    return dict(zip(rows, tokens, strict=True))
