"""Scheduling policies, memory policies and routings as every process sees them: which are installed, what is wrong with
a choice, which is in office.

`python -m accelgen.proto.policies NAME PARAMS [GROUP]` prints what is wrong with parameters, in one line, or nothing,
and with `memory` for GROUP the memory policy that a policy brings along: a policy is foreign code with imports of its
own, which those who ask keep out of their process.
"""

from __future__ import annotations

import difflib
import inspect
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from typing import Any

import msgspec

from accelgen.proto.messages import Directory, Role

POLICY_GROUP = "accelgen.policies"
MEMORY_GROUP = "accelgen.memory"
ROUTING_GROUP = "accelgen.routing"
_WORDS = {POLICY_GROUP: "policy", MEMORY_GROUP: "memory policy", ROUTING_GROUP: "routing"}
DEFAULT_ROUTING = "planned"  # the routing of who names none
DEFAULT_MEMORY = "on-demand"  # the memory policy of a policy that brings none
_BROUGHT = "memory"
MEMORY_INFO = "accelgen:scheduler_memory_info"  # a scheduler's sample: which memory policy it runs
_TIMEOUT_S = 60.0


def known_policies(group: str = POLICY_GROUP) -> list[str]:
    """Names of the installed policies, sorted; those that were installed a moment ago, too."""
    return sorted({point.name for point in entry_points(group=group)})


def known_memories() -> list[str]:
    """Names of the installed memory policies, sorted."""
    return known_policies(MEMORY_GROUP)


def known_routings() -> list[str]:
    """Names of the installed routings, sorted."""
    return known_policies(ROUTING_GROUP)


