"""How many tokens are drafted for each decode, when the policy leaves that to the engine.

`fixed`: as many as allowed. `adaptive`: one more as long as it is worth it. The s-th draft of a request whose drafts
are accepted at the rate r brings r^s tokens. It costs what the iteration becomes longer by (the cost model's word on
the whole batch with it), and together with the s-th drafts of the others a step of the drafter, as measured. Both must
bring tokens faster than the iteration as it is: for each request r^s / seconds of one such token, and for all of them
sum(r^s) / (seconds of all + the drafter's step), must be at least decodes / seconds without drafts. So lengths fall
with the load, to nothing where the device is saturated, as they do in SLOs-Serve (arXiv 2504.08784). The rule is ours.
Requests without drafts try a single one now and then, or nobody would learn that they have become predictable; so do
all when the drafter has been making next to nothing of what was planned. They do so in the same iterations: a step of
the drafter costs as much for one as for all.

Drafts, also those that the policy states, take what is left: tokens of the limit, and blocks that are free and that no
running request needs for its next token. The likeliest go first.
"""

from __future__ import annotations

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.decision import Entries
from accelgen.scheduler.moves import Reach
from accelgen.scheduler.policy import Decision, View
from accelgen.scheduler.table import RUNNING, Bools, Floats, Ints, RequestTable

LEAST_RATE = 0.2  # less likely drafts are never worth it: what a token costs is only a model's word
LEAST_FILLED = 0.02  # of what is planned: less is as good as no drafter
PROBE_EVERY = 16  # tokens
MOST_PROBES = 16  # at once: what all of them cost comes in one iteration


def bounded(drafts: Ints, entries: Entries, table: RequestTable, most: int) -> Ints:
    """`drafts` [n] within what the server and each request allow: the last token of a request is never processed."""
    slots = entries.slots
    able = entries.decode & (table.state[slots] == RUNNING)
    left = np.minimum(table.limit[slots] - table.length[slots] - 1, most)
    found: Ints = np.where(able, np.clip(drafts, 0, np.maximum(left, 0)), 0)
    return found


def probes(table: RequestTable, slots: Ints, able: Bools, most: int = MOST_PROBES) -> Bools:
    """Who of those that are `able` tries a single draft, [n]: so many of them, by turns, when the first of them is at
    every so many tokens."""
    who = np.flatnonzero(able & (table.state[slots] == RUNNING))
    found: Bools = np.zeros(len(slots), dtype=bool)
    if not len(who) or most < 1:
        return found
    first = int(table.length[slots[who[np.argmin(table.ids[slots[who]])]]])
    if first % PROBE_EVERY == 0:
        turn = first // PROBE_EVERY * most
        found[who[(turn + np.arange(min(most, len(who)))) % len(who)]] = True
    return found


def drafts_of(view: View, decision: Decision, reach: Reach, stated: Ints | None, free: int) -> Ints:
    """Drafts for each of the entries within reach, [n]: those that the policy has `stated`, or by the rule above, cut
    to what there is. `free`: blocks that can be had at once, those of victims not counted."""
    speculation, table, entries = view.speculation, view.table, reach.entries
    rates = speculation.rates(table, entries.slots)
    if stated is None:
        stated = np.full(len(entries.slots), speculation.most, dtype=np.int64)
        if speculation.filled < LEAST_FILLED:
            stated = np.zeros_like(stated)
        elif speculation.adaptive:
            stated = _worthwhile(view, entries, rates)
        stated += probes(table, entries.slots, entries.decode & (stated == 0))
    drafts = bounded(stated, entries, table, speculation.most)
    if decision.embed:  # what a host does not use is another's by this plan
        drafts[np.isin(entries.slots, [*decision.embed.values()])] = 0
    room = free - view.pinned_blocks - _needed(decision, reach, table)
    return _fitting(entries, table, drafts, rates, view.limits.max_num_batched_tokens, room)


def _needed(decision: Decision, reach: Reach, table: RequestTable) -> int:
    """Blocks that the plan takes without drafts, and one for each running request. What victims hold is not counted in
    return: others may share it."""
    entries, give = reach.entries, decision.allocate
    back = np.array(reach.back, dtype=np.int64)
    needed = int(table.block_demand(entries.slots, entries.counts).sum()) + len(table.running)
    needed += int(table.block_demand(back, np.zeros_like(back)).sum())
    return needed + sum(max(0, n - int(table.blocks[slot])) for slot, n in give.items())


def _worthwhile(view: View, entries: Entries, rates: Floats) -> Ints:
    """The longest drafts of which each token is worth its price, [n]."""
    cost, speculation = view.cost, view.speculation
    lengths = np.zeros(len(entries.slots), dtype=np.int64)
    going = bounded(np.ones_like(lengths), entries, view.table, 1) > 0
    spent_s = cost.predict(entries.work)
    pace = int(entries.decode.sum()) / spent_s  # tokens per second without drafts
    chances = np.clip(rates, 0.0, 0.999)
    for length in range(1, speculation.most + 1):
        likely = chances**length
        going = going & (likely >= LEAST_RATE)
        worth = going
        for _ in range(2):  # what all of them cost; then what those cost that are worth that
            going = worth
            count = int(going.sum())
            if not count:
                return lengths
            with_s = cost.predict(entries.work_with(lengths + going))
            more_s = max(with_s - spent_s, 0.0)
            worth = going & (likely * count >= more_s * pace)
        if float(likely[going].sum()) < (more_s + speculation.step_s) * pace:
            break
        lengths, spent_s = lengths + going, with_s
    return lengths


def _fitting(
    entries: Entries, table: RequestTable, drafts: Ints, rates: Floats, tokens: int, room: int
) -> Ints:
    """`drafts` cut to the `tokens` of an iteration and to `room` blocks, [n]."""
    slots, counts = entries.slots, entries.counts
    order = np.argsort(-rates, kind="stable")
    left = tokens - int(counts.sum())
    wanted = drafts[order]
    given = np.clip(left - (np.cumsum(wanted) - wanted), 0, wanted)
    drafts = np.empty_like(drafts)
    drafts[order] = given
    own = table.block_demand(slots, counts)
    further = (table.block_demand(slots, counts + drafts) - own)[order]
    drafts[order] = np.where((further == 0) | (np.cumsum(further) <= room), drafts[order], 0)
    return drafts


def expected_work(entries: Entries, work: Work, filled: float) -> Work:
    """The features if only the part `filled` of the drafts is made; `work` if all are."""
    if entries.drafts is None:
        return work
    return entries.work_with(np.rint(filled * entries.drafts).astype(np.int64))
