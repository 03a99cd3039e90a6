"""One simulation as a value: everything that decides its outcome, and the outcome. Same setting, same code, same
trace or profile: same result, so that results are kept in files named after all of them, and nothing is run twice.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from importlib.metadata import entry_points
from importlib.util import find_spec
from math import nextafter
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
from msgspec import Struct, field

from accelgen.proto.policies import MEMORY_GROUP, POLICY_GROUP, ROUTING_GROUP, parse_routing
from accelgen.scheduler.decision import BadDecision
from accelgen.scheduler.policy import UnknownPolicy, load_policy
from accelgen.simulator.detail import Detail, Log
from accelgen.simulator.device import Device
from accelgen.simulator.distserve import NAME as DISTSERVE
from accelgen.simulator.distserve import DistServe
from accelgen.simulator.lengths import KnownLengths
from accelgen.simulator.metrics import Summary, hopeless, summarise
from accelgen.simulator.mix import Asked, Half, load_sources, make_workload, stand_in_of
from accelgen.simulator.run import Run, Simulation, Stuck, Successor
from accelgen.simulator.scenarios import Scenario, ScenarioError
from accelgen.simulator.stages import Rules
from accelgen.simulator.times import Rule
from accelgen.simulator.traces import find_trace
from accelgen.simulator.workload import Workload

ORACLE, ORACLE_MODULE = (
    "oracle",
    "accelgen.simulator.oracle",
)  # searched, not simulated once: see there
_IMPORT = re.compile(rb"^\s*from (accelgen\.[\w.]+) import", re.MULTILINE)
Progress = Callable[[int, int], None]
"""Told now and then how many requests of how many have ended."""


class PolicyAt(Struct, frozen=True):
    """A policy that takes over at a moment of virtual time."""

    at_s: float
    policy: str
    params: dict[str, Any] = field(default_factory=dict)


class Setting(Struct, frozen=True, kw_only=True):
    """What is simulated. `enough` ends a run early once its attainment cannot reach that share any more (0: never).
    `length_error`: the policy is told the true output lengths, off by a log-normal factor of that sigma; None: those
    that the scheduler learns. `detailed`: the Result says what happened in each iteration and to each request."""

    name: str  # of the scenario
    scenario: Scenario
    policy: str
    params: dict[str, Any] = field(default_factory=dict)
    rate: float
    requests: int
    seed: int = 0
    half: Half = "all"
    stand_ins: bool = False
    enough: float = 0.0
    swaps: tuple[PolicyAt, ...] = ()
    length_error: float | None = None
    detailed: bool = False


class Result(Struct, frozen=True, kw_only=True):
    """What came of it. `summary` is None where the policy failed, and `fault` says how. `wall_s` is real time. `note`:
    how a search has found it."""

    setting: Setting
    key: str
    sources: dict[str, str]
    summary: Summary | None
    fault: str = ""
    given_up: bool = False
    wall_s: float = 0.0
    note: str = ""
    detail: Detail | None = None

    def attainment(self, rule: str) -> float:
        """Share of the requests sent that met their objectives; 0 where the policy failed. Of a run that was given up
        nobody knows more than that it is below what would have been enough."""
        if self.summary is None:
            return 0.0
        found = self.summary.judged.attainment[rule]
        return min(found, nextafter(self.setting.enough, 0)) if self.given_up else found

    def sessions_attained(self, rule: str) -> float:
        """The same of sessions: those of which every call attained; a request by itself is one. Only of a run that was
        not given up is it known."""
        assert not self.given_up
        return 0.0 if self.summary is None else self.summary.sessions[rule]


def run_setting(setting: Setting, progress: Progress | None = None) -> Result:
    """Simulates it. Raises TraceError, ScenarioError, UnknownDevice, UnknownPolicy, ProfileError."""
    return simulate(setting, progress)[0]


def simulate(setting: Setting, progress: Progress | None = None) -> tuple[Result, Run]:
    """As `run_setting`, with the run itself, which has the time of every token."""
    begin_s = perf_counter()
    scenario = setting.scenario
    device = scenario.device()
    asked = Asked(setting.rate, setting.requests, setting.seed, setting.half)
    sources = load_sources(scenario, asked, setting.stand_ins)
    workload = make_workload(setting.name, scenario, device, asked, sources)
    simulation = _make_simulation(setting, workload, device)
    requests = workload.requests
    log = _observe(simulation) if setting.detailed else None

    def watch(run: Run, now_s: float) -> bool:
        if progress is not None:
            progress(simulation.ended, requests)
        return setting.enough > 0 and hopeless(run, now_s, setting.enough, requests)

    summary, fault = None, ""
    try:
        run = simulation.go(watch=watch)
        summary = summarise(run)
    except (Stuck, BadDecision) as error:
        fault = str(error)
    result = Result(
        setting=setting,
        key=key_of(setting),
        sources={name: rows.digest for name, rows in sources.items()},
        summary=summary,
        fault=fault,
        given_up=simulation.run.given_up,
        wall_s=perf_counter() - begin_s,
        detail=log.detail(Rule(scenario.rule)) if log is not None and summary is not None else None,
    )
    return result, simulation.run


def _observe(simulation: Simulation | DistServe) -> Log:
    if isinstance(simulation, DistServe):
        raise ScenarioError(f"detailed: {DISTSERVE} has no log of its iterations")

    def relegated(index: int) -> frozenset[int]:
        state = simulation.core.replicas[index].state  # the core is another one after a swap
        found: frozenset[int] = getattr(state, "relegated", frozenset())
        return found

    log = Log(simulation.fates, relegated)
    simulation.observer = log.note
    return log


def _make_simulation(
    setting: Setting, workload: Workload, device: Device
) -> Simulation | DistServe:
    """What runs the policy. Raises UnknownPolicy or ScenarioError."""
    name, config = setting.policy, setting.scenario.config(setting.policy)
    params = {**setting.scenario.policies.get(name, {}), **setting.params}
    swap, sigma = setting.scenario.preemption == "swap", setting.length_error
    if setting.scenario.memory and name == DISTSERVE:
        raise ScenarioError(f"memory: {name} has rules of its own for memory, and takes no others")
    if setting.scenario.routing and name == DISTSERVE:
        raise ScenarioError(f"routing: {name} has a rule of its own for that, and takes no other")
    if setting.scenario.acceptance is not None and name == DISTSERVE:
        raise ScenarioError(f"acceptance: {name} has no drafter")
    if setting.swaps and name == DISTSERVE:
        raise ScenarioError(f"policy: {name} cannot be replaced under way; live it does not exist")
    if setting.swaps and sigma is not None:
        raise ScenarioError("length_error: lengths are told at arrival, not to a successor")
    if name != DISTSERVE:
        successors = [
            Successor(one.at_s, load_policy(one.policy, _params(setting, one)))
            for one in setting.swaps
        ]
        predictor = None if sigma is None else KnownLengths(sigma, setting.seed)
        policy = load_policy(name, params)
        scenario = setting.scenario
        return Simulation(
            policy, workload, device, config, predictor, swap, successors,
            scenario.acceptance or 0.0, scenario.draft_ms / 1000,
        )  # fmt: skip
    if sigma is not None:
        raise ScenarioError(f"length_error: {DISTSERVE} does not go by lengths")
    try:
        rules = Rules(**params)
    except (TypeError, ValueError) as error:
        raise UnknownPolicy(f"policy_params: {name}: {error}") from error
    return DistServe(rules, workload, device, config)


def _params(setting: Setting, one: PolicyAt) -> dict[str, Any]:
    return {**setting.scenario.policies.get(one.policy, {}), **one.params}


# --- names of results --------------------------------------------------------------------------------------------


def key_of(setting: Setting) -> str:
    """The name of its result: a hash of the setting, of the files it reads, and of the code that runs. Raises
    TraceError."""
    digest = sha256(msgspec.json.encode(setting, order="sorted"))
    for source in sorted(setting.scenario.sources):
        if stand_in_of(source, setting.stand_ins) is None:
            digest.update(_file_digest(find_trace(source)))
    if setting.scenario.profile_file:
        digest.update(_file_digest(Path(setting.scenario.profile_file)))
    for policy in [setting.policy, *(one.policy for one in setting.swaps)]:
        digest.update(_code_digest(policy, setting.scenario.memory, setting.scenario.routing))
    return digest.hexdigest()[:24]


@cache
def _file_digest(path: Path) -> bytes:
    return sha256(path.read_bytes()).digest()


@cache
def _code_digest(policy: str, memory: str, routing: str) -> bytes:
    digest = sha256()
    for path in modules_read(policy, memory, parse_routing(routing)[0]):
        digest.update(sha256(path.read_bytes()).digest())
    return digest.digest()


def modules_read(policy: str, memory: str = "", routing: str = "") -> list[Path]:
    """The file of every module of the package that this one, the policy, the memory policy and the routing import,
    directly or not, sorted. A policy imports its own memory policy."""
    names = [__name__]
    searched = [ORACLE_MODULE] if policy == ORACLE else []
    names += [
        entry.module
        for entry in entry_points(group=POLICY_GROUP)
        if entry.name == policy or (searched and entry.module.startswith("accelgen."))
    ]
    names += searched
    for group, chosen in ((MEMORY_GROUP, memory), (ROUTING_GROUP, routing)):
        names += [entry.module for entry in entry_points(group=group) if entry.name == chosen]
    found: dict[str, Path] = {}
    while names:
        name = names.pop()
        spec = None if name in found else find_spec(name)
        if spec is not None and spec.origin:
            found[name] = Path(spec.origin)
            names += _imports(found[name].read_bytes())
    return sorted(found.values())


def _imports(source: bytes) -> list[str]:
    """Modules of the package that a source file names in `from ... import`, the only way used here."""
    # Not by `ast`: its parser fails when two threads of CPython 3.11 are in it.
    return [name.decode() for name in _IMPORT.findall(source)]


class Store:
    """Results in a folder, one JSON file each."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, key: str) -> Result | None:
        """What was kept under `key`; None if nothing, or nothing that can be read."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            return msgspec.json.decode(path.read_bytes(), type=Result)
        except msgspec.MsgspecError:
            return None  # of another version, or cut short: it is made again

    def save(self, result: Result) -> None:
        """Keeps it, whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(result.key)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(msgspec.json.format(msgspec.json.encode(result), indent=1))
        part.replace(path)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.json"
