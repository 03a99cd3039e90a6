"""What the result of an iteration says of its drafts: the projection takes back those that were not accepted."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from accelgen.proto.messages import StepResult
from accelgen.scheduler.flight import Flight
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import RequestTable


def settle(
    flight: Flight,
    result: StepResult,
    table: RequestTable,
    speculation: Speculation,
    later: Iterable[Flight],
) -> None:
    """Takes back what `table` counted for drafts of `flight` that were not accepted, before their tokens are confirmed.
    The flight's work becomes what was really done, and entries of `later` flights start where they will."""
    entries = flight.entries
    if entries.drafts is None:
        return
    made = np.zeros_like(entries.drafts)
    drafted = result.drafted or [0] * len(result.ids)
    places = {id: i for i, id in enumerate(flight.ids)}
    rejected: dict[int, int] = {}
    for id, count, new in zip(result.ids, result.counts, drafted, strict=True):
        slot, i = table.slot_of.get(id), places.get(id)
        if i is None:
            continue
        made[i] = new
        planned = flight.drafts_of(i)
        if slot is None or not planned or not count:
            continue
        wrong = planned + 1 - count
        if wrong:
            rejected[id] = wrong
        known = int(table.prompt_len[slot]) + len(table.request(slot).generated)
        table.settle(slot, known + planned, planned, wrong)
        speculation.observe(table, slot, planned, new, count - 1)
    flight.work = entries.work_with(made)
    speculation.observe_time(int(entries.drafts.max()), result.draft_s)
    for follower in later if rejected else ():
        less = [rejected.get(id, 0) for id in follower.ids]
        follower.entries.starts -= np.array(less, dtype=np.int64)