def unknown_policy(name: str, group: str = POLICY_GROUP) -> str:
    """What to say about a policy that is not installed, with near matches; "" about one that is."""
    known = known_policies(group)
    if name in known:
        return ""
    near = difflib.get_close_matches(name, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return f"there is no {_WORDS[group]} {name!r}; {hint}"


def unknown_memory(name: str) -> str:
    """The same of a memory policy."""
    return unknown_policy(name, MEMORY_GROUP)


def unknown_routing(name: str) -> str:
    """The same of a routing."""
    return unknown_policy(name, ROUTING_GROUP)


def parse_routing(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of "NAME" or "NAME:key=value:..."; a value is a number or true/false where it looks like one,
    else text. Raises ValueError."""
    name, *words = text.split(":")
    params: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals):
            raise ValueError(f"{word!r} of {text!r} is not of the form key=value")
        try:
            params[key] = msgspec.json.decode(value, type=int | float | bool | str)
        except msgspec.DecodeError:
            params[key] = value
    return name, params


def routing_fault(text: str) -> str:
    """What is wrong with a choice of a routing, "" if nothing is; it may take as long as `params_fault`."""
    try:
        name, params = parse_routing(text)
    except ValueError as error:
        return str(error)
    return unknown_routing(name) or params_fault(name, params, ROUTING_GROUP)


def params_fault(policy: str, params: dict[str, Any], group: str = POLICY_GROUP) -> str:
    """What is wrong with `params` for the installed `policy`, "" if nothing is. Takes as long as Python to start."""
    if not params:
        return ""
    status, line = _ask(policy, params, group)
    return line if status else ""


def brought_memory(
    policy: str, params: dict[str, Any], memory_params: dict[str, Any]
) -> tuple[str, str]:
    """The memory policy that the installed `policy` with `params` brings along, and what is wrong with `memory_params`
    for it, "" if nothing is. Takes as long as Python to start twice."""
    status, memory = _ask(policy, params, _BROUGHT)
    if status:
        return "", memory
    fault = params_fault(memory, memory_params, MEMORY_GROUP)
    return memory, fault and f"{fault} (it is the one of {policy}; another one can be named)"


def _ask(policy: str, params: dict[str, Any], group: str) -> tuple[int, str]:
    """Exit status and last line of this module, run in a process of its own."""
    encoded = msgspec.json.encode(params).decode()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "accelgen.proto.policies", policy, encoded, group],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        return 1, f"{policy} was not imported within {_TIMEOUT_S:.0f} s"
    lines = (done.stdout or done.stderr).strip().splitlines() or ["it ended without a word"]
    return done.returncode, lines[-1]


def fault_in(policy: str, kind: Callable[..., Any], params: dict[str, Any]) -> str:
    """What is wrong with `params` for a policy made by `kind`: its names, their types, then its own judgement."""
    known = inspect.signature(kind, eval_str=True).parameters
    takes_any = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in known.values())
    for name, value in params.items():
        if name not in known:
            if takes_any:
                continue
            listed = ", ".join(f"{one.name} ({one.default})" for one in known.values())
            return f"{policy} has no parameter {name!r}; it has {listed or 'none'}"
        wanted = known[name].annotation
        try:
            if wanted in (int, float, bool, str):
                msgspec.convert(value, wanted)
        except msgspec.ValidationError:
            word = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
            return f"{name} of {policy} must be {word[wanted]}, got {value!r}"
    try:
        kind(**params)
    except (TypeError, ValueError) as error:
        return f"{policy}: {error}"
    return ""


@dataclass(frozen=True)
class InOffice:
    """The policy of a running server. `epoch` is None, and `process_s` 0, while no scheduler serves. `swap`: the one
    under way (policy, dry_run, stage), None for none; `rolled_back`: which policy failed on probation, and how.
    `routing`: as it was chosen, "planned" if it was not. `memory`: the memory policy beside it, "" while it is not
    known which one the policy has brought."""

    policy: str
    params: dict[str, Any]
    for_s: float  # since it was chosen
    epoch: int | None
    process_s: float  # since its process was started
    swap: dict[str, Any] | None
    rolled_back: str | None
    routing: str = DEFAULT_ROUTING
    memory: str = ""
    memory_params: dict[str, Any] = field(default_factory=dict)


def in_office(directory: Directory) -> InOffice:
    """What a Directory says about the policy."""
    facts = directory.config
    serving = [
        m for m in directory.members if m.role is Role.SCHEDULER and m.phase in ("ready", "yielded")
    ]
    scheduler = max(serving, key=lambda m: m.epoch, default=None)
    told = [m for m in directory.members if m.role is Role.SCHEDULER and m.phase != "dead"]
    # one that takes over again does not serve meanwhile, and still tells; who stands by tells nothing
    telling = [sample for m in sorted(told, key=lambda m: -m.epoch) for sample in m.gauges]
    return InOffice(
        policy=facts.get("policy", ""),
        params=facts.get("policy_params", {}),
        for_s=facts.get("policy_s", 0.0),
        epoch=None if scheduler is None else scheduler.epoch,
        process_s=0.0 if scheduler is None else scheduler.uptime_s,
        swap=facts.get("swap"),
        rolled_back=facts.get("rolled_back"),
        routing=facts.get("routing") or DEFAULT_ROUTING,
        memory=facts.get("memory", "") or own_memory(telling),
        memory_params=facts.get("memory_params", {}),
    )


def own_memory(gauges: Iterable[str]) -> str:
    """The memory policy that a policy has brought along, as its scheduler tells in its `gauges`; "" if it does not."""
    for sample in gauges:
        name, _, label = sample.partition("{memory=")
        if name == MEMORY_INFO:
            return label.strip('"}')
    return ""


def main(policy: str, encoded: str, group: str = POLICY_GROUP) -> int:
    """Exit status 2 and a line if the parameters are not right."""
    brought = group == _BROUGHT
    (point,) = entry_points(group=POLICY_GROUP if brought else group, name=policy)
    kind, params = point.load(), msgspec.json.decode(encoded)
    fault = fault_in(policy, kind, params)
    if brought and not fault:
        print(getattr(kind(**params), "memory", DEFAULT_MEMORY))
    if fault:
        print(fault)
    return 2 if fault else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
