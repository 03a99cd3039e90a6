"""Drafts in the plan (arXiv 2504.08784, SLO-adaptive speculative decoding): which planner a replica has, and how many
tokens are drafted for whom in a batch of the plan.

The acceptance is the replica's own, as measured lately, and not a constant; what the drafter did not make of what was
planned counts as not accepted. A step of the drafter takes what it has been taking. Where no length that may be had
brings a second token (floor(acc(s)) < 2), batches are planned without drafts. Where a batch has none, the engine adds
those that are worth their price (`draft_lengths.py`). (All reconstructed: the code has fixed numbers, and one planner.)
"""

from __future__ import annotations

import numpy as np
from msgspec import structs

from accelgen.scheduler.policy import View, is_decode
from accelgen.scheduler.slos_serve.planner_ar import ArPlanner
from accelgen.scheduler.slos_serve.planner_sd import SdPlanner, accepted
from accelgen.scheduler.slos_serve.roofline import Roofline
from accelgen.scheduler.slos_serve.slices import Planner, Slice
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import RUNNING

LEAST_ALPHA, MOST_ALPHA = 0.01, 0.99


def planner_for(speculation: Speculation, roofline: Roofline, tiers: tuple[float, ...]) -> Planner:
    """The planner of a replica with such a drafter, or with none."""
    alpha = min(max(speculation.rate * speculation.filled, LEAST_ALPHA), MOST_ALPHA)
    most = 1 + speculation.most
    if int(accepted(most, alpha)) < 2:
        return ArPlanner(roofline, tiers)
    pieces = tuple(
        structs.replace(piece, per_step_s=piece.per_step_s + speculation.step_s)
        for piece in roofline.pieces
    )
    return SdPlanner(structs.replace(roofline, pieces=pieces), tiers, alpha, most)


def stated_drafts(
    view: View, slots: list[int], one: Slice, tiers: dict[int, int]
) -> list[int] | None:
    """For each of `slots`, which are in a batch together, how many tokens its tier drafts by the plan; `tiers` by
    request id, for those that count as decodes in it. None if nobody drafts any."""
    if not view.speculation.most or max(one.lengths, default=0) < 2:
        return None
    table, at = view.table, np.array(slots, dtype=np.int64)
    able = is_decode(table, at) & (table.state[at] == RUNNING)
    found = [0] * len(slots)
    for i, id in enumerate(table.ids[at].tolist()):
        if able[i] and id in tiers:
            found[i] = max(0, one.lengths[tiers[id]] - 1)
    return found
