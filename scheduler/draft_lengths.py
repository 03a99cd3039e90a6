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

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.decision import Entries
from accelgen.scheduler.policy import View
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


def choose(view: View, entries: Entries, preempt: Sequence[int]) -> Ints:
    """Drafts for each of the entries, [n], by the rule above. `preempt`: slots whose blocks come back before."""
    speculation, table = view.speculation, view.table
    rates = speculation.rates(table, entries.slots)
    wanted = np.full(len(entries.slots), speculation.most, dtype=np.int64)
    if speculation.adaptive:
        wanted = np.minimum(wanted, _worthwhile(view, entries, rates))
    drafts = bounded(wanted, entries, table, speculation.most)
    return _fitting(view, entries, drafts, rates, preempt)


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
    view: View, entries: Entries, drafts: Ints, rates: Floats, preempt: Sequence[int]
) -> Ints:
    """`drafts` cut to the tokens and blocks that are left, [n]."""
    table, slots, counts = view.table, entries.slots, entries.counts
    order = np.argsort(-rates, kind="stable")
    left = view.limits.max_num_batched_tokens - int(counts.sum())
    wanted = drafts[order]
    given = np.clip(left - (np.cumsum(wanted) - wanted), 0, wanted)
    drafts = np.empty_like(drafts)
    drafts[order] = given
    own = table.block_demand(slots, counts)
    room = view.free_blocks - view.pinned_blocks - int(own.sum()) - len(table.running)
    room += int(table.blocks[np.array(preempt, dtype=np.int64)].sum())
    further = (table.block_demand(slots, counts + drafts) - own)[order]
    drafts[order] = np.where((further == 0) | (np.cumsum(further) <= room), drafts[order], 0)
    return drafts


def expected_work(entries: Entries, work: Work, filled: float) -> Work:
    """The features if only the part `filled` of the drafts is made; `work` if all are."""
    if entries.drafts is None:
        return work
    return entries.work_with(np.rint(filled * entries.drafts).astype(np.int64))
