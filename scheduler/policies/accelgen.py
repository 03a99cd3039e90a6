"""`accelgen`: AccelGen, literal to what is known of it (arXiv 2503.13737; docs/policies.md).

1. Dynamic chunking: the token budget of a batch is S_b = S_pf * SLO_min / T_pf, from the pivot forward size, its
   iteration time, and the tightest iteration objective; a long prompt is cut where the budget ends, and finished before
   another long one begins (exclusive allocation).
2. Ordering: by T_r, the time a request may still stay out of a batch (slack.py).
3. Multi-resource batching: the urgent set first, preempting the largest T_r where there is no room; then, among
   the requests whose T_r lies within gamma of the head's, again and again the one whose demand (tokens, blocks) is
   nearest to what is left of both.

Reconstructed, where the sources are silent: while tokens and blocks are left, the next head opens another window,
so that resources do not lie idle beside a queue; the distance is normalised by S_b and by the number of KV blocks;
SLO_min is the tightest TPOT objective if any candidate decodes, else the tightest time per remaining chunk; S_b is at
least the number of decodes, and one block; within the urgent set decodes come before prompts (they take one token
each, and the floor of S_b counts them); the pivot is where the fitted cost model reaches 85 % of its throughput; a
prompt is long if it exceeds S_b; a request starts only if there are blocks for all its pending tokens besides those
promised to running ones (AccelGen keeps vLLM's block manager, which does so); a batch that would stay empty for want
of blocks preempts the largest T_r.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
from msgspec import Struct, structs

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.policies.distance import Contest, take_nearest
from accelgen.scheduler.policies.shared import Batch, at_least, least_load
from accelgen.scheduler.policies.slack import Pace, Slack, slack
from accelgen.scheduler.policies.urgent import Candidates, make_room, take_together, take_urgent
from accelgen.scheduler.policy import Decision, StepStats, Verdict, View, is_decode
from accelgen.scheduler.request import Request
from accelgen.scheduler.table import Bools, Floats, Ints

WINDOW = 200  # iterations over which the longest one is taken
MOST_SEATS = 2  # waiting requests looked at, in multiples of max_num_seqs
SMOOTH = 0.05  # weight of a new chunk, or iteration, in the moving averages


class Memory(Struct, frozen=True):
    """What the rule remembers: the last iteration times in seconds, and moving averages."""

    runs_s: tuple[float, ...] = ()
    chunk: float = 0.0  # tokens; 0: none seen yet
    mean_s: float = 0.0
    preempted: float = 0.0  # preemptions per finished request


class AccelGen:
    name = "accelgen"

    def __init__(
        self, gamma_s: float = 0.75, pivot_tokens: int = 0, raw_units: bool = False
    ) -> None:
        at_least("gamma_s", gamma_s, 0, "s")
        at_least("pivot_tokens", pivot_tokens, 0, "tokens")
        self.gamma_s, self.pivot_tokens, self.raw_units = gamma_s, pivot_tokens, raw_units

    def initial(self) -> Memory:
        return Memory()

    def order_key(self, view: View, slot: int, state: Memory) -> float:
        """The time by which the request must be in a batch: T_r plus now, which does not change with time."""
        pace = self._pace(view, state)
        now_s = float(view.table.last_s[slot])
        return now_s + float(slack(view.table, np.array([slot]), now_s, pace).remaining_s[0])

    def admit(self, request: Request, views: Sequence[View], now_s: float) -> Verdict:
        return least_load(request, views)

    def plan(self, view: View, state: Memory, start_s: float) -> tuple[Decision, Memory]:
        pace = self._pace(view, state)
        found, tightest_s = self._candidates(view, pace, start_s)
        budget = self._budget(view, state, found, tightest_s)
        batch = Batch(view, budget)
        if len(found.slots):
            take_urgent(batch, found, pace.longest_s)
            self._take_similar(batch, state, found, budget, pace)
            make_room(batch, found)
        return batch.decision(), state

    def observe(self, step: StepStats, state: Memory) -> Memory:
        chunk = state.chunk
        for tokens in step.chunks:
            chunk = tokens if chunk == 0 else chunk + SMOOTH * (tokens - chunk)
        first = state.mean_s == 0
        return structs.replace(
            state,
            runs_s=(*state.runs_s[1 - WINDOW :], step.run_s),
            chunk=chunk,
            mean_s=step.run_s if first else state.mean_s + SMOOTH * (step.run_s - state.mean_s),
            preempted=state.preempted
            + SMOOTH * (min(1, step.preempted) - state.preempted * min(1, step.finished)),
        )

    # --- what the variants change ----------------------------------------------------------------------------------

    def _pivot(self, view: View, state: Memory) -> tuple[int, float]:
        """S_pf in tokens and T_pf in seconds."""
        if self.pivot_tokens:
            return self.pivot_tokens, view.cost.predict(Work(prefill_tokens=self.pivot_tokens))
        return view.cost.pivot(view.limits.max_num_batched_tokens)

    def _budget(self, view: View, state: Memory, found: Candidates, tightest_s: float) -> int:
        """S_b in tokens (dynamic chunking)."""
        size, seconds = self._pivot(view, state)
        most = view.limits.max_num_batched_tokens
        return bounded(view, found, int(size * min(tightest_s / seconds, most)))

    def _rank_s(self, view: View, slots: Ints, times: Slack, pace: Pace) -> Floats:
        """What the order goes by, smallest first: T_r, [n]."""
        return times.remaining_s

    def _fill(self, batch: Batch, contest: Contest) -> bool:
        """Takes candidates of similar T_r until nothing more fits. Whether new ones may start after them."""
        take_nearest(batch, contest)
        return True

    def _may_take(self, batch: Batch, found: Candidates) -> Bools:
        """Candidates for which `_fill` need be asked, [n]."""
        return found.may_start(batch)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _pace(self, view: View, state: Memory) -> Pace:
        size, seconds = self._pivot(view, state)
        return Pace(
            chunk=state.chunk or size,
            longest_s=max(state.runs_s, default=seconds),
            mean_s=state.mean_s or seconds,
            preempted=state.preempted,
        )

    def _candidates(self, view: View, pace: Pace, start_s: float) -> tuple[Candidates, float]:
        """Every running request with work, the first ones of the queue; and SLO_min in seconds."""
        table = view.table
        running = table.running[table.remaining(table.running) > 0]
        most = MOST_SEATS * view.limits.max_num_seqs  # more cannot be taken anyway
        head = table.waiting.islice(0, most)
        waiting = np.array([slot for _, slot in head], dtype=np.int64)
        slots = np.concatenate([running, waiting])
        times = slack(table, slots, start_s, pace)
        is_running = np.arange(len(slots)) < len(running)
        decode = is_decode(table, slots) & is_running
        rank_s = self._rank_s(view, slots, times, pace)
        pending = table.length[slots] - table.computed[slots]
        blocks = table.block_demand(slots, pending)
        found = Candidates(slots, rank_s, decode, is_running, pending, blocks)
        near = rank_s <= rank_s.min(initial=np.inf) + self.gamma_s
        which = near & decode if (near & decode).any() else near
        return found, float(times.iteration_s[which].min(initial=np.inf))

    def _take_similar(
        self, batch: Batch, state: Memory, found: Candidates, budget: int, pace: Pace
    ) -> None:
        """Fills the batch from the requests whose T_r is within gamma of the head's, then from those near the next
        head, and so on."""
        gone = np.zeros(len(batch.view.table.requests), dtype=bool)
        gone[batch.slots + batch.preempted] = True
        left = ~gone[found.slots]
        if batch.preempted:
            left &= found.running  # no newcomer while somebody had to go
        long = ~found.decode & (found.pending > budget)
        begun = ~found.decode & found.running & (found.pending > 0)
        order = np.flatnonzero(left)
        order = order[np.argsort(found.remaining_s[order], kind="stable")]
        times_s, long_slots = found.remaining_s[order].tolist(), set(found.slots[long].tolist())
        exclusive = bool(begun.any()) or not long_slots.isdisjoint(batch.slots)
        lo, seen, is_open = 0, None, True
        while lo < len(order) and batch.tokens > 0:
            now = batch.room, batch.seats, is_open, exclusive
            if seen != now:  # what cannot be taken now never can: resources shrink
                seen = now
                may = self._may_take(batch, found) if is_open else found.running.copy()
                if exclusive:  # finish the long prompt first
                    may &= ~long | begun
                passed = [0, *np.cumsum(may[order]).tolist()]
            if passed[lo] == passed[-1]:
                return
            hi = bisect_right(times_s, times_s[lo] + self.gamma_s, lo)
            if passed[hi] > passed[lo]:
                rest = order[lo:]
                if take_together(batch, found, rest[may[rest]]):
                    return
                chosen, before = order[lo:hi], len(batch.slots)
                contest = self._contest(batch, found, chosen[may[chosen]], long | begun, budget)
                is_open = self._fill(batch, contest) and is_open
                exclusive = exclusive or not long_slots.isdisjoint(batch.slots[before:])
            lo = hi

    def _contest(
        self, batch: Batch, found: Candidates, chosen: Ints, cut: Bools, budget: int
    ) -> Contest:
        units = (1.0, 1.0) if self.raw_units else (float(budget), float(batch.view.total_blocks))
        return Contest(
            found.slots[chosen],
            found.pending[chosen],
            found.blocks[chosen],
            cut[chosen],
            found.running[chosen],
            *units,
        )


def bounded(view: View, found: Candidates, tokens: int) -> int:
    """A budget that all decodes, or else a block of prompt, fit in, and that the engine takes."""
    most, decodes = view.limits.max_num_batched_tokens, int(found.decode.sum())
    return min(max(tokens, decodes, view.table.block_size), max(most, decodes))
