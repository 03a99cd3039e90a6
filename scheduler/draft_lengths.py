"""How many tokens are drafted for each decode, when the policy leaves that to the engine.

`fixed`: as many as allowed. `adaptive`: one more as long as it is likely enough to be accepted. The s-th draft of a
request whose drafts are accepted at the rate r brings r^s tokens, and costs what one more token costs this iteration
(by the cost model; what the drafter itself takes is in the measured iterations and so in the model's correction). It is
worth that if it brings tokens faster than the iteration as it is: r^s / t_draft > decodes / t_iteration. So lengths
fall with the load, to nothing where the device is saturated, as they do in SLOs-Serve (arXiv 2504.08784). The rule is
ours. Requests without drafts try a single one now and then, or nobody would learn that they have become predictable.

Drafts take what is left: tokens of the limit, and blocks that are free and that no running request needs for its next
token. The likeliest go first.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.decision import Entries
from accelgen.scheduler.moves import Reach
from accelgen.scheduler.policy import Decision, View
from accelgen.scheduler.table import RUNNING, Floats, Ints, RequestTable

LEAST_RATE = 0.2  # less likely drafts are never worth it: the drafter's own time is in no model
PROBE_EVERY = 16  # tokens
MARGIN = 8  # tokens over which the price of one more is taken


def bounded(drafts: Ints, entries: Entries, table: RequestTable, most: int) -> Ints:
    """`drafts` [n] within what the server and each request allow: the last token of a request is never processed."""
    slots = entries.slots
    able = entries.decode & (table.state[slots] == RUNNING)
    left = np.minimum(table.limit[slots] - table.length[slots] - 1, most)
    found: Ints = np.where(able, np.clip(drafts, 0, np.maximum(left, 0)), 0)
    return found


def drafts_of(view: View, decision: Decision, reach: Reach, stated: Ints | None, free: int) -> Ints:
    """Drafts for each of the entries within reach, [n]: those that the policy has `stated`, or by the rule above, cut
    to what there is. `free`: blocks that can be had at once, those of victims not counted."""
    speculation, table, entries = view.speculation, view.table, reach.entries
    rates = speculation.rates(table, entries.slots)
    if stated is None:
        stated = np.full(len(entries.slots), speculation.most, dtype=np.int64)
        if speculation.adaptive:
            stated = np.minimum(stated, _worthwhile(view, entries, rates))
    drafts = bounded(stated, entries, table, speculation.most)
    if decision.embed:  # what a host does not use is another's by this plan
        drafts[np.isin(entries.slots, [*decision.embed.values()])] = 0
    room = free - view.pinned_blocks - _needed(decision, reach, table)
    return _fitting(entries, table, drafts, rates, view.limits.max_num_batched_tokens, room)


def _needed(decision: Decision, reach: Reach, table: RequestTable) -> int:
    """Blocks that the plan takes without drafts, less those that it gives up, and one for each running request."""
    entries, give = reach.entries, decision.allocate
    back = np.array(reach.back, dtype=np.int64)
    needed = int(table.block_demand(entries.slots, entries.counts).sum()) + len(table.running)
    needed += int(table.block_demand(back, np.zeros_like(back)).sum())
    needed += sum(max(0, blocks - int(table.blocks[slot])) for slot, blocks in give.items())
    return needed - int(table.blocks[np.array(reach.drop, dtype=np.int64)].sum())


def _worthwhile(view: View, entries: Entries, rates: Floats) -> Ints:
    """The longest drafts of which each token is worth its price, [n]."""
    work = entries.work
    base_s = view.cost.predict(work)
    more = replace(work, prefill_tokens=work.prefill_tokens + MARGIN)
    draft_s = max(view.cost.predict(more) - base_s, 0.0) / MARGIN
    least = min(max(draft_s * int(entries.decode.sum()) / base_s, LEAST_RATE), 1.0)
    lengths = np.floor(np.log(least) / np.log(np.clip(rates, 0.01, 0.99))).astype(np.int64)
    probes = (lengths == 0) & (view.table.length[entries.slots] % PROBE_EVERY == 0)
    found: Ints = lengths + probes
    return found


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
