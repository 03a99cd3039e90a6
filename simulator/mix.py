"""The requests of a scenario, drawn by seed: arrivals, parts, lengths and objectives, each from a stream of its own, so
that another rate leaves lengths and objectives as they are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from accelgen.proto.messages import Objective, Thinking
from accelgen.proto.stages import ANSWER, TOOL
from accelgen.scheduler.cost_model import Work
from accelgen.scheduler.table import Floats
from accelgen.simulator.device import Device, Iteration
from accelgen.simulator.rows import Rows, Stage
from accelgen.simulator.scenarios import (
    SYNTHETIC,
    Goal,
    Part,
    Scenario,
    ScenarioError,
    StageGoal,
)
from accelgen.simulator.synthetic import STAND_INS, gamma
from accelgen.simulator.traces import find_trace, read_trace
from accelgen.simulator.worker import THINK_END
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
    """The rows behind each source name; with `stand_ins` none is read from a file that has one. Raises TraceError,
    ScenarioError."""
    found = {}
    for source in scenario.sources:
        name = stand_in_of(source, stand_ins)
        if name is not None:
            rows = STAND_INS[name].rows(name, 2 * asked.requests, asked.seed)
        else:
            rows = read_trace(find_trace(source), asked.seed)
            if source == scenario.timed_by and scenario.slice_s is not None:
                rows = _sliced(rows, *scenario.slice_s)
        found[source] = rows.half(asked.half)
    return found


def _sliced(rows: Rows, begin_s: float, length_s: float) -> Rows:
    if rows.at_s is None:
        raise ScenarioError(f"slice_s: {rows.name} has no times")
    found = rows.between(begin_s, length_s)
    if not len(found):
        end_s = float(rows.at_s[-1])
        raise ScenarioError(
            f"slice_s: {rows.name} has no request from {begin_s:g} s on for {length_s:g} s, it ends at {end_s:g} s"
        )
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
    if scenario.timed_by:
        source = scenario.timed_by
        rows, which = _timed(sources[source], scenario, asked), None
        at_s = _scaled(rows, asked.rate)
        if not scenario.arrivals_of:  # lengths are those of the same rows
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


@dataclass(frozen=True, slots=True)
class _Draft:
    """One request as drawn: lengths, what of its output is thinking (0: none), of its prompt new and what was there
    before, how long its sender thinks before it, and the chances that its objectives depend on."""

    prompt: int
    output: int
    thinking: int
    fresh: int
    shared: int | None
    think_s: float
    factors: Floats


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
        thinking = self._thinking(part, rows, row, output)
        drafts = [_Draft(prompt, output, thinking, prompt, None, 0.0, self._factors())]
        if rows.later is not None:
            drafts += self._later(part, rows.later[row])
        names = [""] if rows.later is None else [TOOL] * (len(drafts) - 1) + [ANSWER]
        waits_s = [*(draft.think_s for draft in drafts[1:]), 0.0]
        stages = [
            self._stage(part, draft, name, wait_s)
            for draft, name, wait_s in zip(drafts, names, waits_s, strict=True)
        ]
        prefix = rows.prefixes[row] if rows.prefixes is not None else ()
        block = max(1, round(rows.prefix_block * part.length_scale))
        stages[0] = replace(stages[0], at_s=at_s, prefix=prefix, prefix_block=block)
        return session(stages)

    def _stage(self, part: Part, draft: _Draft, stage: str, wait_s: float) -> Arrival:
        return Arrival(
            0.0,
            draft.prompt,
            draft.output,
            self._objective(part, draft, stage),
            part.name,
            max_tokens=self.scenario.max_tokens,
            think_s=wait_s,
            shared_tokens=draft.shared,
            thinking_tokens=draft.thinking,
            stage=stage,
        )

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

    def _thinking(self, part: Part, rows: Rows, row: int, output: int) -> int:
        """Tokens of thinking among `output`; 0 if the output is cut within it, or nothing says so."""
        if not part.stages.of_answer:
            return 0
        if part.thinking_share is not None:
            share = part.thinking_share
        elif rows.thinking is not None:
            share = float(rows.thinking[row] / rows.output[row])
        else:
            raise ScenarioError(
                f"parts.{part.name}.thinking_share: {rows.name} does not say what is thinking; state a share"
            )
        whole = max(1, round(int(rows.output[row]) * part.length_scale))
        tokens = max(1, round(share * whole))
        return tokens if tokens < output else 0

    def _later(self, part: Part, later: tuple[Stage, ...]) -> list[_Draft]:
        """The rest of the session, up to where its context would be cut."""
        found = []
        for stage in later:
            prompt, output = self._lengths(part, stage.prompt, stage.output)
            if prompt >= self.cut - self.scenario.max_tokens:
                break
            shared = min(prompt, round(stage.shared * part.length_scale))
            fresh = max(1, prompt - shared)
            factors = self._factors()
            found.append(_Draft(prompt, output, 0, fresh, shared, stage.think_s, factors))
        return found

    def _factors(self) -> Floats:
        return self._goals.uniform(0, 1, size=3)

    def _objective(self, part: Part, draft: _Draft, stage: str) -> Objective:
        """Of a call of the part; `stage` as in a session."""
        call = getattr(part.stages, stage) if stage else None
        call = call or StageGoal()
        response = part.stages.response or StageGoal()
        thinking = part.stages.thinking or StageGoal()
        goals = (call.ttft or part.ttft, response.tpot or call.tpot or part.tpot, part.e2e)
        seconds = [
            None if goal is None else self._seconds(goal, draft.fresh, factor)
            for goal, factor in zip(goals, draft.factors, strict=True)
        ]
        if not part.stages.of_answer:
            return Objective(seconds[0], seconds[1], seconds[2])
        goal = thinking.tpot or call.tpot or part.tpot
        factor = float(draft.factors[1])
        pace_s = None if goal is None else self._seconds(goal, draft.fresh, factor)
        thinks = Thinking(pace_s, [THINK_END])
        return Objective(seconds[0], seconds[1], seconds[2], thinks)

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
