"""The parameters of a policy, judged before anything is started.

`python -m accelgen.supervisor.policy_params NAME PARAMS` prints what is wrong, in one line, or nothing: a policy is
foreign code with imports of its own, which the supervisor keeps out of its process.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import msgspec

from accelgen.supervisor.errors import StartError

POLICY_GROUP = "accelgen.policies"
_TIMEOUT_S = 60.0


def known_policies() -> list[str]:
    """Names of the installed policies, sorted."""
    return sorted({point.name for point in entry_points(group=POLICY_GROUP)})


def check_params(policy: str, params: dict[str, Any]) -> None:
    """Raises StartError (status 2) if the installed `policy` does not take `params`."""
    if not params:
        return
    encoded = msgspec.json.encode(params).decode()
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, policy, encoded],
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            timeout=_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise StartError(
            f"--policy {policy}: not imported within {_TIMEOUT_S:.0f} s", status=2
        ) from error
    if done.returncode:
        words = (done.stdout or done.stderr).strip().splitlines() or ["it ended without a word"]
        raise StartError(f"--policy-param: {words[-1]}", status=2)


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


def main(policy: str, encoded: str) -> int:
    """Exit status 2 and a line if the parameters are not right."""
    (point,) = entry_points(group=POLICY_GROUP, name=policy)
    fault = fault_in(policy, point.load(), msgspec.json.decode(encoded))
    if fault:
        print(fault)
    return 2 if fault else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
