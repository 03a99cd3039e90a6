"""Memory for a waiting request that would else be late: unused tails of others first, then a victim (CacheOPT, arXiv
2503.13773, section 3.3.3).

Reconstructed: it is looked at when it will be critical in the next iteration, because what is taken from others is free
then; only the first one that waits, because it is the next to start; not if it is late already. And nobody gives way to
it who would then be critical himself: two would take each other's memory for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.memory.books import Books
from accelgen.scheduler.memory.growth import Growth
from accelgen.scheduler.memory.waiting import latest_start_s
from accelgen.scheduler.policy import Decision, View
from accelgen.scheduler.table import WAITING, Floats, Ints, RequestTable

AHEAD = 2  # longest iterations: this one and the next


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast things go: tokens of a prompt per iteration, the longest iteration lately, and when the one that is
    planned starts. Seconds."""

    chunk: int
    longest_s: float
    start_s: float

    def slack_s(self, table: RequestTable, slots: Ints) -> Floats:
        """For how long each of `slots` may stay out of a batch, [n]."""
        slack: Floats = latest_start_s(table, slots, self.chunk, self.longest_s) - self.start_s
        return slack


def rescue(
    view: View,
    decision: Decision,
    books: Books,
    rule: Growth,
    pace: Pace,
    victims: Callable[[], Ints],
) -> None:
    """Sees to it that there are blocks, in the next plan, for the first request that waits, if it will be critical.
    `victims`: who may be preempted for it, the first one in front, asked only if somebody must be."""
    table = view.table
    head = _head(table, {*decision.slots, *decision.requeue})
    if head is None or not _has_seat(view, decision):
        return
    slack_s = float(pace.slack_s(table, np.array([head]))[0])
    if not -pace.longest_s <= slack_s < AHEAD * pace.longest_s:
        return
    most = max(int(table.limit[head]) - 1, int(table.length[head]))
    held = int(table.blocks[head])
    lacks = rule.least_demand(int(table.length[head]), most) - held - books.left
    lacks -= max(0, view.pinned_blocks - held)  # others that wait must do without them
    if lacks <= 0:
        return
    unused = books.unused(rule)
    chosen = []
    if lacks > sum(unused.values()):
        chosen = _choose(table, decision, victims(), pace, unused, lacks)
        if not chosen:
            return
    books.close(chosen)
    books.cut(decision, rule, pace.slack_s(table, books.slots), lacks)
    _preempt(decision, chosen)


def _head(table: RequestTable, taken: set[int]) -> int | None:
    return next((slot for _, slot in table.waiting if slot not in taken), None)


def _has_seat(view: View, decision: Decision) -> bool:
    table = view.table
    state = table.state[np.array(decision.slots, dtype=np.int64)]
    new = int(np.count_nonzero(state == WAITING))
    return table.seated + new - len(decision.preempt) < view.limits.max_num_seqs


def _choose(
    table: RequestTable,
    decision: Decision,
    victims: Ints,
    pace: Pace,
    unused: dict[int, int],
    lacks: int,
) -> list[int]:
    """As many of `victims` as have, with what is `unused` of the others, that many blocks, and can afford to lose them;
    none if that is not enough."""
    tied = {*decision.preempt, *decision.embed, *decision.embed.values(), *decision.allocate}
    pending = table.length[victims] - table.computed[victims]
    again = np.ceil(table.length[victims] / pace.chunk)
    again -= np.ceil(np.maximum(pending, 1) / pace.chunk)
    slack_s = pace.slack_s(table, victims) - again * pace.longest_s
    lacks -= sum(unused.values())
    chosen: list[int] = []
    for slot, left_s in zip(victims.tolist(), slack_s.tolist(), strict=True):
        if left_s < AHEAD * pace.longest_s or slot in tied:
            continue
        chosen.append(slot)
        lacks -= int(table.blocks[slot]) - unused.get(slot, 0)
        if lacks <= 0:
            return chosen
    return []


def _preempt(decision: Decision, chosen: list[int]) -> None:
    """They give way, and are not processed."""
    if not chosen:
        return
    gone = {*chosen}
    kept = [at for at, slot in enumerate(decision.slots) if slot not in gone]
    decision.slots = [decision.slots[at] for at in kept]
    decision.counts = [decision.counts[at] for at in kept]
    if decision.drafts is not None:
        decision.drafts = [decision.drafts[at] for at in kept]
    decision.preempt = [*decision.preempt, *chosen]
