"""What the search for an upper reference knows and no policy can: arrivals, lengths, and true times of iterations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np

from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.table import FAR_S, Floats, Ints, RequestTable
from accelgen.simulator.device import Device, Iteration
from accelgen.simulator.needs import Needs
from accelgen.simulator.times import Rule
from accelgen.simulator.workload import Workload

NEAR_S = FAR_S / 2  # a deadline nearer than this is a real one
AHEAD = 8  # arrivals looked at


class Facts:
    """By request id, 1 for the first to arrive (0 is nobody): `sent_s`, the last moments at which the first token must
    be there and its prompt begin (infinite where nothing is stated; never, if it cannot attain), seconds of work,
    `residence_s` alone on the device, and `ends`, all its tokens. `attainable`: ids."""

    def __init__(
        self, workload: Workload, needs: Sequence[Needs | None], device: Device, rule: Rule
    ) -> None:
        arrivals = workload.arrivals
        self.device, self.rule, self.requests = device, rule, len(arrivals)
        size = self.requests + 1
        self.sent_s, self.work_s, self.residence_s = np.zeros(size), np.zeros(size), np.zeros(size)
        self.first_due_s, self.begin_due_s = np.full(size, -inf), np.full(size, -inf)
        self.ends = np.zeros(size, dtype=np.int64)
        self.attainable: list[int] = []
        for id, (arrival, need) in enumerate(zip(arrivals, needs, strict=True), 1):
            self.sent_s[id] = arrival.at_s
            self.ends[id] = arrival.prompt_tokens + arrival.output_tokens
            if need is None or not need.attainable:
                continue
            self.attainable.append(id)
            self.first_due_s[id] = need.latest_s[0]
            self.begin_due_s[id] = need.latest_s[0] - need.alone_s[0]
            self.work_s[id] = need.work_s[1].sum()
            self.residence_s[id] = need.residence_s
        self.least_s = device.seconds(Iteration(Work(decode_seqs=1), sequences=1))
        self._begin_s = np.where(np.isfinite(self.begin_due_s), self.begin_due_s, inf)

    def until_s(self, now_s: float) -> float:
        """The moment by which the next arrivals want an iteration that begins now to be over."""
        at = int(np.searchsorted(self.sent_s[1:], now_s, side="right")) + 1
        return float(self._begin_s[at : at + AHEAD].min(initial=inf))

    def next_due_s(self, table: RequestTable, slots: Ints) -> Floats:
        """When the next token of requests that have had one must be there, by the rule, [n]."""
        gap_s = table.tpot_s[slots]
        left = np.maximum(self.ends[table.ids[slots]] - table.length[slots], 1)
        if self.rule is Rule.EVERY_GAP:
            due_s = table.last_s[slots] + gap_s
        else:
            came_s = np.minimum(table.first_s[slots], table.last_s[slots])
            given = table.length[slots] - table.prompt_len[slots]
            if self.rule is Rule.MEAN:
                due_s = came_s + (given + left - 1) * gap_s - (left - 1) * self.least_s
            else:
                first_s = table.first_due_s[slots]
                due_s = np.where(first_s < NEAR_S, np.maximum(first_s, came_s), came_s)
                due_s = due_s + given * gap_s + table.shift_s[slots]
        found: Floats = np.minimum(due_s, table.end_due_s[slots] - (left - 1) * self.least_s)
        return found

    def due_s(self, table: RequestTable, slot: int) -> float:
        """When the prompt of a request, or what must be computed again, must be done."""
        if table.length[slot] > table.prompt_len[slot]:
            return float(self.next_due_s(table, np.array([slot]))[0])
        return float(self.first_due_s[table.ids[slot]])

    def hopeless(self, table: RequestTable, slot: int, now_s: float) -> bool:
        """Whether what is pending of a prompt comes too late even if nothing else runs."""
        computed = int(table.computed[slot])
        alone = Filling(self.device).seconds_with(computed, int(table.length[slot]) - computed)
        return now_s + alone > self.due_s(table, slot)


@dataclass(slots=True)
class Filling:
    """The features of an iteration that is being put together."""

    device: Device
    decodes: int = 0
    context: int = 0
    tokens: int = 0
    work: float = 0.0
    prior: int = 0
    prompts: int = 0

    @classmethod
    def of(cls, device: Device, table: RequestTable, decodes: Ints) -> Filling:
        return cls(device, len(decodes), int(table.computed[decodes].sum()))

    def seconds_with(self, prior: int, count: int) -> float:
        """How long it takes with `count` further prompt tokens after `prior` ones; with 0, as it is."""
        work = self.work + count * (prior + count / 2)
        features = Work(self.tokens + count, self.decodes, self.context, work)
        sequences = self.decodes + self.prompts + (count > 0)
        if not sequences:
            return 0.0
        return self.device.seconds(Iteration(features, self.prior + prior, sequences))

    def add(self, prior: int, count: int) -> None:
        self.work += count * (prior + count / 2)
        self.tokens += count
        self.prior += prior
        self.prompts += 1

    def largest(self, prior: int, most: int, limit_s: float) -> int:
        """The most prompt tokens, up to `most`, with which it takes at most `limit_s`."""
        if self.seconds_with(prior, most) <= limit_s:
            return most
        low, high = 0, most - 1
        while low < high:
            middle = (low + high + 1) // 2
            if self.seconds_with(prior, middle) <= limit_s:
                low = middle
            else:
                high = middle - 1
        return low

    def budget(self, limit_s: float, most: int) -> int:
        """At most so many prompt tokens fit, whosesoever they are: without their attention."""
        k = self.device.coefficients
        left_s = limit_s - self.seconds_with(0, 0)
        return most if left_s >= most * (k.b + k.b2) else max(0, int(left_s / max(k.b, 1e-12)))
