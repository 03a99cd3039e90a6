"""Frozen workloads: model, hardware, KV, limits, classes with objectives, rates and seeds, from one TOML file.

`benchmarks/scenarios.toml` has those that the policies are compared on. Everything random comes from the seed: which
part a request belongs to, its lengths, its arrival, its objectives.
"""

from __future__ import annotations

import difflib
import tomllib
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct, field, structs

from accelgen.proto.config import NGRAM, Config, SloClass
from accelgen.proto.policies import parse_routing, unknown_routing
from accelgen.proto.stages import PARTS, STAGES
from accelgen.proto.validation import find_misfit
from accelgen.simulator.device import Device, UnknownDevice, find_device
from accelgen.simulator.local_device import profiled_device
from accelgen.simulator.synthetic import STAND_INS
from accelgen.simulator.tensor_parallel import NoNetwork, split
from accelgen.simulator.times import Rule

T = TypeVar("T")
Count = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Factor = Annotated[float, Meta(gt=0, le=1e9)]
Params = dict[str, int | float | str | bool]
SYNTHETIC = "synthetic:"
DAY_MS = 86_400_000.0


class ScenarioError(ValueError):
    """A scenario that cannot be; the text names the file, the scenario, the field and the limit."""


class Goal(Struct, frozen=True, forbid_unknown_fields=True):
    """An objective in seconds: `base_s`, or `slowdown` times what the prompt takes alone on the device (rounded up to
    a multiple of `bucket` tokens); times a factor drawn uniformly from `spread`."""

    base_s: Factor | None = None
    slowdown: Factor | None = None
    bucket: Count = 1
    spread: tuple[Factor, Factor] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if (self.base_s is None) == (self.slowdown is None):
            raise ValueError("state either base_s or slowdown")
        if self.spread[0] > self.spread[1]:
            raise ValueError(f"spread: {self.spread[0]:g} is above {self.spread[1]:g}")


class StageGoal(Struct, frozen=True, forbid_unknown_fields=True):
    """Objectives of one stage, in place of those of the part."""

    ttft: Goal | None = None
    tpot: Goal | None = None


class StageGoals(Struct, frozen=True, forbid_unknown_fields=True):
    """Of the parts of an answer (`thinking`, `response`), and of the calls of a session: those of a `tool` loop, and
    the last one, the `answer`."""

    thinking: StageGoal | None = None
    response: StageGoal | None = None
    tool: StageGoal | None = None
    answer: StageGoal | None = None

    def __post_init__(self) -> None:
        for name in PARTS:
            goal = getattr(self, name)
            if goal is not None and goal.ttft is not None:
                raise ValueError(f"{name}.ttft: an answer has one first token, the part's ttft")
        for name in STAGES:
            goal = getattr(self, name)
            if goal is not None and goal.tpot is not None and goal.tpot.slowdown is not None:
                raise ValueError(f"{name}.tpot: slowdown is of the prompt, so it is for ttft alone")

    @property
    def of_answer(self) -> bool:
        """Whether thinking and response are told apart."""
        return self.thinking is not None or self.response is not None


