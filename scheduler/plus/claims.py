"""When is the next token of a request due, and who has missed an objective for good?"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.policies.slack import NEAR_S
from accelgen.scheduler.table import FAR_S, Bools, Floats, Ints, RequestTable

CLOSE_S = 1e-6
LEAST_PACE_S = 0.02  # per token, of requests that state only when they must be done


def due_s(
    table: RequestTable, slots: Ints, every_gap: bool, iteration_s: float, drafts: bool = False
) -> Floats:
    """When the next token of each must be there, [n]. The first: by the TTFT objective. Later ones: a TPOT after the
    one before (`every_gap`), or on the line of cumulative deadlines, that is max(TTFT deadline, first token) + TPOT for
    each. With an end-to-end objective: early enough for the predicted rest at twice `iteration_s` per token. `drafts`:
    if all that are in flight are accepted; else none of them counts."""
    tpot_s, first_due_s = table.tpot_s[slots], table.first_due_s[slots]
    generated = table.generated(slots) + (table.drafted[slots] if drafts else 0)
    if every_gap:
        later = table.last_s[slots] + tpot_s
    else:
        came_s = np.where(table.first_s[slots] < NEAR_S, table.first_s[slots], table.last_s[slots])
        line_s = np.where(first_due_s < NEAR_S, np.maximum(first_due_s, came_s), came_s)
        later = line_s + generated * tpot_s + table.shift_s[slots]
    due: Floats = np.where(generated > 0, np.where(tpot_s < NEAR_S, later, FAR_S), first_due_s)
    end_s = table.end_due_s[slots]
    if (end_s < NEAR_S).any():
        left = np.maximum(table.predicted_output[slots] - generated, 1)
        rest_s = left * max(LEAST_PACE_S, 2 * iteration_s)
        due = np.where(end_s < NEAR_S, np.minimum(due, end_s - rest_s), due)
    return due


def has_missed(table: RequestTable, slots: Ints, due: Floats, soonest_s: float) -> Bools:
    """Who cannot attain any more, [n], if no token can be there before `soonest_s`; `due` at best."""
    end_s = table.end_due_s[slots]
    first_s = table.first_s[slots]
    first_late = (first_s < NEAR_S) & (first_s > table.first_due_s[slots] + CLOSE_S)
    paced = end_s > NEAR_S
    behind = np.where(paced, due, end_s) < soonest_s - CLOSE_S
    missed: Bools = first_late | behind
    return missed
