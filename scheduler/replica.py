"""One replica's road through the iterations: view, decision, plan, report, result. Sans I/O.

    plan() -----> Plan k          the table is projected past k
    on_report() - KvReport k      what did not fit is rolled back; free blocks are known again
    on_result() - StepResult k    tokens are confirmed, requests end

With depth 1, plan k+1 is made after StepResult k-1 and KvReport k, as late as is safe.

A decode with drafts in plan k is projected as if all of them were accepted: tokens, blocks, and the limit of the
request. An entry of the same request in plan k+1 therefore starts where it would be then; the worker, which owns the
newest token, starts it where it is (worker/request.py). Result k settles what was too much, here and, with the tokens
confirmed by plan k+2, at the KV manager. So at most one iteration with drafts is unsettled when a plan is made.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from typing import Any

import numpy as np

from accelgen.proto.messages import Fork, KvReport, Plan, StepResult
from accelgen.scheduler.cost_model import CostModel, Work
from accelgen.scheduler.decision import Entries, check, clip
from accelgen.scheduler.draft_lengths import drafts_of, expected_work
from accelgen.scheduler.flight import Confirmed, Flight, Outcome
from accelgen.scheduler.holdings import allocated, embedded, grows
from accelgen.scheduler.memory.crossover import Copies
from accelgen.scheduler.memory.on_demand import ON_DEMAND
from accelgen.scheduler.memory.policy import MemoryPolicy
from accelgen.scheduler.moves import Moves, Reach
from accelgen.scheduler.policy import Decision, Limits, Policy, StepStats, View
from accelgen.scheduler.request import Request
from accelgen.scheduler.siblings import Siblings
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import ARRIVING, FAR_S, RUNNING, WAITING, RequestTable
from accelgen.scheduler.verification import settle

SAFETY_S = 0.001
RETRY_S = 0.02
# A step may keep the worker silent this long.
BOUND_FACTOR, BOUND_FLOOR_S = 5.0, 1.0
# A KvReport, a StepResult that takes longer is lost, or the step's own bound.
REPORT_S, RESULT_S = 5.0, 6.0


class ResultOutOfTurn(RuntimeError):
    """A StepResult is missing: no request may go on on a table with a gap."""


class Replica:
    """The scheduler's half of one KV manager and its workers."""

    def __init__(
        self,
        policy: Policy,
        limits: Limits,
        cost: CostModel,
        blocks: int,
        block_size: int,
        depth: int,
        swaps: bool = False,
        memory: MemoryPolicy = ON_DEMAND,
        copies: Copies | None = None,
        speculation: Speculation | None = None,
    ) -> None:
        self.policy, self.limits, self.cost = policy, limits, cost
        self.speculation = speculation or Speculation()
        self.total_blocks, self.free_blocks, self.pinned_blocks = blocks, blocks, 0
        self.leaving_blocks = 0  # of the free ones: not before copies to the host are done
        self.host_free = 0
        self.moves = Moves(swaps)
        self.table = RequestTable(block_size)
        self.state: Any = policy.initial()
        self.memory, self.memory_state, self.copies = memory, memory.initial(), copies
        self.depth = depth
        self.flights: deque[Flight] = deque()
        self.step = 0
        self.overhead_s: deque[float] = deque([0.002], maxlen=64)  # plan begun .. report received
        self.preemptions = self.steps = self.dropped = 0
        # Requests wait, and the policy has chosen none of them.
        self.starved_since_s: float | None = None
        self.patience = 1.0  # how many times its bound an iteration may take
        self.last: dict[int, int] = {}  # View.last
        self._stalled_s: float | None = None  # nothing could be planned; cleared by news
        self._release: list[int] = []
        self._spoiled: list[int] = []
        self._confirmed = Confirmed()
        self.siblings = Siblings()

    def view(self) -> View:
        """What the policy sees."""
        return View(
            self.table,
            self.free_blocks,
            self.pinned_blocks,
            self.total_blocks,
            self.limits,
            self.cost,
            self.host_free,
            None,
            self.copies,
            self.speculation,
            self.last,
        )

    def enqueue(self, slot: int) -> None:
        """A looked-up request becomes visible to the policy."""
        self._stalled_s = None
        self.siblings.await_prompt(self.table.request(slot))
        self.table.enqueue(slot, self.policy.order_key(self.view(), slot, self.state))

    def take_up(self, slot: int, now_s: float) -> None:
        """A looked-up request is queued; one that ran under the scheduler before goes on where it was. When its tokens
        came is not known here: one with an objective per token is taken to have kept it, without credit or debt."""
        request = self.table.request(slot)
        if request.generated:
            self.table.last_s[slot] = now_s
            request.start(now_s)
            self._date(slot, request, now_s)
            if self.table.remaining(np.array([slot]))[0] == 1 and not self.table.away[slot]:
                self._stalled_s = None
                self.table.key[slot] = self._key(slot)  # the place that it would have if it waited
                self.table.start(slot)
                return
        self.enqueue(slot)

    def _date(self, slot: int, request: Request, now_s: float) -> None:
        """When its first token came, and its thinking ended, if each stage has kept its pace until now."""
        table, thought = self.table, request.thought or len(request.generated)
        pace_s = float(table.tpot_s[slot])  # of its first stage
        lived_s, rest_s = (thought - 1) * pace_s if pace_s < FAR_S else 0.0, 0.0
        if request.thought and request.objective.tpot_s is not None:
            rest_s = (len(request.generated) - thought) * request.objective.tpot_s
        table.first_s[slot] = now_s - rest_s - lived_s
        if request.thought:
            table.respond(slot, thought, now_s - rest_s)

    def release(self, id: int) -> None:
        """What the KV manager holds of a request unknown here is given back with the next plan."""
        self._stalled_s = None
        self._release.append(id)

    def end(self, request: Request, spoiled: bool = False) -> bool:
        """The request is over: frees its slot, its blocks with the next plan; `spoiled` if its KV cannot be relied on.
        Returns whether its siblings still wait for it (they can no longer fork)."""
        self._stalled_s = None
        self.table.remove(self.table.slot_of[request.id])
        self._release.append(request.id)
        if spoiled:
            self._spoiled.append(request.id)
        return self.siblings.forget(request)

    # --- planning ------------------------------------------------------------------------------------------------

    def plan_at_s(self, now_s: float) -> float | None:
        """When the next plan should be made: at once, later (a moment to wait for), or None before news comes."""
        if not self._has_work():
            return None
        if self._stalled_s is not None:
            return None if self.flights else self._stalled_s + RETRY_S
        if not self.flights:
            return now_s
        last = self.flights[-1]
        if len(self.flights) > self.depth or not last.reported:
            return None
        end_s = last.begun_s + last.predicted_s * self.cost.lower
        return end_s - SAFETY_S - 1.5 * max(self.overhead_s)

    def plan(self, now_s: float) -> Plan | None:
        """The next Plan, or None when nothing can run and nothing needs to be said. Raises BadDecision."""
        forks = self.siblings.take_forks(self.table)
        start_s = self.flights[-1].begun_s + self.flights[-1].predicted_s if self.flights else now_s
        start_s = max(start_s, now_s)
        decision = self._decide(start_s)
        reach = self.reach(decision, check(decision, self.table, self.policy.name))
        work = self.cut(decision, reach)
        for slot, key in decision.requeue.items():
            self.table.move(slot, key)
        for slot in decision.declined:
            self.table.request(slot).best_effort = True
        self._note_starving(bool(decision.slots) or self.moves.pending, now_s)
        alone = (self._release or self.moves.pending) and not self.flights
        words = forks or alone or decision.preempt or reach.back
        if not (len(reach.entries.slots) or words or self._grows(decision)):
            self._stalled_s, self.last = now_s, {}
            return None
        for slot in reach.drop:
            self._preempt(slot)
        for slot in reach.out:
            self.moves.send_out(slot, self.table)
            self.preemptions += 1
        for slot in reach.back:
            self.moves.bring_back(slot, self.table, now_s)
        return self._commit(reach, work, decision, forks, now_s, start_s)

    def _decide(self, start_s: float) -> Decision:
        """The policy's decision, under the terms of the memory policy and with what that adds."""
        view, memory = self.view(), self.memory
        frame, state = memory.before(view, self.memory_state, start_s)
        decision, self.state = self.policy.plan(frame, self.state, start_s)
        decision, self.memory_state = memory.after(view, decision, state, start_s)
        self.table.clear_terms()
        return decision

    def cut(self, decision: Decision, reach: Reach) -> Work:
        """Cuts what is within reach to the limits, and says what is drafted. Returns the features."""
        entries, size = reach.entries, self.table.block_size
        stated, entries.drafts = entries.drafts, None
        work = clip(entries, size, self.limits, self.cost)
        if self.speculation.most and len(entries.slots):
            free = self.free_blocks - self.leaving_blocks + self.moves.freed
            entries.drafts = drafts_of(self.view(), decision, reach, stated, free)
            work = clip(entries, size, self.limits, self.cost)
        return work

    def predicted_s(self, entries: Entries, work: Work) -> float:
        """What an iteration with these entries and features takes, if as many drafts are made as usual."""
        likely = expected_work(entries, work, self.speculation.filled)
        return self.cost.predict(likely) + self.speculation.seconds(entries.drafts)

    def reach(self, decision: Decision, entries: Entries) -> Reach:
        """What of a decision can be done at once."""
        free = self.free_blocks - self.leaving_blocks
        return self.moves.reach(decision, entries, self.table, free, self.limits)

    def _note_starving(self, planned: bool, now_s: float) -> None:
        if planned or not (len(self.table.running) or self.table.waiting):
            self.starved_since_s = None
        elif self.starved_since_s is None:
            self.starved_since_s = now_s

    def _grows(self, decision: Decision) -> bool:
        free = self.free_blocks - self.leaving_blocks - self.pinned_blocks
        return grows(decision, self.table, self.total_blocks, free)

    def _has_work(self) -> bool:
        table = self.table
        words = self._release or self.siblings.ripe or self.moves.pending
        return bool(len(table.running) or table.waiting or words)

    def _commit(
        self,
        reach: Reach,
        work: Work,
        decision: Decision,
        forks: list[Fork],
        now_s: float,
        start_s: float,
    ) -> Plan:
        table, entries = self.table, reach.entries
        slots, counts, held = entries.slots, entries.counts, table.blocks[entries.slots]
        started = set(slots[table.state[slots] == WAITING].tolist())
        for slot in started:
            table.start(slot)
            table.request(slot).start(now_s)
        draft_s = self.speculation.seconds(entries.drafts)
        predicted_s = self.predicted_s(entries, work)
        longest_s = self.cost.predict(work) * self.cost.upper + draft_s
        sampled = table.plan(slots, counts, start_s + predicted_s, entries.drafts)
        allocate = allocated(decision, table, self.total_blocks)
        embed = embedded(decision, table, reach.back)
        flight = Flight(
            self.step, entries, table.ids[slots].tolist(), held, sampled, started, work,
            counts[~entries.decode].tolist(), len(decision.preempt), now_s, start_s, predicted_s,
            max(BOUND_FLOOR_S, BOUND_FACTOR * longest_s), allocate,
        )  # fmt: skip
        self.flights.append(flight)
        self.last = dict(zip(flight.ids, counts.tolist(), strict=True))
        self.step += 1
        self.siblings.note_planned(table, slots[sampled])
        confirmed, self._confirmed = self._confirmed, Confirmed()
        release, self._release = self._release, []
        spoiled, self._spoiled = self._spoiled, []
        return Plan(
            step=flight.step,
            ids=flight.ids,
            starts=entries.starts.tolist(),
            counts=counts.tolist(),
            confirmed_ids=confirmed.ids,
            confirmed_counts=confirmed.counts,
            confirmed_tokens=confirmed.tokens,
            forks=forks,
            release=release,
            preempt=self._ids(reach.drop),
            copied=[],
            predicted_s=predicted_s,
            bound_s=flight.bound_s,
            spoiled=spoiled,
            swap_out=self._ids(reach.out),
            swap_in=self._ids(reach.back),
            moved=self.moves.take_done(),
            allocate_ids=self._ids(allocate),
            allocate_blocks=[*allocate.values()],
            embed_guests=self._ids(embed),
            embed_hosts=self._ids(embed.values()),
            drafts=[] if entries.drafts is None else entries.drafts.tolist(),
        )

    def _ids(self, slots: Collection[int]) -> list[int]:
        ids: list[int] = self.table.ids[[*slots]].tolist() if slots else []
        return ids

    def _key(self, slot: int) -> float:
        return self.policy.order_key(self.view(), slot, self.state)

    def _preempt(self, slot: int) -> None:
        table = self.table
        table.computed[slot] = table.blocks[slot] = 0
        table.enqueue(slot, self.policy.order_key(self.view(), slot, self.state))
        table.request(slot).preemptions += 1
        self.preemptions += 1

    # --- what comes back -----------------------------------------------------------------------------------------

    def on_report(self, report: KvReport, now_s: float) -> list[int]:
        """Takes in a KvReport; returns slots whose Lookup was answered (not yet queued)."""
        self._stalled_s = None
        self.free_blocks = report.free + report.cached + report.pinned + report.leaving
        self.pinned_blocks, self.leaving_blocks = report.pinned, report.leaving
        self.host_free = report.host_free
        table = self.table
        flight = next((f for f in self.flights if f.step == report.step), None)
        if flight is not None:
            flight.reported = True
            self.overhead_s.append(now_s - flight.planned_s)
            if report.dropped:
                self._drop(flight, set(report.dropped))
        self.moves.take_in(report, table, self._key)
        for id, blocks in zip(report.short_ids, report.short_blocks, strict=True):
            slot = table.slot_of.get(id)
            if slot is not None and table.state[slot] == RUNNING:
                table.blocks[slot] = blocks
        for id in report.unpinned:
            slot = table.slot_of.get(id)
            if slot is not None and table.state[slot] == WAITING:
                table.hit(slot, 0)
            elif slot is not None and table.state[slot] == RUNNING:
                self._preempt(slot)
        arrived = []
        for id, tokens in zip(report.hit_ids, report.hit_tokens, strict=True):
            slot = table.slot_of.get(id)
            if slot is None:
                continue
            if table.state[slot] == ARRIVING:
                table.hit(slot, tokens, id in report.away_ids)
                table.request(slot).cached_tokens = tokens
                arrived.append(slot)
            elif table.state[slot] == WAITING:  # preempted or unpinned, and part was still there
                table.hit(slot, tokens, id in report.away_ids)
        return arrived

    def restarts(self, report: KvReport) -> list[int]:
        """Ids of requests that were to start with the plan that this report answers, and could not. What is pinned for
        them may be more than they were started with, if a Lookup was answered meanwhile: they must hear of it."""
        flight = next((f for f in self.flights if f.step == report.step), None)
        if flight is None or not report.dropped:
            return []
        dropped = {*report.dropped}
        slots = zip(flight.ids, flight.entries.slots.tolist(), strict=True)
        return [id for id, slot in slots if id in dropped and slot in flight.started]

    def _drop(self, flight: Flight, dropped: set[int]) -> None:
        """Rolls back the entries that the KV manager could not serve."""
        self.dropped += len(dropped)
        flight.dropped = dropped
        for i, id in enumerate(flight.ids):
            slot = self.table.slot_of.get(id)
            if id not in dropped or slot is None:
                continue
            drafts = flight.drafts_of(i)
            count, held = int(flight.entries.counts[i]), int(flight.held[i])
            if slot not in flight.started:
                held = flight.allocated.get(slot, held)
            self.last.pop(id, None)
            sampled = bool(flight.sampled[i]) and 1 + drafts
            self.table.roll_back(slot, count + drafts, sampled, held)
            self.siblings.take_back(id)
            if slot in flight.started:
                self.enqueue(slot)

    def overdue(self, now_s: float) -> str:
        """What should have come long ago, in words; "" if nothing."""
        if not self.flights:
            return ""
        flight = self.flights[0]
        if not flight.reported and now_s > flight.planned_s + REPORT_S:
            return f"no report of step {flight.step} for {now_s - flight.planned_s:.1f} s"
        limit_s = self.patience * max(flight.bound_s, RESULT_S)
        if now_s > max(flight.begun_s, flight.planned_s) + limit_s:
            return f"no result of step {flight.step} for {now_s - flight.begun_s:.1f} s"
        return ""

    def awaits_report(self, step: int) -> bool:
        """Whether `step` is in flight and its KvReport has not come yet."""
        return any(flight.step == step and not flight.reported for flight in self.flights)

    def on_result(self, result: StepResult, now_s: float) -> list[Outcome]:
        """Takes in a StepResult: what it brought, request by request. Raises ResultOutOfTurn if it is not the result
        that is due."""
        if not self.flights or self.flights[0].step != result.step:
            due = self.flights[0].step if self.flights else None
            raise ResultOutOfTurn(f"result of step {result.step} came, step {due} was due")
        self._stalled_s = None
        flight = self.flights.popleft()
        if self.flights:
            self.flights[0].begun_s = now_s
        self.steps += 1
        settle(flight, result, self.table, self.speculation, self.flights)
        for id in result.moved:
            self.moves.finish(id, self.table, self._key)
        self.cost.observe(flight.work, result.run_s - result.draft_s)
        outcomes = self._confirmed.take_in(result, self.table, now_s)
        finished = sum(outcome.reason is not None for outcome in outcomes)
        gone = flight.dropped
        ids = [id for id in flight.ids if id not in gone] if gone else flight.ids
        stats = StepStats(result.run_s, flight.chunks, flight.preempted, finished, ids, flight.work)
        self.state = self.policy.observe(stats, self.state)
        self.memory_state = self.memory.observe(stats, self.memory_state)
        return outcomes