class Part(Struct, frozen=True, forbid_unknown_fields=True):
    """Some of the requests: `share` of them, with lengths from `source` (a trace or length set by name, or
    `synthetic:NAME`), multiplied by `length_scale`. Its name is the class that the requests state. `stages` have
    objectives of their own; what of the output is thinking the source says, or `thinking_share`."""

    name: Annotated[str, Meta(min_length=1, max_length=64)]
    source: Annotated[str, Meta(min_length=1)]
    share: Factor = 1.0
    length_scale: Factor = 1.0
    ttft: Goal | None = None
    tpot: Goal | None = None
    e2e: Goal | None = None
    stages: StageGoals = StageGoals()
    thinking_share: Annotated[float, Meta(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        for name in ("tpot", "e2e"):
            goal = getattr(self, name)
            if goal is not None and goal.slowdown is not None:
                raise ValueError(f"{name}: slowdown is of the prompt, so it is for ttft alone")


class Scenario(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A workload on a device. `arrivals`: `poisson`; `gamma` with `cv`; `trace`: the times of the one source, scaled;
    `thinned`: the times of the source, requests left out at random (to go faster than the source, it is scaled).
    `arrivals_of` takes these times from another trace than the lengths; `slice_s` (where it begins, how long it is) a
    slice of that trace (a stand-in for it is the same at any time: it is not cut).

    Outputs are cut to `max_tokens`, which is also what clients ask for; prompts so that both have at most `cut_tokens`.
    Halves of a trace are for tuning and for reporting."""

    about: str
    model: str
    hardware: str
    parts: Annotated[list[Part], Meta(min_length=1)]
    rates: Annotated[list[Factor], Meta(min_length=1)]
    seeds: Annotated[list[Annotated[int, Meta(ge=0)]], Meta(min_length=1)]
    requests: Count = 1000
    arrivals: Literal["poisson", "gamma", "trace", "thinned"] = "poisson"
    cv: Factor = 1.0
    arrivals_of: str = ""  # "": the source of the parts
    slice_s: tuple[Annotated[float, Meta(ge=0, le=1e9)], Factor] | None = None
    part_of_trace: Literal["tune", "report", "all"] = "all"
    max_tokens: Count = 2048
    cut_tokens: Annotated[int, Meta(ge=0)] = 0  # 0: what the KV cache holds
    kv_gb: Annotated[float, Meta(ge=0)] = 0.0  # 0: what the device has beside the weights
    host_ms: Annotated[float, Meta(ge=0)] | None = None  # None: that of the device
    profile_file: str = ""  # samples of `accelgen profile`, in place of a fit of model and hardware
    block_size: Count = 16
    kv_blocks: Annotated[int, Meta(ge=0)] = 0  # 0: from kv_gb
    replicas: Annotated[int, Meta(ge=1, le=64)] = 1
    tensor_parallel: Annotated[int, Meta(ge=1, le=64)] = (
        1  # devices of each replica; kv_gb is each one's
    )
    max_num_seqs: Count = 256
    max_num_batched_tokens: Count = 8192
    pipeline_depth: Annotated[int, Meta(ge=0, le=1)] = 0  # the papers plan between iterations
    prefix_caching: bool = True
    preemption: Literal["recompute", "swap"] = "recompute"  # distserve always swaps
    swap_gb_s: Factor = 25.0  # per device, to the host and back
    acceptance: Annotated[float, Meta(ge=0, le=1)] | None = (
        None  # of a drafted token; None: no drafter
    )
    max_draft_tokens: Annotated[int, Meta(ge=1, le=64)] = 4  # per request and iteration
    draft_ms: Annotated[float, Meta(ge=0)] = 0.0  # of the drafter, per token of the longest draft
    memory: str = ""  # memory policy; "" is the policy's own
    memory_params: Params = field(default_factory=dict)
    routing: str = ""  # NAME or NAME:key=value:...; "" leaves the choice of replicas to the policy
    rule: Rule = Rule.CUMULATIVE  # that figures of goodput and capacity are judged by
    policies: dict[str, Params] = field(default_factory=dict)  # parameters, by policy

    def __post_init__(self) -> None:
        names = [part.name for part in self.parts]
        if len(set(names)) < len(names):
            raise ValueError("parts: two have one name")
        if self.rates != sorted(self.rates):
            raise ValueError("rates: not ascending")
        sources = {part.source for part in self.parts}
        timed = self.arrivals in ("trace", "thinned")
        if timed and len(sources) > 1 and not self.arrivals_of:
            raise ValueError(f"arrivals: the times of which of {', '.join(sorted(sources))}?")
        if self.memory_params and not self.memory:
            raise ValueError("memory_params: of which memory policy? State memory, too")
        if self.routing and (fault := unknown_routing(parse_routing(self.routing)[0])):
            raise ValueError(f"routing: {fault}")
        for name in ("arrivals_of", "slice_s"):
            if getattr(self, name) and not timed:
                raise ValueError(f"{name}: arrivals are {self.arrivals}, not trace or thinned")
        if self.cut_tokens and self.cut_tokens <= self.max_tokens:
            raise ValueError(f"cut_tokens: {self.cut_tokens} leaves no room beside max_tokens")

    @property
    def timed_by(self) -> str:
        """The source whose times are used; "" for none."""
        timed = self.arrivals in ("trace", "thinned")
        return (self.arrivals_of or self.parts[0].source) if timed else ""

    @property
    def sources(self) -> list[str]:
        """All sources by name, each once."""
        found = dict.fromkeys(part.source for part in self.parts)
        return [*found, *({self.timed_by} - {"", *found})]

    def device(self) -> Device:
        """The model on the hardware of one replica. Raises UnknownDevice or ProfileError."""
        kv_bytes = round(self.kv_gb * 1e9)
        host_s = None if self.host_ms is None else self.host_ms / 1000
        if self.profile_file:
            device = profiled_device(Path(self.profile_file), kv_bytes, host_s or 0.0)
        else:
            device = find_device(self.model, self.hardware, 0, host_s)
        device = split(replace(device, swap_bytes_s=self.swap_gb_s * 1e9), self.tensor_parallel)
        return replace(device, kv_bytes=kv_bytes) if kv_bytes else device

    def room(self, device: Device) -> int:
        """Tokens of KV that one replica holds."""
        return (self.kv_blocks or device.blocks(self.block_size)) * self.block_size

    def config(self, policy: str) -> Config:
        """The server's configuration: no limit but those of the scenario, so that rules are literal."""
        patient = SloClass(bounds_ms=(1e-3, DAY_MS), max_queue_ms=DAY_MS)
        return Config(
            policy=policy,
            kv_blocks=self.kv_blocks,
            block_size=self.block_size,
            prefix_caching=self.prefix_caching,
            drafter="" if self.acceptance is None else NGRAM,
            max_draft_tokens=self.max_draft_tokens,
            memory=self.memory,
            memory_params=self.memory_params,
            routing=self.routing,
            replicas=self.replicas,
            pipeline_depth=self.pipeline_depth,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            max_step_s=1e9,
            max_queued_requests=2**40,
            max_queued_tokens=2**50,
            slo_classes={part.name: patient for part in self.parts},
            default_class=self.parts[0].name,
        )


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `policies` are parameters for all scenarios, which each may override."""

    scenarios: dict[str, Any]
    policies: dict[str, Params] = field(default_factory=dict)


def default_file() -> Path:
    """The frozen scenarios that come with the project."""
    return Path(str(files("accelgen.simulator") / "scenarios.toml"))


def load_scenarios(path: Path | None = None) -> dict[str, Scenario]:
    """All scenarios of a file, checked. Raises ScenarioError."""
    path = path or default_file()
    try:
        text = path.read_text()
        file = convert(tomllib.loads(text), _File, "")
        scenarios = {
            name: make_scenario(fields, f"scenarios.{name}", file.policies)
            for name, fields in file.scenarios.items()
        }
    except OSError as error:
        raise ScenarioError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: not a text file (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{path}: not TOML: {error}") from error
    except ScenarioError as error:
        raise ScenarioError(f"{path}: {error}") from error
    if not scenarios:
        raise ScenarioError(f"{path}: scenarios: there is none")
    return scenarios


def find_scenario(name: str, path: Path | None = None) -> Scenario:
    """The scenario `name`. Raises ScenarioError with near matches."""
    scenarios = load_scenarios(path)
    if name not in scenarios:
        near = difflib.get_close_matches(name, scenarios) or sorted(scenarios)
        raise ScenarioError(f"there is no scenario {name!r}; did you mean {' or '.join(near)}?")
    return scenarios[name]


def make_scenario(fields: Any, at: str = "", policies: dict[str, Params] | None = None) -> Scenario:
    """A scenario of plain values, checked; `at` is where they stand, `policies` are parameters that it may override.
    Raises ScenarioError, ProfileError."""
    scenario = convert(fields, Scenario, at)
    try:
        device = scenario.device()
    except UnknownDevice as error:
        field = "tensor_parallel" if isinstance(error, NoNetwork) else "model"
        raise ScenarioError(_at(at, field, error)) from error
    for part in scenario.parts:
        _check_source(part.source, _at(at, f"parts.{part.name}.source"))
    _check_source(scenario.arrivals_of, _at(at, "arrivals_of"))
    room, needed = scenario.room(device), scenario.cut_tokens or scenario.max_tokens + 1
    if needed > room:
        field = "cut_tokens" if scenario.cut_tokens else "max_tokens"
        raise ScenarioError(
            _at(at, field, f"requests of {needed} tokens, the KV cache holds {room}")
        )
    defaults = policies or {}
    merged = {
        name: {**defaults.get(name, {}), **scenario.policies.get(name, {})}
        for name in {**defaults, **scenario.policies}
    }
    return structs.replace(scenario, policies=merged)


def _at(*parts: object) -> str:
    """`scenarios.x.field: words`, of what is there of it."""
    *path, words = map(str, parts)
    where = ".".join(part for part in path if part)
    return f"{where}: {words}" if where and " " in words else ".".join(filter(None, [where, words]))


def _check_source(source: str, at: str) -> None:
    """A trace may be missing here, a stand-in may not."""
    name = source.removeprefix(SYNTHETIC)
    if name != source and name not in STAND_INS:
        near = difflib.get_close_matches(name, STAND_INS) or sorted(STAND_INS)
        raise ScenarioError(
            f"{at}: there is no {source!r}; did you mean"
            f" {' or '.join(SYNTHETIC + one for one in near)}?"
        )


def convert(value: Any, kind: type[T], at: str) -> T:
    """`value` as a `kind`. Raises ScenarioError with the field first."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ScenarioError(find_misfit(error, value, kind).below(at)) from error
