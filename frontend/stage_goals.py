"""Objectives that a request states for stages: which there are, within which bounds, and what then holds for it.

The more specific wins: what the body says over what the class says; in each, a part of the answer (thinking, response)
over the call (tool, answer) over the plain numbers. A number in a header overrides all of them, parts included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from accelgen.frontend.errors import ApiError, quoted
from accelgen.frontend.schema import Extension, SloFields, StageFields
from accelgen.proto.config import SloClass, StageGoals
from accelgen.proto.messages import Thinking
from accelgen.proto.stages import CALLS, PARTS, RESPONSE, STAGES, THINKING

_NOTHING = StageFields()
_NO_GOALS = StageGoals()


def check(extension: Extension | None, slo_class: SloClass, can_end: bool) -> None:
    """Raises ApiError 400 that names the field, and the stages there are or the bounds, for stages that cannot be.
    `can_end`: the model has a token that ends its thinking."""
    if extension is None:
        return
    if extension.stage is not None and extension.stage not in CALLS:
        message = (
            f"accelgen.stage: {quoted(extension.stage)} is no stage of a session;"
            f" there are {', '.join(CALLS)}"
        )
        raise ApiError(400, message, "accelgen.stage", "invalid_value")
    for name, fields in (extension.stages or {}).items():
        _check_stage(name, fields, slo_class)
    thinking = (extension.stages or {}).get(THINKING)
    if thinking is not None and not can_end and thinking.max_tokens is None:
        param = f"accelgen.stages.{THINKING}"
        message = (
            f"{param}: this model has no token that ends its thinking (accelgen up --think-tokens"
            f" names one), so there is no such stage without {param}.max_tokens"
        )
        raise ApiError(400, message, param, "invalid_value")


def _check_stage(name: str, fields: StageFields, slo_class: SloClass) -> None:
    param = f"accelgen.stages.{quoted(name)[1:-1]}"
    if name not in STAGES:
        message = f"{param}: there is no such stage; there are {', '.join(STAGES)}"
        raise ApiError(400, message, param, "unknown_parameter")
    if name in PARTS and fields.ttft_ms is not None:
        message = f"{param}.ttft_ms: an answer has one first token: accelgen.slo.ttft_ms"
        raise ApiError(400, message, f"{param}.ttft_ms", "invalid_value")
    if name != THINKING and fields.max_tokens is not None:
        message = f"{param}.max_tokens: only of {THINKING}"
        raise ApiError(400, message, f"{param}.max_tokens", "invalid_value")
    for field in ("ttft_ms", "tpot_ms"):
        bounded(getattr(fields, field), f"{param}.{field}", slo_class)


def bounded(value_ms: float | None, param: str, slo_class: SloClass) -> float | None:
    """`value_ms`, inside the bounds of the class. Raises ApiError 400 with the numbers."""
    low_ms, high_ms = slo_class.bounds_ms
    if value_ms is not None and not low_ms <= value_ms <= high_ms:
        message = f"{param}: {value_ms:,.15g} ms is outside of {low_ms:,.15g} to {high_ms:,.15g} ms"
        raise ApiError(400, message, param, "invalid_value")
    return value_ms


def stated_ms(
    field: str, extension: Extension | None, slo_class: SloClass, part: str = ""
) -> float | None:
    """What the body or else the class states of `ttft_ms` or `tpot_ms`, for a part of the answer if one is named."""
    asked = extension or Extension()
    stages: Mapping[str, StageFields] = asked.stages or {}
    names = [name for name in (part, asked.stage) if name]
    in_body = [stages.get(name, _NOTHING) for name in names]
    in_class = [slo_class.stages.get(name, _NO_GOALS) for name in names]
    sources = [*in_body, asked.slo or SloFields(), *in_class, slo_class]
    values = (getattr(source, field) for source in sources)
    return next((value for value in values if value is not None), None)


def thinking_of(
    extension: Extension | None, slo_class: SloClass, end_ids: Sequence[int]
) -> Thinking | None:
    """The thinking of an answer, if body or class states anything of its parts and it can be told where it ends."""
    stages: Mapping[str, StageFields] = (extension and extension.stages) or {}
    named = {*stages, *slo_class.stages} & {THINKING, RESPONSE}
    most = stages.get(THINKING, _NOTHING).max_tokens or 0
    if not named or not (end_ids or most):
        return None
    tpot_ms = stated_ms("tpot_ms", extension, slo_class, THINKING)
    return Thinking(None if tpot_ms is None else tpot_ms / 1000, list(end_ids), most)
