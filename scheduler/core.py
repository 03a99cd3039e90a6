"""The scheduler's core: messages in, messages out; no sockets, no clock. It owns every request from Submit to Finished.

Each method takes the time and a message and appends to `outbox` what is to be sent; `next_plan_s` says when `plan`
wants to be called. Live and simulator run this same class.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from accelgen.proto.config import Config
from accelgen.proto.messages import (
    Abort,
    Admitted,
    Body,
    End,
    Finished,
    Inventory,
    KvReport,
    Lookup,
    Prompt,
    Reason,
    Role,
    StepResult,
    Submit,
    Tokens,
)
from accelgen.scheduler.admission import Expiry, Refusal, drain_s, judge, roomy
from accelgen.scheduler.cost_model import Coefficients, CostModel
from accelgen.scheduler.flight import Outcome
from accelgen.scheduler.memory.crossover import Copies
from accelgen.scheduler.memory.policy import MemoryPolicy, memory_of
from accelgen.scheduler.policy import Limits, Policy
from accelgen.scheduler.predictors.class_quantiles import ClassMedian
from accelgen.scheduler.predictors.estimate import LengthPredictor, Traits
from accelgen.scheduler.replica import Replica
from accelgen.scheduler.request import Request, end_of, end_reason, requests_of
from accelgen.scheduler.routing.placement import Placement
from accelgen.scheduler.routing.policy import Routing, routing_of
from accelgen.scheduler.speculation import Speculation
from accelgen.scheduler.table import WAITING


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a replica offers: its KV blocks, and a fitted cost model if there is one. `worker`, `manager`:
    incarnations, of its KV manager too. `copies`: what moving KV to the host and back takes, if that has been
    measured."""

    blocks: int
    block_size: int
    coefficients: Coefficients | None = None
    worker: int = 0
    copies: Copies | None = None
    manager: int = 0


@dataclass(frozen=True, slots=True)
class _Find:
    """Where a request of the scheduler before was found, and how many of its tokens are computed there."""

    replica: int
    computed: int


@dataclass(slots=True)
class _Sheaf:
    """What one frontend gets of one iteration."""

    ids: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    begun: list[int] = field(default_factory=list)
    queue_s: list[float] = field(default_factory=list)
    ends: list[End] = field(default_factory=list)


