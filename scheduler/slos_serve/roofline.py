"""How long a batch takes, and its inverse: the largest batch within a time (arXiv 2504.08784, performance model).

    T(batch) = max over pieces of (per_token * tokens + per_step * draft steps + per_decode * decodes + base)

with all tokens of the batch, prompt and decode alike, and as many draft steps as the longest draft has. The paper's
model knows no context; `per_decode` is ours: the attention of a decode over its context. That makes the knee form of
`cost_model.py`, which is a maximum of two lines already, one of these.
"""

from __future__ import annotations

from math import inf

from msgspec import Struct, structs

from accelgen.scheduler.cost_model import CostModel

MOST_TOKENS = 16384  # of a batch, whatever time there is
_ROUNDING = 1e-6  # tokens: quotients of sums of floats are off by less


class Piece(Struct, frozen=True):
    """One line of the roofline: seconds per token, per draft step, per decode, and the rest."""

    per_token_s: float
    per_step_s: float
    base_s: float
    per_decode_s: float = 0.0


class Roofline(Struct, frozen=True):
    """The maximum of its pieces, at least one; no batch has more than `most` tokens."""

    pieces: tuple[Piece, ...]
    most: int = MOST_TOKENS

    def seconds(self, tokens: int, steps: int = 0, decodes: int = 0) -> float:
        """What a batch of so many tokens takes, `decodes` of its requests being decodes."""
        longest_s = 0.0
        for one in self.pieces:  # asked for often: neither a generator nor further calls
            fixed_s = one.base_s + one.per_step_s * steps + one.per_decode_s * decodes
            longest_s = max(longest_s, fixed_s + one.per_token_s * tokens)
        return longest_s

    def time_to_batch(self, limit_s: float, steps: int = 0, decodes: int = 0) -> int:
        """The most tokens that a batch can have that takes at most `limit_s`; 0 if none does."""
        size = float(self.most)
        for one in self.pieces:
            left_s = limit_s - (one.base_s + one.per_step_s * steps + one.per_decode_s * decodes)
            if one.per_token_s > 0:
                size = min(size, left_s / one.per_token_s + _ROUNDING)
            elif left_s < 0:
                return 0
        return max(0, int(size))

    def within(self, longest_s: float, most: int) -> Roofline:
        """The same, of batches that have at most `most` tokens, and take at most `longest_s` without any decode."""
        limit = self.most if longest_s == inf else self.time_to_batch(longest_s)
        return structs.replace(self, most=max(1, min(self.most, most, limit)))


PUBLISHED = {
    "opt-6.7b+opt-125m": Roofline(
        (Piece(6.878e-5, 1.249e-6, 2.480e-2), Piece(7.523e-5, 3.465e-3, 3.033e-3))
    ),
    "opt-6.7b": Roofline((Piece(6.878e-5, 0.0, 2.480e-2), Piece(7.523e-5, 0.0, 3.033e-3))),
    "opt-13b-tp2": Roofline((Piece(7.213e-5, 3.341e-3, 3.173e-2), Piece(0.0, 3.014e-3, 1.24e-5))),
    "opt-30b-tp4": Roofline((Piece(9.314e-5, 2.797e-3, 3.788e-2),)),
    "deepseek-r1-distill-qwen-1.5b": Roofline((Piece(2.916e-4, 0.0, 1.804e-2),)),
    "toolllama-7b": Roofline((Piece(6.572e-5, 0.0, 2.752e-2),)),
    "opt-13b-h100": Roofline((Piece(4.177e-5, 0.0, 2.743e-2),)),
    "qwen2.5-32b-tp4": Roofline((Piece(1.054e-4, 4.52e-3, 4.513e-2),)),
}
"""The authors' fits, as in their code (`gulang2019/SLOServe`): A100 unless the name says otherwise."""


def fitted(cost: CostModel, context: float = 0.0, prior: float = 0.0) -> Roofline:
    """A replica's own cost model as a roofline: decodes have `context` computed tokens each, prompt tokens have `prior`
    before them, on average. Equal to `CostModel.predict` for batches of which that is true."""
    k, scale = cost.coefficients, cost.scale
    attention_s = k.e * prior
    decode_s = k.c + k.d * context - attention_s  # `attention_s` is not paid by decodes
    lines = [(k.b, k.a)] if k.b2 == 0 else [(k.b, k.a), (k.b + k.b2, k.a - k.b2 * k.knee)]
    return Roofline(
        tuple(
            Piece(scale * (slope + attention_s), 0.0, scale * base, scale * decode_s)
            for slope, base in lines
        )
    )
