"""The requests of a scenario of the simulator, sent to a real server: the same draw by the same seed.

A scenario's lengths and rates are those of its model and device; `scale` multiplies all lengths so that a small machine
can serve them, `slo_scale` all objectives. What is a multiple of a prompt's time alone is computed for the scenario's
device, or for the one of a profile. Classes of the scenario are labels here: the server has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from accelgen.proto.profiles import ProfileError
from accelgen.scripts.bench_workload import Request, Shape, WorkloadError
from accelgen.scripts.chat_objective import Objective
from accelgen.simulator.mix import Asked, load_sources, make_workload
from accelgen.simulator.scenarios import Scenario, ScenarioError, find_scenario
from accelgen.simulator.settings import middle_rate
from accelgen.simulator.traces import TraceError
from accelgen.simulator.workload import Arrival


@dataclass(frozen=True)
class Draw:
    """What is asked of a scenario. None: as it says. `max_len` is the most of prompt and answer together."""

    name: str
    file: Path | None = None
    scale: float = 1.0
    slo_scale: float = 1.0
    rate: float | None = None
    requests: int | None = None
    seed: int = 0
    stand_ins: bool = False
    profile: str = ""
    max_len: int | None = None


def rate_of(name: str, file: Path | None, rate: float | None) -> float:
    """Requests (sessions) per second: what is asked for, or the middle rate of the scenario."""
    return rate or middle_rate(find_scenario(name, file))


def draw_requests(draw: Draw) -> tuple[list[Request], float]:
    """The requests, sessions by their first, and the rate. Raises WorkloadError."""
    try:
        scenario = scaled(find_scenario(draw.name, draw.file), draw)
        rate = rate_of(draw.name, draw.file, draw.rate)
        asked = Asked(rate, draw.requests or scenario.requests, draw.seed, scenario.part_of_trace)
        sources = load_sources(scenario, asked, draw.stand_ins)
        workload = make_workload(draw.name, scenario, scenario.device(), asked, sources)
    except TraceError as error:
        raise WorkloadError(f"--scenario: {error}; --synthetic needs no trace") from error
    except (ScenarioError, ProfileError) as error:
        raise WorkloadError(f"--scenario: {error}") from error
    return as_requests(workload.arrivals, draw.slo_scale), rate


def scaled(scenario: Scenario, draw: Draw) -> Scenario:
    """With lengths times `scale`, none beyond `max_len`. Raises ScenarioError."""
    cut = scenario.cut_tokens or scenario.room(scenario.device())
    cut = max(2, round(cut * draw.scale))
    cut = cut if draw.max_len is None else min(cut, draw.max_len)
    if cut < 2:
        raise ScenarioError(f"--max-model-len: {cut} tokens hold no prompt and answer")
    most = min(max(1, round(scenario.max_tokens * draw.scale)), max(1, cut // 2))
    parts = [
        msgspec.structs.replace(part, length_scale=part.length_scale * draw.scale)
        for part in scenario.parts
    ]
    changed = {"parts": parts, "cut_tokens": cut, "max_tokens": most}
    if draw.profile:
        changed |= {"profile_file": draw.profile, "kv_gb": 0.0, "tensor_parallel": 1}
    return msgspec.structs.replace(scenario, **changed)


def as_requests(arrivals: Sequence[Arrival], slo_scale: float) -> list[Request]:
    """One for each arrival; those that follow it are behind it, with indices of their own."""
    found, free = [], len(arrivals)
    for index, arrival in enumerate(arrivals):
        calls = [arrival]
        while (later := calls[-1].follow_up) is not None:
            calls.append(later)
        request: Request | None = None
        for place in range(len(calls) - 1, -1, -1):
            number = index if place == 0 else free + place - 1
            call = replace(_request(number, calls[place], slo_scale), follow_up=request)
            request = call if place == 0 else replace(call, session=index)
        free += len(calls) - 1
        assert request is not None
        found.append(request)
    return found


def _request(index: int, arrival: Arrival, slo_scale: float) -> Request:
    shape = Shape(
        arrival.prompt_tokens, arrival.output_tokens, arrival.slo_class, None, arrival.thought
    )
    return Request(
        index,
        arrival.at_s,
        shape,
        _objective(arrival, slo_scale),
        think_s=arrival.think_s,
        shared=arrival.shared_tokens or 0,
    )


def _objective(arrival: Arrival, slo_scale: float) -> Objective:
    goal, thinking = arrival.objective, arrival.objective.thinking

    def milliseconds(value_s: float | None) -> float | None:
        return None if value_s is None else round(1000 * slo_scale * value_s, 3)

    return Objective(
        ttft_ms=milliseconds(goal.ttft_s),
        tpot_ms=milliseconds(goal.tpot_s),
        e2e_ms=milliseconds(goal.e2e_s),
        thinking_ms=None if thinking is None else milliseconds(thinking.tpot_s),
        thinking_tokens=arrival.thought,
        stage=arrival.stage or None,
    )
