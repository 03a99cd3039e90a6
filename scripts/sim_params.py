"""Words on the command line of `accelgen sim` as values: policies, objectives, lists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import click

from accelgen.proto.policies import (
    DEFAULT_MEMORY,
    MEMORY_GROUP,
    POLICY_GROUP,
    ROUTING_GROUP,
    fault_in,
    parse_routing,
    unknown_memory,
    unknown_policy,
    unknown_routing,
)
from accelgen.scripts.chat_objective import ObjectiveError, parse_objective
from accelgen.simulator.distserve import NAME as DISTSERVE
from accelgen.simulator.experiment import PolicyAt
from accelgen.simulator.scenarios import Goal
from accelgen.simulator.settings import Policy
from accelgen.simulator.stages import Rules


class PolicyParam(click.ParamType):
    """`NAME` or `NAME:KEY=VALUE:KEY=VALUE`: an installed policy, or distserve, which runs here only."""

    name = "policy"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Policy:
        if not isinstance(value, str):
            return value  # type: ignore[no-any-return]
        name, *words = value.strip().split(":")
        if name != DISTSERVE and (fault := unknown_policy(name)):
            self.fail(fault, param, ctx)
        params: dict[str, Any] = {}
        for word in words:
            key, equals, text = word.partition("=")
            if not (key and equals):
                self.fail(f"{word!r} is not of the form key=value", param, ctx)
            params[key] = _value(text)
        try:
            kind = Rules if name == DISTSERVE else _installed(name)
        except ImportError as error:
            self.fail(f"{name} is installed and cannot be imported: {error}", param, ctx)
        if fault := fault_in(name, kind, params):
            self.fail(fault, param, ctx)
        return name, params


class MemoryParam(click.ParamType):
    """An installed memory policy."""

    name = "memory"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if fault := unknown_memory(value):
            self.fail(fault, param, ctx)
        return str(value)


class RoutingParam(click.ParamType):
    """An installed routing, `NAME` or `NAME:KEY=VALUE:...`."""

    name = "routing"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            name, params = parse_routing(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        fault = unknown_routing(name) or fault_in(name, _installed(name, ROUTING_GROUP), params)
        if fault:
            self.fail(fault, param, ctx)
        return str(value)


def memory_params(
    memory: str, words: tuple[str, ...], policies: Sequence[Policy]
) -> tuple[str, dict[str, Any]]:
    """A memory policy and `key=value` words as its parameters. Where none is named they are of the one that all of
    `policies` bring along. Raises BadParameter."""
    params: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not (key and equals):
            raise _bad_memory_param(f"{word!r} is not of the form key=value")
        params[key] = _value(text)
    memory = memory or _brought(policies)
    if fault := fault_in(memory, _installed(memory, MEMORY_GROUP), params):
        raise _bad_memory_param(fault)
    return memory, params


def _brought(policies: Sequence[Policy]) -> str:
    brought = {
        name: "rules of its own" if name == DISTSERVE
        else getattr(_installed(name)(**params), "memory", DEFAULT_MEMORY)
        for name, params in policies
    }  # fmt: skip
    if len({*brought.values()}) == 1 and DISTSERVE not in brought:
        return next(iter(brought.values()))
    listed = ", ".join(f"{name} has {memory}" for name, memory in brought.items())
    raise _bad_memory_param(f"of which memory policy? Say --memory, too: {listed}")


def _bad_memory_param(fault: str) -> click.BadParameter:
    return click.BadParameter(fault, param_hint="--memory-param")


class ListParam(click.ParamType):
    """Values of another type, separated by commas."""

    def __init__(self, inner: click.ParamType) -> None:
        self.inner, self.name = inner, f"{inner.name},..."

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> list[Any]:
        words = value.split(",") if isinstance(value, str) else value
        return [self.inner.convert(word, param, ctx) for word in words]


class SwapParam(click.ParamType):
    """`SECONDS:POLICY`, parameters as elsewhere."""

    name = "seconds:policy"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> PolicyAt:
        if isinstance(value, PolicyAt):
            return value
        moment, colon, policy = value.partition(":")
        if not colon:
            self.fail(f"{value!r} is not of the form SECONDS:POLICY", param, ctx)
        at_s = click.FloatRange(0, 1e9).convert(moment, param, ctx)
        name, params = PolicyParam().convert(policy, param, ctx)
        if name == DISTSERVE:
            self.fail(f"{DISTSERVE} cannot take over: it needs devices of two kinds", param, ctx)
        return PolicyAt(at_s, name, params)


class SloParam(click.ParamType):
    """`ttft=1000,tpot=100,e2e=9000`, in milliseconds."""

    name = "slo"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> dict[str, Goal]:
        if isinstance(value, dict):
            return value
        try:
            stated = parse_objective(value)
        except ObjectiveError as error:
            self.fail(str(error), param, ctx)
        if stated.slo_class is not None:
            self.fail(f"{stated.slo_class!r}: state numbers, like ttft=1000,tpot=100", param, ctx)
        limits = {"ttft": stated.ttft_ms, "tpot": stated.tpot_ms, "e2e": stated.e2e_ms}
        return {name: Goal(base_s=ms / 1000) for name, ms in limits.items() if ms is not None}


def _installed(name: str, group: str = POLICY_GROUP) -> Callable[..., Any]:
    """What makes the policy."""
    [point] = entry_points(group=group, name=name)
    kind: Callable[..., Any] = point.load()
    return kind


def _value(text: str) -> Any:
    """A TOML-like value: number, true, false, else text."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            pass
    return {"true": True, "false": False}.get(text, text)
