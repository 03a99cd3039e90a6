"""`accelgen swap`: another scheduling policy, or routing, for a running server, while requests go on."""

from __future__ import annotations

from typing import Any

import click

from accelgen.proto.messages import Swap
from accelgen.proto.policies import (
    MEMORY_GROUP,
    brought_memory,
    params_fault,
    routing_fault,
    unknown_memory,
    unknown_policy,
)
from accelgen.scripts.up import parse_params
from accelgen.supervisor.client import ask_to_swap
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import find_live
from accelgen.supervisor.swap import ASSUME_S, PREPARE_S, YIELD_S


@click.command(name="swap")
@click.argument("policy", default="")
@click.option("--param", "params", multiple=True, metavar="K=V", help="Parameter of the policy.")
@click.option("--memory", default="", metavar="NAME",
              help="Memory policy beside it.  [default: as it was chosen]")  # fmt: skip
@click.option("--memory-param", "memory_params", multiple=True, metavar="K=V",
              help="Parameter of that of --memory, else of the one that POLICY brings along.")  # fmt: skip
@click.option("--routing", default="", metavar="NAME[:K=V...]",
              help="Which replica a request goes to; POLICY may be left out.  [default: as it was chosen]")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Only see whether it could take over.")
@click.option("--run-dir", default="", help="Run directory, where several servers run.")
def command(
    policy: str,
    params: tuple[str, ...],
    memory: str,
    memory_params: tuple[str, ...],
    routing: str,
    dry_run: bool,
    run_dir: str,
) -> int:
    """Replace the scheduler of a running server by one with POLICY. Requests go on; no token is lost or repeated.
    Memory policy and routing stay unless others are named.

    If the new one fails within its probation, the policy before comes back. Exit status 1 if the swap was refused."""
    given = _params(policy, params, bool(memory or memory_params or routing))
    memory, beside = _memory(memory, memory_params, policy, given)
    if routing and (fault := routing_fault(routing)):
        raise click.BadParameter(fault, param_hint="--routing")
    swap = Swap(policy, given, dry_run, 0, memory, beside, routing)
    try:
        answer = ask_to_swap(find_live(run_dir), swap, PREPARE_S + YIELD_S + ASSUME_S + 5.0)
    except StartError as error:
        kind = click.UsageError if error.status == 2 else click.ClickException
        raise kind(str(error)) from error
    if not answer.done:
        raise click.ClickException(f"not swapped: {answer.line}")
    click.echo(answer.line)
    return 0


def _params(policy: str, params: tuple[str, ...], others: bool) -> dict[str, Any]:
    """Parameters of the policy, which may stay as it is where `others` are to change; both are checked."""
    given = parse_params(params, "--param")
    if not policy and not others:
        raise click.UsageError(
            "which policy? State POLICY, or what else is to change: --memory, --routing"
        )
    if not policy and given:
        raise click.BadParameter("of which policy? State POLICY, too", param_hint="--param")
    if policy and (fault := unknown_policy(policy)):
        raise click.BadParameter(fault, param_hint="POLICY")
    if policy and (fault := params_fault(policy, given)):
        raise click.BadParameter(fault, param_hint="--param")
    return given


def _memory(
    memory: str, params: tuple[str, ...], policy: str, policy_params: dict[str, Any]
) -> tuple[str, dict[str, Any]]:
    """The memory policy, "" to leave it as it is, and its parameters; both are checked. Parameters alone are of the one
    that the policy brings along, which is chosen by them."""
    given = parse_params(params, "--memory-param")
    if memory and (fault := unknown_memory(memory)):
        raise click.BadParameter(fault, param_hint="--memory")
    if memory or not given:
        fault = params_fault(memory, given, MEMORY_GROUP)
    elif policy:
        memory, fault = brought_memory(policy, policy_params, given)
    else:
        fault = "of which memory policy? State POLICY or --memory, too"
    if fault:
        raise click.BadParameter(fault, param_hint="--memory-param")
    return memory, given
