"""Candidates of the search for an upper reference, and what each is worth: one whole simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from msgspec import Struct

from accelgen.proto.config import Config
from accelgen.scheduler.decision import BadDecision
from accelgen.simulator.bound import check_known, least_time_s
from accelgen.simulator.device import Device
from accelgen.simulator.foresight import Facts
from accelgen.simulator.metrics import hopeless
from accelgen.simulator.needs import Model, needs_of
from accelgen.simulator.ordered import Knobs, Ordered
from accelgen.simulator.precedence import Order
from accelgen.simulator.run import Run, Simulation, Stuck
from accelgen.simulator.times import Rule, Times
from accelgen.simulator.workload import Workload

Metric = Literal["goodput", "attainment"]
GRID = tuple(Knobs(reserve, foresee) for reserve in (True, False) for foresee in (True, False))


class Candidate(Struct, frozen=True):
    """Requests that are kept, by id, first come first; and the knobs. All others are given up."""

    kept: tuple[int, ...]
    knobs: Knobs


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a candidate came to: -1 if it was given up, or starved. `attained`: ids of those that met all objectives."""

    value: float
    attained: frozenset[int] = frozenset()
    run: Run | None = None


class Judge:
    """Simulates candidates on one workload; `used` counts them. Raises ScenarioError if it has sessions."""

    def __init__(
        self, workload: Workload, device: Device, config: Config, rule: Rule, metric: Metric
    ) -> None:
        check_known(workload)
        self.workload, self.device, self.config = workload, device, config
        self.rule, self.metric, self.used = rule, metric, 0
        needs = needs_of(workload, device, config, rule)
        self.facts = Facts(workload, needs, device, rule)
        self._least_s = least_time_s(needs, Model.of(device, config), config.replicas)

    @property
    def requests(self) -> int:
        return len(self.workload.arrivals)

    def value_of(self, run: Run) -> Outcome:
        """Of a run to its end, whoever has made it."""
        attained = Times.of(run.fates).attains()[self.rule]
        count = int(attained.sum())
        sent_s = run.fates[0].arrival.at_s
        value = count / max(run.end_s - sent_s, 1e-12) if self.metric == "goodput" else float(count)
        return Outcome(value, frozenset((np.flatnonzero(attained) + 1).tolist()), run)

    def try_candidate(self, candidate: Candidate, beat: float = -1.0) -> Outcome:
        """Simulates it to its end, or until it cannot be worth `beat` any more."""
        return self.try_order(Order(self.requests, candidate.kept), candidate.knobs, beat)

    def try_order(self, order: Order, knobs: Knobs, beat: float = -1.0) -> Outcome:
        self.used += 1
        policy = Ordered(self.facts, order, knobs)
        simulation = Simulation(policy, self.workload, self.device, self.config)
        # Goodput is at most (those that can still attain) / (least time).
        wanted = beat * (self._least_s if self.metric == "goodput" else 1.0) / self.requests

        def watch(run: Run, now_s: float) -> bool:
            return hopeless(run, now_s, wanted, self.requests)

        try:
            run = simulation.go(watch=watch if wanted > 0 else None)
        except (Stuck, BadDecision):
            return Outcome(-1.0)
        return Outcome(-1.0) if run.given_up else self.value_of(run)

    def by(self, key: str) -> tuple[int, ...]:
        """All that can attain at all, by `first_due_s`, `begin_due_s` or `work_s`."""
        facts, ids = self.facts, np.array(self.facts.attainable, dtype=np.int64)
        values = getattr(facts, key)[ids]
        return tuple(ids[np.argsort(values, kind="stable")].tolist())


def order_of_run(outcome: Outcome) -> tuple[int, ...]:
    """Those that attained in a run, in the order of their first tokens."""
    assert outcome.run is not None
    fates = outcome.run.fates
    return tuple(sorted(outcome.attained, key=lambda id: (fates[id - 1].token_s[0], id)))


def without(kept: Sequence[int], gone: frozenset[int]) -> tuple[int, ...]:
    return tuple(id for id in kept if id not in gone)
