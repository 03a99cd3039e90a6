"""Service-level objectives of one request: who may state them where, within which bounds, and the verdict at the end.

Precedence: header over `accelgen.slo` in the body over the numbers of the class (stages: `stage_goals.py`); the class
itself comes from the header, else the body, else the configuration's default. Milliseconds outside, seconds inside.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from msgspec import UNSET, Struct, UnsetType

from accelgen.frontend import stage_goals
from accelgen.frontend.errors import ApiError, quoted
from accelgen.frontend.events import Outcome
from accelgen.frontend.schema import Extension
from accelgen.frontend.stage_goals import bounded
from accelgen.proto.config import SloClass
from accelgen.proto.messages import Objective
from accelgen.proto.stages import PARTS, RESPONSE

CLASS_HEADER = "x-accelgen-slo-class"
NUMBER_HEADERS: dict[str, tuple[str, ...]] = {
    "ttft_ms": ("x-slo-ttft-ms", "x-llm-d-slo-ttft-ms"),
    "tpot_ms": ("x-slo-tpot-ms", "x-llm-d-slo-tpot-ms"),
    "e2e_ms": ("x-slo-e2e-ms",),
}
_KNOWN = {name for names in NUMBER_HEADERS.values() for name in names if name.startswith("x-slo-")}
_NUMBER = re.compile(r"[+-]?[0-9]{1,20}(\.[0-9]{1,10})?", re.ASCII)

RawHeaders = Iterable[tuple[bytes, bytes]]


class Stated(Struct, frozen=True):
    """What holds for a request: its class, objectives in seconds, and which call of a session it is ("": not said)."""

    slo_class: str
    objective: Objective
    stage: str = ""


def resolve(
    classes: Mapping[str, SloClass],
    default_class: str,
    headers: RawHeaders,
    extension: Extension | None,
    think_end_ids: Sequence[int] = (),
) -> Stated:
    """`think_end_ids`: the tokens that end the model's thinking. Raises ApiError 400 that names header or field and the
    limits, or the stages there are."""
    given = _values(headers)
    named, param = _one(given, (CLASS_HEADER,)), CLASS_HEADER
    if named is None and extension is not None:
        named, param = extension.slo_class, "accelgen.slo_class"
    name = default_class if named is None else named
    slo_class = classes.get(name)
    if slo_class is None:
        known = ", ".join(sorted(classes))
        raise ApiError(
            400, f"{param}: {quoted(name)} is not one of {known}", param, "invalid_value"
        )
    stage_goals.check(extension, slo_class, bool(think_end_ids))
    slo = extension.slo if extension is not None else None
    thinking = stage_goals.thinking_of(extension, slo_class, think_end_ids)
    seconds = {}
    for field, names in NUMBER_HEADERS.items():
        bounded(getattr(slo, field, None), f"accelgen.slo.{field}", slo_class)
        if (text := _one(given, names)) is not None:
            value_ms = bounded(_number(text, names[0]), names[0], slo_class)
            thinking = None if field == "tpot_ms" else thinking
        elif field == "e2e_ms":  # of the whole: no stage has one
            value_ms = getattr(slo, field, None)
            value_ms = slo_class.e2e_ms if value_ms is None else value_ms
        else:
            value_ms = stage_goals.stated_ms(field, extension, slo_class, RESPONSE)
        seconds[field.replace("_ms", "_s")] = None if value_ms is None else value_ms / 1000
    stage = (extension and extension.stage) or ""
    objective = Objective(
        seconds["ttft_s"], seconds["tpot_s"], seconds["e2e_s"], thinking, _refuses(extension, slo_class)
    )  # fmt: skip
    return Stated(name, objective, stage)


def _refuses(extension: Extension | None, slo_class: SloClass) -> bool:
    """Whether the request is rather refused than served as best effort."""
    asked = extension and extension.on_overload
    return (asked or slo_class.on_overload) == "refuse"


def _values(headers: RawHeaders) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for raw, value in headers:
        if b"-slo-" not in raw:
            continue
        name = raw.decode("latin-1")
        if name.startswith("x-slo-") and name not in _KNOWN:
            message = f"unknown header: {quoted(name)}; there are {', '.join(sorted(_KNOWN))}"
            raise ApiError(400, message, name, "unknown_parameter")
        found.setdefault(name, []).append(value.decode("latin-1").strip())
    return found


def _one(given: Mapping[str, list[str]], names: Sequence[str]) -> str | None:
    """The value under any of the names; the same thing said twice in different words is refused."""
    values = [value for name in names for value in given.get(name, ())]
    if len(set(values)) > 1:
        message = f"{names[0]} is given {len(values)} times with different values"
        raise ApiError(400, message, names[0], "invalid_value")
    return values[0] if values else None


def _number(text: str, param: str) -> float:
    if _NUMBER.fullmatch(text) is None:
        message = f"{param}: {quoted(text)} is not a number of milliseconds"
        raise ApiError(400, message, param, "invalid_value")
    return float(text)


class Met(Struct, frozen=True):
    """Per objective: kept, missed, or None where none was stated."""

    ttft: bool | None
    tpot: bool | None
    e2e: bool | None


class PartVerdict(Struct, frozen=True):
    """Of thinking or response: its tokens, the time to each in milliseconds, and whether its objective was kept."""

    tokens: int
    tpot_ms: float | None
    met: bool | None


class Verdict(Struct, frozen=True):
    """The `accelgen` object at the end of a response. Milliseconds, measured at the frontend from the receipt of
    the request; with several choices the worst one counts, and counts are sums. None: not known or not defined (a
    single token has no time per output token). `stage` and `stages` only where the request has them. `best_effort`: the
    objectives were not promised, where the policy promises any."""

    slo_class: str
    queue_ms: float | None
    ttft_ms: float | None
    tpot_ms: float | None
    e2e_ms: float | None
    cached_tokens: int
    preemptions: int
    slo_met: Met
    best_effort: bool = False
    stage: str | UnsetType = UNSET
    stages: dict[str, PartVerdict] | UnsetType = UNSET


def judge(stated: Stated, outcomes: Sequence[Outcome]) -> Verdict:
    """The verdict over all choices of a call. The boundary counts as kept (as in vLLM's goodput)."""
    ttft_s = _worst([one.ttft_s for one in outcomes])
    tpot_s = _worst([one.tpot_s for one in outcomes])
    e2e_s = _worst([one.e2e_s for one in outcomes])
    aim = stated.objective
    return Verdict(
        slo_class=stated.slo_class,
        queue_ms=_ms(_worst([one.queue_s for one in outcomes])),
        ttft_ms=_ms(ttft_s),
        tpot_ms=_ms(tpot_s),
        e2e_ms=_ms(e2e_s),
        cached_tokens=sum(one.cached_tokens for one in outcomes),
        preemptions=sum(one.preemptions for one in outcomes),
        slo_met=Met(
            ttft=None if aim.ttft_s is None else ttft_s is not None and ttft_s <= aim.ttft_s,
            tpot=all(_keeps_pace(one, aim) for one in outcomes) if _has_pace(aim) else None,
            e2e=None if aim.e2e_s is None else e2e_s is not None and e2e_s <= aim.e2e_s,
        ),
        best_effort=any(one.best_effort for one in outcomes),
        stage=stated.stage or UNSET,
        stages=_parts(outcomes) or UNSET,
    )


def _has_pace(aim: Objective) -> bool:
    return aim.tpot_s is not None or (aim.thinking is not None and aim.thinking.tpot_s is not None)


def _keeps_pace(one: Outcome, aim: Objective) -> bool:
    """Each of its parts, or the whole of it. One token or none leaves no gap that could be too long."""
    if one.parts:
        return all(part.kept for part in one.parts)
    return aim.tpot_s is None or one.tpot_s is None or one.tpot_s <= aim.tpot_s


def _parts(outcomes: Sequence[Outcome]) -> dict[str, PartVerdict]:
    """By stage, over the choices that have it."""
    found = {}
    for stage in PARTS:
        parts = [part for one in outcomes for part in one.parts if part.stage == stage]
        if parts:
            is_stated = parts[0].aim_s is not None
            found[stage] = PartVerdict(
                tokens=sum(part.tokens for part in parts),
                tpot_ms=_ms(_worst([part.tpot_s for part in parts])),
                met=all(part.kept for part in parts) if is_stated else None,
            )
    return found


def _worst(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None


def _ms(value_s: float | None) -> float | None:
    return None if value_s is None else round(value_s * 1000, 3)
