"""The waiting order under SLOs-Serve: admitted requests by deadline, then new ones by deadline, then best-effort ones
by arrival (`standing.py` reads it again)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice

import numpy as np

from accelgen.scheduler.request import Request
from accelgen.scheduler.slos_serve.standing import MOST_LOOKED_AT, PRIORITY_S, new_places
from accelgen.scheduler.slos_serve.state import Memory
from accelgen.scheduler.slos_serve.survey import Rules, due_s
from accelgen.scheduler.table import FAR_S, RequestTable

IsPromised = Callable[[Request], bool]


def keys(
    table: RequestTable, slots: list[int], state: Memory, rules: Rules, is_promised: IsPromised
) -> dict[int, float]:
    """By slot. Who `is_promised` counts as admitted."""
    due = places(table, slots, rules)
    arrival, ids = table.arrival_s[slots].tolist(), table.ids[slots].tolist()
    found = {}
    for i, slot in enumerate(slots):
        if ids[i] in state.best_effort:
            found[slot] = PRIORITY_S + arrival[i]
        else:
            mine = ids[i] in state.admitted or is_promised(table.request(slot))
            found[slot] = due[i] - PRIORITY_S * mine
    return found


def moved_keys(
    table: RequestTable, state: Memory, rules: Rules, is_promised: IsPromised
) -> dict[int, float]:
    """New ones, by slot, of requests that wait as new ones and have been judged."""
    new = [slot for _, slot in islice(new_places(table), MOST_LOOKED_AT)]
    ids = table.ids[new].tolist() if new else []
    judged = [
        slot
        for slot, id in zip(new, ids, strict=True)
        if id in state.admitted or id in state.best_effort
    ]
    return keys(table, judged, state, rules, is_promised) if judged else {}


def places(table: RequestTable, slots: list[int], rules: Rules) -> list[float]:
    """Deadlines, none so late that it leaves the range of keys."""
    due = due_s(table, np.array(slots, dtype=np.int64), rules)
    found: list[float] = np.minimum(due, 2 * FAR_S).tolist()
    return found
