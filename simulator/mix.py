"""The requests of a scenario, drawn by seed: arrivals, parts, lengths and objectives, each from a stream of its own, so
that another rate leaves lengths and objectives as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from accelgen.proto.messages import Objective
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.table import Floats
from accelgen.simulator.device import Device, Iteration
from accelgen.simulator.rows import Rows, Stage
from accelgen.simulator.scenarios import SYNTHETIC, Goal, Part, Scenario, ScenarioError
from accelgen.simulator.synthetic import STAND_INS, gamma
from accelgen.simulator.traces import find_trace, read_trace
from accelgen.simulator.workload import Arrival, Workload, session

Half = Literal["tune", "report", "all"]
_ARRIVALS, _PARTS, _ROWS, _GOALS, _THIN = range(5)


@dataclass(frozen=True, slots=True)
class Asked:
    """How much of a scenario, how fast."""

    rate: float  # requests per second; of sessions: first requests
    requests: int
    seed: int = 0
    half: Half = "all"


def load_sources(scenario: Scenario, asked: Asked, stand_ins: bool = False) -> dict[str, Rows]:
    """The rows behind each source name; with `stand_ins` none is read from a file that has one. Raises TraceError."""
    found = {}
    for part in scenario.parts:
        if part.source in found:
            continue
        name = stand_in_of(part.source, stand_ins)
        if name is not None:
            rows = STAND_INS[name].rows(name, 2 * asked.requests, asked.seed)
        else:
            rows = read_trace(find_trace(part.source), asked.seed)
        found[part.source] = rows.half(asked.half)
    return found


def stand_in_of(source: str, stand_ins: bool) -> str | None:
    """The name of what stands in for a source: if it says so itself, or, with `stand_ins`, if there is one."""
    name = source.removeprefix(SYNTHETIC)
    return name if name != source or (stand_ins and name in STAND_INS) else None


def make_workload(
    name: str, scenario: Scenario, device: Device, asked: Asked, sources: dict[str, Rows]
) -> Workload:
    """The requests that `asked` describes. Fewer than asked for if the trace whose times are used has fewer. Raises
    ScenarioError."""
    if scenario.arrivals in ("trace", "thinned"):
        [source] = sources
        rows = _timed(sources[source], scenario, asked)
        at_s = _scaled(rows, asked.rate)
        sources, which = {source: rows}, np.arange(len(rows))
    else:
        draw = np.random.default_rng([asked.seed, _ARRIVALS])
        cv = scenario.cv if scenario.arrivals == "gamma" else 1.0
        at_s, which = gamma(asked.requests, asked.rate, cv, draw), None
        if at_s[-1] > 0:  # so that n requests take exactly (n - 1) / rate
            at_s *= (asked.requests - 1) / asked.rate / at_s[-1]
    shares = np.array([part.share for part in scenario.parts])
    draw = np.random.default_rng([asked.seed, _PARTS])
    chosen = draw.choice(len(shares), size=len(at_s), p=shares / shares.sum())
    maker = _Maker(scenario, device, asked.seed)
    arrivals = [
        maker.arrival(float(at), scenario.parts[part], sources, None if which is None else number)
        for number, (at, part) in enumerate(zip(at_s, chosen, strict=True))
    ]
    return Workload(name, arrivals)


class _Maker:
    """Draws what is random about one request after the other."""

    def __init__(self, scenario: Scenario, device: Device, seed: int) -> None:
        self.scenario, self.device = scenario, device
        self.cut = scenario.cut_tokens or scenario.room(device)
        self._rows = np.random.default_rng([seed, _ROWS])
        self._goals = np.random.default_rng([seed, _GOALS])
        self._next: dict[str, int] = {}  # of sources that are used in their order

    def arrival(
        self, at_s: float, part: Part, sources: dict[str, Rows], number: int | None
    ) -> Arrival:
        rows = sources[part.source]
        row = self._row(part.source, rows) if number is None else number
        prompt, output = self._lengths(part, int(rows.prompt[row]), int(rows.output[row]))
        first = Arrival(
            at_s,
            prompt,
            output,
            self._objective(part, prompt),
            part.name,
            rows.prefixes[row] if rows.prefixes is not None else (),
            max(1, round(rows.prefix_block * part.length_scale)),
            self.scenario.max_tokens,
        )
        later = rows.later[row] if rows.later is not None else ()
        return self._with_stages(first, part, later) if later else first

    def _row(self, source: str, rows: Rows) -> int:
        """A random row; the next one where the order means something, because prompts share prefixes."""
        if rows.prefixes is None:
            return int(self._rows.integers(len(rows)))
        row = self._next.get(source, 0)
        self._next[source] = (row + 1) % len(rows)
        return row

    def _lengths(self, part: Part, prompt: int, output: int) -> tuple[int, int]:
        scale, most = part.length_scale, self.scenario.max_tokens
        prompt = min(max(1, round(prompt * scale)), self.cut - most)
        return prompt, min(max(1, round(output * scale)), most)

    def _with_stages(self, first: Arrival, part: Part, later: tuple[Stage, ...]) -> Arrival:
        """The session, up to where its context would be cut."""
        stages = [first]
        for stage in later:
            prompt, output = self._lengths(part, stage.prompt, stage.output)
            if prompt >= self.cut - self.scenario.max_tokens:
                break
            stages[-1] = replace(stages[-1], think_s=stage.think_s)
            shared = min(prompt, round(stage.shared * part.length_scale))
            goal = self._objective(part, max(1, prompt - shared))
            stages.append(
                Arrival(
                    0.0,
                    prompt,
                    output,
                    goal,
                    part.name,
                    max_tokens=self.scenario.max_tokens,
                    shared_tokens=shared,
                )  # fmt: skip
            )
        return session(stages)

    def _objective(self, part: Part, prompt: int) -> Objective:
        goals = (part.ttft, part.tpot, part.e2e)
        factors = self._goals.uniform(0, 1, size=3)
        return Objective(
            *(
                None if goal is None else self._seconds(goal, prompt, factor)
                for goal, factor in zip(goals, factors, strict=True)
            )
        )

    def _seconds(self, goal: Goal, prompt: int, factor: float) -> float:
        if goal.base_s is not None:
            base_s = goal.base_s
        else:
            assert goal.slowdown is not None
            tokens = -(-prompt // goal.bucket) * goal.bucket
            alone = Iteration(Work(tokens, prefill_work=tokens * tokens / 2), sequences=1)
            base_s = goal.slowdown * self.device.seconds(alone)
        low, high = goal.spread
        return float(base_s * (low + (high - low) * factor))


def _timed(rows: Rows, scenario: Scenario, asked: Asked) -> Rows:
    """The first rows, as many as asked for; thinned to the rate, as far as that needs thinning."""
    if rows.at_s is None:
        raise ScenarioError(f"arrivals: {rows.name} has no times, so they are poisson or gamma")
    if scenario.arrivals == "thinned":
        keep = asked.rate / own_rate(rows)
        draw = np.random.default_rng([asked.seed, _THIN])
        rows = rows.take(np.flatnonzero(draw.uniform(0, 1, size=len(rows)) < keep))
        if not len(rows):
            raise ScenarioError(f"arrivals: {rows.name} thinned to {asked.rate:g}/s has no request")
    return rows.take(np.arange(min(asked.requests, len(rows))))


def own_rate(rows: Rows) -> float:
    """Requests per second of a trace."""
    assert rows.at_s is not None
    return (len(rows) - 1) / max(float(rows.at_s[-1]), 1e-9)


def _scaled(rows: Rows, rate: float) -> Floats:
    """Its times, all scaled alike so that they come at `rate`."""
    assert rows.at_s is not None
    scaled: Floats = rows.at_s * (own_rate(rows) / rate)
    return scaled
