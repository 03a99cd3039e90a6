"""Drafts in the plan (arXiv 2504.08784, SLO-adaptive speculative decoding): which planner a replica has, and how many
tokens are drafted for whom in a batch of the plan.

The acceptance is the replica's own, as measured lately, and not a constant; what the drafter did not make of what was
planned counts as not accepted. A step of the drafter takes what it has been taking. Where no length that may be had
brings a second token (floor(acc(s)) < 2), batches are planned without drafts. Where a batch has none, and requests come
so seldom that hardly any would wait longer for it, the engine adds those that are worth their price
(`draft_lengths.py`); else it is kept short, but for single drafts now and then, by which the acceptance stays known.
(All reconstructed: the code has fixed numbers, and one planner.)
"""

from __future__ import annotations

import numpy as np
from msgspec import structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.draft_lengths import MOST_PROBES, probes
from accelgen.scheduler.policy import View, is_decode
from accelgen.scheduler.slos_serve.planner_ar import ArPlanner
from accelgen.scheduler.slos_serve.planner_either import EitherPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner, accepted
from accelgen.scheduler.slos_serve.roofline import Roofline
from accelgen.scheduler.slos_serve.slices import Planner, Slice
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import RUNNING

LEAST_ALPHA, MOST_ALPHA = 0.01, 0.99
MEETS = 0.03  # arrivals, on average, while a batch lasts longer for drafts beyond the plan


def planner_for(speculation: Speculation, roofline: Roofline, tiers: tuple[float, ...]) -> Planner:
    """The planner of a replica with such a drafter, or with none."""
    plain = ArPlanner(roofline, tiers)
    alpha = min(max(speculation.rate * speculation.filled, LEAST_ALPHA), MOST_ALPHA)
    most = 1 + speculation.most
    if int(accepted(most, alpha)) < 2:
        return plain
    pieces = tuple(
        structs.replace(piece, per_step_s=piece.per_step_s + speculation.step_s)
        for piece in roofline.pieces
    )
    roofline = structs.replace(roofline, pieces=pieces)
    return EitherPlanner(plain, SdPlanner(roofline, tiers, alpha, most))


def stated_drafts(
    view: View, slots: list[int], one: Slice, tiers: dict[int, int], rate_per_s: float
) -> list[int] | None:
    """For each of `slots`, which are in a batch together, how many tokens its tier drafts by the plan; `tiers` by
    request id, for those that count as decodes in it. None if that is left to the engine. `rate_per_s`: of arrivals."""
    table, at = view.table, np.array(slots, dtype=np.int64)
    decode = is_decode(table, at)
    if max(one.lengths, default=0) < 2:
        decodes = int(np.count_nonzero(decode))
        if not view.speculation.adaptive or rate_per_s * _longer_s(view, decodes) < MEETS:
            return None
        room = min(MOST_PROBES, one.size - decodes)
        tried: list[int] = probes(table, at, decode, room).astype(int).tolist()
        return tried
    able = decode & (table.state[at] == RUNNING)
    found = [0] * len(slots)
    for i, id in enumerate(table.ids[at].tolist()):
        if able[i] and id in tiers:
            found[i] = max(0, one.lengths[tiers[id]] - 1)
    return found


def _longer_s(view: View, decodes: int) -> float:
    """By how much drafts of so many requests make a batch longer, at most."""
    most, cost = view.speculation.most, view.cost
    with_s = cost.predict(Work(decode_seqs=decodes * (1 + most)))
    return with_s - cost.predict(Work(decode_seqs=decodes)) + most * view.speculation.step_s
