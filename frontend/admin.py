"""`/admin/v1/policy`: which scheduling policy and which routing are in office, and others in their place while requests
go on.

A swap is the supervisor's work: the frontend asks for it over its link and waits for the answer. What has been asked
for happens whether or not the client stays to hear of it.
"""

from __future__ import annotations

import asyncio
from itertools import count
from math import isfinite
from typing import Annotated, Any

import msgspec
import structlog
from pydantic import Field

from accelgen.frontend.errors import ApiError, not_activated, quoted
from accelgen.frontend.schema import Strict, validate
from accelgen.proto.child import Child
from accelgen.proto.messages import Directory, PolicyParams, Swap, Swapped
from accelgen.proto.policies import (
    MEMORY_GROUP,
    brought_memory,
    in_office,
    known_memories,
    known_policies,
    known_routings,
    params_fault,
    routing_fault,
    unknown_memory,
    unknown_policy,
)

ANSWER_S = 60.0  # a little longer than the stages of a swap may take together

log = structlog.get_logger()


class SwapBody(Strict):
    policy: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    params: dict[str, Any] = {}
    dry_run: bool = False
    routing: Annotated[str, Field(min_length=1, max_length=500)] | None = None
    memory: Annotated[str, Field(max_length=200)] = ""
    memory_params: dict[str, Any] = {}


def parse_swap(given: dict[str, Any]) -> SwapBody:
    """Raises ApiError 400 that names the field: an unknown one, nothing to change, a policy or memory policy that is
    not installed (with near matches), a parameter that is neither number, text nor truth value, or nobody's."""
    body = validate(SwapBody, given)
    if body.policy is None and body.routing is None and not body.memory:
        message = "policy, memory or routing is required"
        raise ApiError(400, message, "policy", "missing_required_parameter")
    if body.policy is None and body.params:
        raise ApiError(400, "params: of which policy? State it, too", "params", "invalid_value")
    if body.policy is not None and (fault := unknown_policy(body.policy)):
        raise ApiError(400, f"policy: {fault}", "policy", "policy_not_found")
    if body.memory and (fault := unknown_memory(body.memory)):
        raise ApiError(400, f"memory: {fault}", "memory", "policy_not_found")
    _check_params("params", body.params)
    _check_params("memory_params", body.memory_params)
    if body.memory_params and not (body.memory or body.policy):
        message = "memory_params: of which memory policy? State `policy` or `memory`, too"
        raise ApiError(400, message, "memory_params", "invalid_value")
    return body


def _check_params(field: str, params: dict[str, Any]) -> None:
    for name, value in params.items():
        param = f"{field}.{quoted(name)[1:-1]}"
        if isinstance(value, float) and not isfinite(value):
            raise ApiError(400, f"{param}: must be a finite number", param, "invalid_value")
        try:
            msgspec.convert({name: value}, PolicyParams)
        except msgspec.ValidationError:
            message = f"{param}: must be a number, true, false or a text of at most 500 characters"
            raise ApiError(400, message, param, "invalid_value") from None
    try:
        msgspec.convert(params, PolicyParams)
    except msgspec.ValidationError:
        raise ApiError(400, f"{field}: at most 32 are possible", field, "invalid_value") from None


def describe(directory: Directory | None) -> dict[str, Any]:
    """The answer to GET. Raises ApiError 503 before anything is known."""
    if directory is None:
        raise not_activated()
    office = in_office(directory)
    return {
        "policy": office.policy,
        "params": office.params,
        "routing": office.routing,
        "epoch": office.epoch,
        "active_for_s": office.for_s,
        "process_for_s": office.process_s,
        "swap": office.swap,
        "rolled_back": office.rolled_back,
        "installed": known_policies(),
        "installed_routings": known_routings(),
        "memory": office.memory,
        "memory_params": office.memory_params,
        "installed_memory": known_memories(),
    }


def _name_memory(body: SwapBody) -> SwapBody:
    """`body` with the memory policy that its parameters are of: where it names none, the one that the policy brings
    along, which is chosen by them. Raises ApiError 400 if it does not take them."""
    memory, params = body.memory, body.memory_params
    if memory or not body.policy or not params:
        fault = params_fault(memory, params, MEMORY_GROUP)
    else:
        memory, fault = brought_memory(body.policy, body.params, params)
    if fault:
        raise ApiError(400, f"memory_params: {fault}", "memory_params", "invalid_value")
    return body.model_copy(update={"memory": memory})


class Swaps:
    """Asks the supervisor for swaps and hands each answer to the call that waits for it."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._tickets = count(1)
        self._waiting: dict[int, asyncio.Future[Swapped]] = {}

    async def ask(self, body: SwapBody) -> dict[str, Any]:
        """Raises ApiError: 400 for a routing that there is not, or for parameters that policy, memory policy or routing
        do not take, 409 when the swap is refused or fails, 504 when nobody answers."""
        if body.policy and (
            fault := await asyncio.to_thread(params_fault, body.policy, body.params)
        ):
            raise ApiError(400, f"params: {fault}", "params", "invalid_value")
        body = await asyncio.to_thread(_name_memory, body)
        if body.routing and (fault := await asyncio.to_thread(routing_fault, body.routing)):
            raise ApiError(400, f"routing: {fault}", "routing", "invalid_value")
        named = {"policy": body.policy, "memory": body.memory, "routing": body.routing}
        log.info("swap asked for", **named, dry_run=body.dry_run)
        answer = await self._answer(body)
        if not answer.done:
            raise ApiError(409, answer.line, code="swap_refused")
        told = {key: value for key, value in named.items() if value}
        return {"done": True, **told, "detail": answer.line}

    def take(self) -> None:
        """Hands out what the supervisor has answered."""
        while self._child.swapped:
            answer = self._child.swapped.pop(0)
            waiting = self._waiting.get(answer.ticket)
            if waiting is not None and not waiting.done():
                waiting.set_result(answer)

    async def _answer(self, body: SwapBody) -> Swapped:
        ticket = next(self._tickets)
        self._waiting[ticket] = asyncio.get_running_loop().create_future()
        try:
            memory = (body.memory, body.memory_params)
            routing = body.routing or ""
            self._child.link.send(
                Swap(body.policy or "", body.params, body.dry_run, ticket, *memory, routing)
            )
            self._child.hear()  # the descriptor tells only of what comes after a send
            self.take()
            async with asyncio.timeout(ANSWER_S):
                return await self._waiting[ticket]
        except TimeoutError:
            message = f"no answer within {ANSWER_S:.0f} s; the swap may still be on its way"
            raise ApiError(504, message, code="no_answer") from None
        finally:
            del self._waiting[ticket]
