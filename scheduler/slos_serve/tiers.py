"""TPOT objectives as a few tiers, so that a set of decodes is a count per tier (arXiv 2504.08784; its code).

The tiers are all distinct TPOT objectives, each reduced by a millisecond, and a loose one beyond the last. A request
belongs to the loosest tier that it can afford at present: one that lags behind its demand moves to a tighter one.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

MARGIN_S = 0.001  # off each objective
LOOSE_S = 0.1  # from the last tier to the loose one
MOST_TIERS = 4  # the loose one included
LEAST_S = 1e-6  # of a tier

Counts = tuple[int, ...]
"""Decodes per tier."""


def tiers_of(tpots_s: Iterable[float], margin_s: float = MARGIN_S) -> tuple[float, ...]:
    """The tiers of such TPOT objectives, ascending, in seconds per token.

    The paper's services have two objectives; requests to a server may state any. Of more than `MOST_TIERS` - 1 distinct
    ones, the tightest and others at equal ranks are tiers (reconstructed): a request between two of them is served as
    the tighter one asks. An objective below 2 * `margin_s` is halved instead of reduced; nothing is below `LEAST_S`."""
    stated = sorted(set(tpots_s))
    most = MOST_TIERS - 1
    if len(stated) > most:
        stated = [stated[i * len(stated) // most] for i in range(most)]
    reduced = sorted({reduced_s(tpot_s, margin_s) for tpot_s in stated})
    return (*reduced, (reduced[-1] if reduced else 0.0) + LOOSE_S)


def reduced_s(tpot_s: float, margin_s: float = MARGIN_S) -> float:
    """An objective less its margin."""
    return max(tpot_s - margin_s, tpot_s / 2, LEAST_S)


def tier_of(tiers: tuple[float, ...], allowed_s: float) -> int:
    """The loosest tier of at most `allowed_s` per token; the tightest if there is none."""
    return max(0, bisect_right(tiers, allowed_s) - 1)


def joined(counts: Counts, tier: int, more: int = 1) -> Counts:
    """`more` decodes have joined a tier."""
    return (*counts[:tier], counts[tier] + more, *counts[tier + 1 :])
