"""One simulated run: the live scheduler core, the live KV cores, simulated workers, a virtual clock.

Links take no time; what a host takes per iteration is part of the device. Arrivals, results and the scheduler's own
moments are the only events, so a run is a function of its arguments.
"""

from __future__ import annotations

import heapq
from array import array
from dataclasses import dataclass, field
from math import inf

from accelgen.kvmanager.core import KvCore
from accelgen.proto.config import Config
from accelgen.proto.messages import (
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
from accelgen.scheduler.predictor import LengthPredictor
from accelgen.simulator.device import Device
from accelgen.simulator.worker import SimulatedWorker
from accelgen.simulator.workload import Arrival, Workload

STARVED_S = 60.0  # with nothing in flight and nothing planned for so long, nothing ever will be


class Stuck(RuntimeError):
    """Requests are left and nothing will ever happen: the policy starves them. The text says how many."""


@dataclass(slots=True)
class Fate:
    """What became of a request: the time of each token, and how it ended (None if the run was cut off)."""

    arrival: Arrival
    token_s: array[float] = field(default_factory=lambda: array("d"))
    end: Reason | None = None
    preemptions: int = 0
    cached_tokens: int = 0


@dataclass(slots=True)
class Run:
    """The outcome of a simulation. Columns of utilisation are means over time of the busy replicas."""

    workload: str
    policy: str
    fates: list[Fate]
    end_s: float
    workers: list[SimulatedWorker]
    steps: int = 0
    entries: int = 0
    kv_used_s: float = 0.0  # integral of the share of KV blocks in use, over all replicas
    dropped: int = 0


class Simulation:
    def __init__(
        self,
        policy: Policy,
        workload: Workload,
        device: Device,
        config: Config,
        predictor: LengthPredictor | None = None,
    ) -> None:
        self.workload, self.config = workload, config
        blocks = config.kv_blocks or device.blocks(config.block_size)
        spec = ReplicaSpec(blocks, config.block_size, device.coefficients)
        specs = dict.fromkeys(range(config.replicas), spec)
        self.core = SchedulerCore(config, policy, specs, predictor)
        caching = config.prefix_caching and workload.shares_prefixes
        self.kvs = [KvCore(blocks, config.block_size, caching) for _ in specs]
        self.workers = [SimulatedWorker(device) for _ in specs]
        self.fates = [Fate(arrival) for arrival in workload.arrivals]
        self.run = Run(workload.name, policy.name, self.fates, 0.0, self.workers)
        self._results: list[tuple[float, int, int, StepResult]] = []  # a heap: due, order, replica
        self._order = 0
        self._next = 0  # arrival
        self._seen_s = [0.0] * len(specs)

    def go(self, until_s: float = inf) -> Run:
        """Until every request has ended, or `until_s`. Raises Stuck."""
        core, arrivals = self.core, self.workload.arrivals
        now_s = 0.0
        while True:
            result_s = self._results[0][0] if self._results else inf
            arrival_s = arrivals[self._next].at_s if self._next < len(arrivals) else inf
            tick_s = max(now_s, core.next_s(now_s))
            now_s = min(result_s, arrival_s, tick_s)
            if now_s > until_s or now_s == inf or core.starved_s(now_s) > STARVED_S:
                break
            if now_s == result_s:
                _, _, index, result = heapq.heappop(self._results)
                core.on_result(result, index, now_s)
            elif now_s == arrival_s:
                self._arrive(now_s)
            else:
                core.tick(now_s)
            self._flush(now_s)
        return self._finish(min(now_s, until_s))

    def _finish(self, now_s: float) -> Run:
        left = sum(fate.end is None for fate in self.fates)
        starved = self.core.starved_s(now_s) > STARVED_S if now_s < inf else True
        if left and starved:
            raise Stuck(f"policy {self.run.policy}: {left} requests are left and none is planned")
        self.run.end_s = max((fate.token_s[-1] for fate in self.fates if fate.token_s), default=0.0)
        self.run.dropped = sum(replica.dropped for replica in self.core.replicas.values())
        return self.run

    def _arrive(self, now_s: float) -> None:
        arrival = self.workload.arrivals[self._next]
        self._next += 1
        prompt = Prompt(self._next, arrival.tokens(self._next))
        submit = Submit(
            prompt, arrival.output_tokens, [], arrival.objective, arrival.slo_class, 0.0
        )
        self.core.on_submit(submit, 0, now_s)

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
        kv = self.kvs[index]
        used = kv.pool.used / kv.pool.num_blocks
        self.run.kv_used_s += used * (now_s - self._seen_s[index])
        self._seen_s[index] = now_s
        batch, report = kv.on_plan(plan)
        kv.settle()
        done_s, result = self.workers[index].run(batch, now_s)
        self.run.steps += 1
        self.run.entries += len(batch.ids)
        self._order += 1
        heapq.heappush(self._results, (done_s, self._order, index, result))
        self.core.on_report(report, index, now_s)

    def _receive(self, body: object, now_s: float) -> None:
        match body:
            case Tokens(ids=ids, counts=counts):
                for id, count in zip(ids, counts, strict=True):
                    times = self.fates[id - 1].token_s
                    for _ in range(count):
                        times.append(now_s)
            case Finished(ends=ends):
                for end in ends:
                    fate = self.fates[end.id - 1]
                    fate.end, fate.preemptions = end.reason, end.preemptions
                    fate.cached_tokens = end.cached_tokens
