"""One simulated run: the live scheduler core, the live KV cores, simulated workers, a virtual clock.

Links take no time; what a host takes per iteration is part of the device. Arrivals, results and the scheduler's own
moments are the only events, so a run is a function of its arguments.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from time import thread_time

from msgspec import structs

from accelgen.kvmanager.core import KvCore
from accelgen.proto.config import Config
from accelgen.proto.messages import (
    Batch,
    Finished,
    Lookup,
    Plan,
    Prompt,
    Reason,
    Role,
    StepResult,
    Submit,
    Tokens,
)
from accelgen.scheduler.core import ReplicaSpec, SchedulerCore
from accelgen.scheduler.policy import Policy
from accelgen.scheduler.predictors.estimate import LengthPredictor
from accelgen.simulator.device import Device
from accelgen.simulator.handover import live, successor
from accelgen.simulator.lengths import KnownLengths
from accelgen.simulator.worker import STOP, THINK_END, TOKEN, SimulatedWorker
from accelgen.simulator.workload import Arrival, Workload

STARVED_S = 60.0  # with nothing in flight and nothing planned for so long, nothing ever will be
ENDLESS = 2**31 - 1  # blocks of the host
WATCH_STEPS = 256  # iterations between two looks of a watcher


class Stuck(RuntimeError):
    """Requests are left and nothing will ever happen: the policy starves them. The text says how many."""


@dataclass(slots=True)
class Fate:
    """What became of a request that was sent: the time of each token, and how it ended (None if the run was cut off).

    `arrival.at_s` is when it was sent, of a follow-up, too. `session`: the number of the request that a follow-up's
    session began with, in the order of sending; -1 for that one itself."""

    arrival: Arrival
    token_s: array[float] = field(default_factory=lambda: array("d"))
    end: Reason | None = None
    preemptions: int = 0
    cached_tokens: int = 0
    taken_over: bool = False  # its policy was replaced while it lived
    session: int = -1


@dataclass(frozen=True, slots=True)
class Successor:
    """A policy that is to take over at `at_s`."""

    at_s: float
    policy: Policy


@dataclass(slots=True)
class Run:
    """The outcome of a simulation. `fates` in the order in which requests were sent; `policy`: the first one, and when
    others took over."""

    workload: str
    policy: str
    fates: list[Fate]
    end_s: float
    workers: list[SimulatedWorker]
    steps: int = 0
    entries: int = 0
    kv_used_s: float = 0.0  # integral of the share of KV blocks in use, over all replicas
    dropped: int = 0
    given_up: bool = (
        False  # a watcher has ended it early: what was not sent by then is in no figure
    )
    takeovers_s: list[float] = field(default_factory=list)
    decision_s: array[float] = field(
        default_factory=lambda: array("d")
    )  # processor time of each plan


Watcher = Callable[[Run, float], bool]
"""Looks at a run under way, at a virtual time; True ends it."""
Observer = Callable[[Batch, int, float, StepResult], None]
"""Told of each Batch: its replica, when it is done, and its result."""


class Simulation:
    def __init__(
        self,
        policy: Policy,
        workload: Workload,
        device: Device,
        config: Config,
        predictor: LengthPredictor | None = None,
        swap: bool = False,
        successors: Sequence[Successor] = (),
        acceptance: float = 0.6,
        draft_s: float = 0.0,
    ) -> None:
        """`swap`: KV of who is preempted goes to the host, where there is room for all of it, instead of being computed
        again. `successors` take over, in the order of time. With a drafter in `config`, drafts are accepted with
        probability `acceptance`, and drafting takes `draft_s` for each token of an iteration's longest draft."""
        config = structs.replace(config, preemption="swap") if swap else config
        self.workload, self.config = workload, config
        self.observer: Observer | None = None
        self._known = predictor if isinstance(predictor, KnownLengths) else None
        blocks = config.kv_blocks or device.blocks(config.block_size)
        spec = ReplicaSpec(
            blocks, config.block_size, device.coefficients, copies=device.copies(config.block_size)
        )
        self._specs = specs = dict.fromkeys(range(config.replicas), spec)
        self._successors = deque(sorted(successors, key=lambda one: one.at_s))
        self.core = SchedulerCore(config, policy, specs, predictor)
        size, host_blocks = config.block_size, ENDLESS if swap else 0
        self.kvs = [KvCore(blocks, size, config.prefix_caching, host_blocks) for _ in specs]
        block_s = size * device.kv_token_bytes / device.swap_bytes_s
        self._stops: dict[int, int] = {}  # request id -> tokens at its end
        self._thoughts: dict[int, int] = {}  # request id -> tokens when its thinking is over
        self.workers = [
            SimulatedWorker(device, self._stops, self._thoughts, block_s, acceptance, draft_s)
            for _ in specs
        ]
        self.fates: list[Fate] = []
        self.run = Run(workload.name, policy.name, self.fates, 0.0, self.workers)
        self._results: list[tuple[float, int, int, StepResult]] = []  # a heap: due, order, replica
        # A heap: due, order, and what is sent; what was said before it, and where its session began.
        self._follow_ups: list[tuple[float, int, Arrival, list[int], int]] = []
        self._said: dict[int, list[int]] = {}  # prompts that a follow-up will go on from
        self._order = 0
        self._next = 0  # arrival
        self._seen_s = [0.0] * len(specs)

    @property
    def ended(self) -> int:
        """Requests that have ended, the refused ones included."""
        return self.core.finished + self.core.refused

    def go(self, watch: Watcher | None = None) -> Run:
        """Until every request has ended, or until `watch` says so. Raises Stuck."""
        now_s, watched = 0.0, 0
        while True:
            core = self.core
            result_s = self._results[0][0] if self._results else inf
            arrival_s = self._arrival_s()
            tick_s = max(now_s, core.next_s(now_s))
            before_s, now_s = now_s, min(result_s, arrival_s, tick_s, self._swap_s(now_s))
            if now_s == inf or core.starved_s(now_s) > STARVED_S:
                break
            if now_s == result_s:
                _, _, index, result = heapq.heappop(self._results)
                core.on_result(result, index, now_s)
            elif now_s == arrival_s:
                self._arrive(now_s)
            elif now_s == tick_s:
                self._tick(now_s)
            self._flush(now_s)
            if self._successors and now_s >= self._successors[0].at_s:
                self._change_policy(now_s)
            if watch is not None and self.run.steps - watched >= WATCH_STEPS:
                watched = self.run.steps
                self.run.given_up = watch(self.run, now_s)
                if self.run.given_up:
                    break
        return self._finish(now_s, before_s if now_s == inf else now_s)

    def _finish(self, now_s: float, end_s: float) -> Run:
        core, run = self.core, self.run
        left = sum(fate.end is None for fate in self.fates)
        if left and not run.given_up and (now_s == inf or core.starved_s(now_s) > STARVED_S):
            raise Stuck(f"policy {run.policy}: {left} requests are left and none is planned")
        for index in range(len(self.kvs)):
            self._note_use(index, end_s)
        tokens_s = max((fate.token_s[-1] for fate in self.fates if fate.token_s), default=0.0)
        run.end_s = end_s if left else tokens_s
        run.dropped += sum(replica.dropped for replica in core.replicas.values())
        return run

    def _tick(self, now_s: float) -> None:
        begin_s = thread_time()
        self.core.tick(now_s)
        self.run.decision_s.append(thread_time() - begin_s)

    def _swap_s(self, now_s: float) -> float:
        """When the next policy is called for; it may have to wait for iterations then."""
        at_s = self._successors[0].at_s if self._successors else inf
        return inf if at_s <= now_s and self.core.yielding else max(now_s, at_s)

    def _change_policy(self, now_s: float) -> None:
        """The one in office yields; when its iterations are back, the next one takes over."""
        old = self.core
        old.yielding = True
        if not old.settled:
            return
        policy = self._successors.popleft().policy
        for request, _ in live(old):
            fate = self.fates[request.id - 1]
            fate.preemptions += request.preemptions
            if not fate.taken_over:
                fate.taken_over, fate.cached_tokens = True, request.cached_tokens
        self.run.dropped += sum(replica.dropped for replica in old.replicas.values())
        self.run.takeovers_s.append(now_s)
        for worker in self.workers:
            worker.forget_copies()
        self.core = successor(old, policy, self.config, self._specs, self.kvs, now_s)
        self._flush(now_s)

    # --- arrivals --------------------------------------------------------------------------------------------------

    def _arrival_s(self) -> float:
        arrivals = self.workload.arrivals
        first_s = arrivals[self._next].at_s if self._next < len(arrivals) else inf
        return min(first_s, self._follow_ups[0][0]) if self._follow_ups else first_s

    def _arrive(self, now_s: float) -> None:
        earlier: Sequence[int] = ()
        session = -1
        if self._follow_ups and self._follow_ups[0][0] <= now_s:
            _, _, arrival, earlier, session = heapq.heappop(self._follow_ups)
            arrival = replace(arrival, at_s=now_s)
        else:
            arrival = self.workload.arrivals[self._next]
            self._next += 1
        self.fates.append(Fate(arrival, session=session))
        id = len(self.fates)
        if self._known is not None:
            self._known.expect(arrival)
        tokens = arrival.tokens(id, earlier)
        if arrival.follow_up is not None:
            self._said[id] = tokens
        if arrival.limit_tokens > arrival.output_tokens:
            self._stops[id] = arrival.prompt_tokens + arrival.output_tokens
        if arrival.thinking_tokens:
            self._thoughts[id] = arrival.prompt_tokens + arrival.thinking_tokens
        submit = Submit(
            Prompt(id, tokens),
            arrival.limit_tokens,
            [STOP],
            arrival.objective,
            arrival.slo_class,
            0.0,
        )
        self.core.on_submit(submit, 0, now_s)

    def _send_follow_up(self, id: int, fate: Fate, now_s: float) -> None:
        """The next stage of the session, if its answer came."""
        said = self._said.pop(id)
        arrival = fate.arrival
        follow_up = arrival.follow_up
        if follow_up is None or fate.end not in (Reason.STOP, Reason.LENGTH):
            return
        last = STOP if fate.end is Reason.STOP else TOKEN
        earlier = said + [TOKEN] * (arrival.output_tokens - 1) + [last]
        if arrival.thinking_tokens:
            earlier[len(said) + arrival.thinking_tokens - 1] = THINK_END
        session = id - 1 if fate.session < 0 else fate.session
        self._order += 1
        due_s = now_s + arrival.think_s
        heapq.heappush(self._follow_ups, (due_s, self._order, follow_up, earlier, session))

    # --- what the scheduler says ---------------------------------------------------------------------------------

    def _flush(self, now_s: float) -> None:
        """Does what the scheduler says, and what follows from that at once."""
        core = self.core
        while core.outbox:
            outbox, core.outbox = core.outbox, []
            for role, index, body in outbox:
                if role is Role.FRONTEND:
                    self._receive(body, now_s)
                elif isinstance(body, Lookup):
                    core.on_report(self.kvs[index].on_lookup(body), index, now_s)
                else:
                    assert isinstance(body, Plan)
                    self._execute(body, index, now_s)

    def _execute(self, plan: Plan, index: int, now_s: float) -> None:
        self._note_use(index, now_s)
        kv = self.kvs[index]
        batch, report = kv.on_plan(plan)
        kv.settle()
        done_s, result = self.workers[index].run(batch, now_s)
        self.run.steps += bool(batch.ids)
        self.run.entries += len(batch.ids)
        if self.observer is not None:
            self.observer(batch, index, done_s, result)
        self._order += 1
        heapq.heappush(self._results, (done_s, self._order, index, result))
        self.core.on_report(report, index, now_s)

    def _note_use(self, index: int, now_s: float) -> None:
        """Blocks change hands with a Plan only: what was in use since the last one was so all the time."""
        pool = self.kvs[index].pool
        self.run.kv_used_s += pool.used / pool.num_blocks * (now_s - self._seen_s[index])
        self._seen_s[index] = now_s

    def _receive(self, body: object, now_s: float) -> None:
        match body:
            case Tokens(ids=ids, counts=counts):
                fates = self.fates
                for id, count in zip(ids, counts, strict=True):
                    if count == 1:
                        fates[id - 1].token_s.append(now_s)
                    else:
                        fates[id - 1].token_s.extend([now_s] * count)
            case Finished(ends=ends):
                for end in ends:
                    fate = self.fates[end.id - 1]
                    fate.end = end.reason
                    fate.preemptions += end.preemptions
                    if not fate.taken_over:  # the policy that saw it arrive knows
                        fate.cached_tokens = end.cached_tokens
                    self._stops.pop(end.id, None)
                    self._thoughts.pop(end.id, None)
                    if end.id in self._said:
                        self._send_follow_up(end.id, fate, now_s)