class SchedulerCore:
    def __init__(
        self,
        config: Config,
        policy: Policy,
        replicas: Mapping[int, ReplicaSpec],
        predictor: LengthPredictor | None = None,
        memory: MemoryPolicy | None = None,
        routing: Routing | None = None,
    ) -> None:
        """`memory`, `routing`: if they are not those that `config` says. Raises UnknownPolicy."""
        self.memory = memory or memory_of(policy, config)
        self.placement = Placement(routing or routing_of(config), policy)
        swaps = config.preemption == "swap"
        limits = Limits(config.max_num_seqs, config.max_num_batched_tokens, config.max_step_s)
        self.config, self.policy = config, policy
        self.replicas = {
            index: Replica(
                policy,
                limits,
                CostModel(spec.coefficients) if spec.coefficients else CostModel(),
                spec.blocks,
                spec.block_size,
                config.pipeline_depth,
                swaps,
                self.memory,
                spec.copies if swaps else None,
                Speculation.of(config),
            )
            for index, spec in replicas.items()
        }
        self.workers = {index: spec.worker for index, spec in replicas.items()}  # incarnations
        self.managers = {index: spec.manager for index, spec in replicas.items()}
        self.predictor: LengthPredictor = predictor or ClassMedian()
        self.draining = False
        self.yielding = False  # a successor waits: nothing more is planned
        self.outbox: list[tuple[Role, int, Body]] = []
        self.refused = self.finished = self.admitted = 0
        self._home: dict[int, int] = {}  # request id -> replica
        self._inherited: dict[int, _Find] = {}  # by request id: nobody has claimed it yet
        self._adopted: set[int] = set()  # claimed, but the KV manager's word has not come yet
        self._waits_for_claims = True
        self._expiry = Expiry()
        self._early: dict[int, StepResult] = {}  # by replica: came before their KvReport

    # --- from frontends ------------------------------------------------------------------------------------------

    def on_submit(self, submit: Submit, frontend: int, now_s: float) -> None:
        """A new request: refused at once, or looked up in the prefix cache of its replica."""
        if submit.prompt.id in self._home:  # sent again after a reconnection: already here
            return
        requests = requests_of(submit, frontend)
        arrival_s = now_s - submit.waited_s
        if submit.queue_s is not None:
            requests[0].started_s = arrival_s + submit.queue_s
        if self._is_over(requests[0], now_s, arrival_s):
            return
        by_index = {index: replica.view() for index, replica in self.replicas.items()}
        views = [*by_index.values()]
        found = self._inherited.pop(submit.prompt.id, None)
        known = None if found is None else found.replica
        accepted = known is not None or submit.prompt.generated  # by the scheduler before this one
        refusal = None if accepted else judge(self.config, submit, views, self.draining)
        if refusal is not None:
            self._refuse(requests, refusal)
            return
        able = roomy(by_index, len(requests[0].prompt) + requests[0].max_tokens)
        if known is None:
            verdict = self.placement.choose(requests[0], able, now_s)
        else:
            verdict = self.policy.admit(requests[0], [*able.values()], now_s)
            verdict = replace(verdict, replica=known)
        if verdict.refused and not accepted:
            why = Refusal(Reason.REFUSED_SATURATED, verdict.refused, drain_s(views))
            if verdict.is_hopeless:
                why = Refusal(Reason.REFUSED_OBJECTIVE, verdict.refused)
            self._refuse(requests, why)
            return
        home = verdict.replica
        self.placement.settle(requests[0], home, by_index[home], known is not None)
        queue_s = self._queue_limit_s(submit.slo_class)
        for request in requests:
            table = self.replicas[home].table
            slot = table.add(request, arrival_s)
            estimate = self.predictor.predict(Traits.of(request))
            table.predicted_output[slot] = estimate.tokens
            table.predicted_range[slot] = estimate.direction * estimate.spread
            self._home[request.id] = home
            if request.thought:
                self._note_thinking(request)
            request.expires_s = arrival_s + queue_s
            request.predicted_ttft_s = verdict.predicted_ttft_s
            if not submit.prompt.generated:
                self._expiry.add(request)
        if known is not None:
            self._adopted.add(submit.prompt.id)
        self._lookup(home, requests, adopt=known is not None)

    def on_abort(self, abort: Abort, now_s: float) -> None:
        """Ends requests that the frontend no longer wants; unknown ids are ignored."""
        for id in abort.ids:
            if id in self._home:
                self._end(self._request(id), Reason.ABORTED, "", now_s)

    def on_frontend_lost(self, frontend: int, now_s: float) -> None:
        """Ends every request of a frontend that is gone."""
        ids = [id for id in self._home if self._request(id).frontend == frontend]
        self.on_abort(Abort(ids), now_s)

    # --- from the scheduler before this one ------------------------------------------------------------------------

    def inherit(self, inventory: Inventory, index: int) -> None:
        """Takes over a replica that has served another scheduler: before anything is submitted or planned. What two
        replicas hold, because one was away for a while, is given back by the one that has computed less."""
        replica = self.replicas[index]
        replica.step = inventory.step + 1
        replica.memory_state = self.memory.inherited(replica.memory_state)
        replica.free_blocks = inventory.free + inventory.cached
        for held in inventory.held:
            found = _Find(index, held.computed)
            other = self._inherited.setdefault(held.id, found)
            if other is not found:
                less, more = sorted((found, other), key=lambda one: one.computed)
                self.replicas[less.replica].release(held.id)
                self._inherited[held.id] = more

    def go_on(self) -> None:
        """Those who have claimed theirs have waited long enough for the others."""
        self._waits_for_claims = False

    def release_unclaimed(self) -> None:
        """All frontends have submitted again what is live: the rest of what was inherited has ended meanwhile."""
        for id, found in self._inherited.items():
            self.replicas[found.replica].release(id)
        self._inherited = {}

    def _is_over(self, request: Request, now_s: float, arrival_s: float) -> bool:
        """Whether only the word of its end is missing; then it is given."""
        reason = end_reason(request) if request.generated else None
        if reason is not None:
            self.finished += 1
            end = end_of(request, reason, "", now_s, arrival_s)
            self.outbox.append((Role.FRONTEND, request.frontend, Finished([end])))
        return reason is not None

    # --- from KV managers and workers ----------------------------------------------------------------------------

    def on_report(self, report: KvReport, index: int, now_s: float) -> None:
        """Free blocks, dropped entries, answers to lookups; then the result that has waited for them."""
        replica = self.replicas[index]
        for slot in replica.on_report(report, now_s):
            replica.take_up(slot, now_s)
            request = replica.table.request(slot)
            self._adopted.discard(request.id)
            for choice in (request, *request.children):
                self.admitted += 1
                cached, worker = request.cached_tokens, self.workers[index]
                word = Admitted(choice.id, index, choice.predicted_ttft_s, cached, worker)
                self.outbox.append((Role.FRONTEND, choice.frontend, word))
        poorer = dict.fromkeys(report.unpinned + report.unswapped + replica.restarts(report))
        lost = [id for id in poorer if self._waits(id)]
        if lost:  # a block of each was needed elsewhere; the others are still in the cache
            self._lookup(index, [self._request(id) for id in lost])
        early = self._early.get(index)
        if early is not None and not replica.awaits_report(early.step):
            del self._early[index]
            self.on_result(early, index, now_s)

    def on_result(self, result: StepResult, index: int, now_s: float) -> None:
        """Passes tokens on to the frontends, ends what has ended. Raises ResultOutOfTurn if one is missing.

        The links of KV manager and worker have no common order: a result that comes before the report of its step
        waits for it, because only the report tells which entries were dropped."""
        if self.replicas[index].awaits_report(result.step):
            self._early[index] = result
            return
        sheaves: defaultdict[int, _Sheaf] = defaultdict(_Sheaf)
        over: list[Outcome] = []
        for outcome in self.replicas[index].on_result(result, now_s):
            request = outcome.request
            if outcome.ends_thinking:
                self._note_thinking(request)
            sheaf = sheaves[request.frontend]
            if outcome.tokens:
                sheaf.ids.append(request.id)
                sheaf.counts.append(len(outcome.tokens))
                sheaf.tokens.extend(outcome.tokens)
                if len(request.generated) == len(outcome.tokens):
                    sheaf.begun.append(request.id)
                    sheaf.queue_s.append(request.queue_s(now_s, self._arrival(request)))
            if outcome.reason is not None:
                arrival_s = self._arrival(request)
                end = end_of(request, outcome.reason, outcome.detail, now_s, arrival_s)
                sheaf.ends.append(end)
                over.append(outcome)
        for outcome in over:
            request, failed = outcome.request, outcome.reason is Reason.FAILED
            if not failed:
                self.predictor.observe(Traits.of(request), len(request.generated))
            self._forget(request, spoiled=failed)
        for frontend, sheaf in sheaves.items():
            if sheaf.ids:
                tokens = Tokens(
                    result.step, sheaf.ids, sheaf.counts, sheaf.tokens, sheaf.begun, sheaf.queue_s
                )
                self.outbox.append((Role.FRONTEND, frontend, tokens))
            if sheaf.ends:
                self.outbox.append((Role.FRONTEND, frontend, Finished(sheaf.ends)))

    # --- time ----------------------------------------------------------------------------------------------------

    def next_s(self, now_s: float) -> float:
        """When `tick` wants to be called next if no message comes; infinite for never."""
        replicas = [] if self.resting else self.replicas.values()
        times = [replica.plan_at_s(now_s) for replica in replicas]
        return min([self._expiry.next_s(), *(t for t in times if t is not None)])

    @property
    def resting(self) -> bool:
        """Whether planning is held up by a change of schedulers: what is inherited runs on together, or not yet."""
        unclaimed = self._waits_for_claims and self._inherited
        return self.yielding or bool(unclaimed or self._adopted)

    @property
    def settled(self) -> bool:
        """Nothing is in flight."""
        return not self.busy

    @property
    def busy(self) -> list[int]:
        """Replicas with something in flight."""
        return [index for index, replica in self.replicas.items() if replica.flights]

    def overdue(self, now_s: float) -> str:
        """Which iteration should have come back long ago; "" if none."""
        for index, replica in self.replicas.items():
            if what := replica.overdue(now_s):
                return f"replica {index}: {what}"
        return ""

    def starved_s(self, now_s: float) -> float:
        """For how long the policy has planned nothing although requests wait and nothing is in flight."""
        since = [r.starved_since_s for r in self.replicas.values() if not r.flights]
        return max((now_s - begun for begun in since if begun is not None), default=0.0)

    def tick(self, now_s: float) -> None:
        """Makes the plans that are due, refuses requests that waited too long."""
        self.expire(now_s)
        self.plan_for(self.due(now_s), now_s)

    def expire(self, now_s: float) -> None:
        """Refuses requests that waited too long."""
        for request in self._expiry.due(now_s):
            if request.id in self._home:
                detail = f"waited {now_s - self._arrival(request):.1f} s, the limit of its class"
                self._end(request, Reason.REFUSED_EXPIRED, detail, now_s, retry_after_s=1.0)

    def due(self, now_s: float) -> list[int]:
        """Replicas whose next plan should be made by now."""
        if self.resting:
            return []
        times = {index: replica.plan_at_s(now_s) for index, replica in self.replicas.items()}
        return [index for index, at_s in times.items() if at_s is not None and at_s <= now_s]

    def plan_for(self, indices: Sequence[int], now_s: float) -> None:
        """Makes the next plan of each of these replicas, unless nothing can run there."""
        for index in indices:
            plan = self.replicas[index].plan(now_s)
            if plan is not None:
                self.outbox.append((Role.KVMANAGER, index, plan))
                if plan.preempt:  # what nobody took of their KV when they resume is still theirs
                    self._lookup(index, [self._request(id) for id in plan.preempt])

    # --- inside --------------------------------------------------------------------------------------------------

    def _note_thinking(self, request: Request) -> None:
        """Its thinking is over. Nothing to do here: its columns say so."""

    def _refuse(self, requests: list[Request], refusal: Refusal) -> None:
        """Ends a request and its siblings before they are anywhere."""
        self.refused += 1
        ends = [_refused(request, refusal) for request in requests]
        self.outbox.append((Role.FRONTEND, requests[0].frontend, Finished(ends)))

    def _lookup(self, home: int, requests: list[Request], adopt: bool = False) -> None:
        prompts = [
            Prompt(
                request.id,
                request.prompt + request.generated,
                request.sampling,
                len(request.generated),
                request.salt,
                request.parent,
            )
            for request in requests
        ]
        self.outbox.append((Role.KVMANAGER, home, Lookup(prompts, adopt)))

    def _end(
        self,
        request: Request,
        reason: Reason,
        detail: str,
        now_s: float,
        retry_after_s: float = 0.0,
    ) -> None:
        end = end_of(request, reason, detail, now_s, self._arrival(request), retry_after_s)
        self.outbox.append((Role.FRONTEND, request.frontend, Finished([end])))
        self._forget(request)

    def _forget(self, request: Request, spoiled: bool = False) -> None:
        """Frees what the request holds; siblings that were to fork from it go their own way."""
        home = self._home.pop(request.id)
        self._adopted.discard(request.id)
        self.finished += 1
        self.placement.end(request, home, self.replicas[home].view())
        orphans = request.children if self.replicas[home].end(request, spoiled) else []
        alive = [child for child in orphans if child.id in self._home]
        for child in alive:
            child.parent = 0
        if alive:
            self._lookup(home, alive)

    def _request(self, id: int) -> Request:
        table = self.replicas[self._home[id]].table
        return table.request(table.slot_of[id])

    def _waits(self, id: int) -> bool:
        if id not in self._home:
            return False
        table = self.replicas[self._home[id]].table
        return bool(table.state[table.slot_of[id]] == WAITING)

    def _arrival(self, request: Request) -> float:
        table = self.replicas[self._home[request.id]].table
        return float(table.arrival_s[table.slot_of[request.id]])

    def _queue_limit_s(self, slo_class: str) -> float:
        known = self.config.slo_classes
        return known.get(slo_class, known[self.config.default_class]).max_queue_ms / 1000


def _refused(request: Request, refusal: Refusal) -> End:
    return End(request.id, refusal.reason, refusal.detail, refusal.retry_after_s)
