"""A service-level objective as people type it: `chat`, `ttft=300 tpot=40`, `batch,e2e=60000`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace

from accelgen.proto.stages import THINKING
from accelgen.scripts.chat_clean import clean_line

MAX_MS = 86_400_000  # a day, the bound of accelgen.proto.config.Milliseconds
OBJECTIVES = ("ttft", "tpot", "e2e")
NAMES = (*OBJECTIVES, "thinking")
_UNFINISHED = re.compile(r"(ttft|tpot|e2e|thinking)(_ms)?($|[:<>\d])")  # no name of a class
_NUMBER = re.compile(r"[-+.\d]+(ms|s)?$")


class ObjectiveError(ValueError):
    """The text is no objective; the message names the field and the limit."""


@dataclass(frozen=True)
class Objective:
    """What a request asks for, in milliseconds; None is not stated. `slo_class` names a class of the server.
    `thinking_ms` is the time per token while the model thinks, at most `thinking_tokens` of them (0: as long as it
    does); `tpot_ms` is then of its response. `stage`: which call of a session the request is."""

    slo_class: str | None = None
    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None
    thinking_ms: float | None = None
    thinking_tokens: int = 0
    stage: str | None = None

    def body(self) -> dict[str, object] | None:
        """The `accelgen` object of a request, None when nothing is asked for."""
        limits = {f"{name}_ms": getattr(self, f"{name}_ms") for name in OBJECTIVES}
        slo = {name: limit for name, limit in limits.items() if limit is not None}
        asked: dict[str, object] = {}
        if self.slo_class is not None:
            asked["slo_class"] = self.slo_class
        if slo:
            asked["slo"] = slo
        if self.stage is not None:
            asked["stage"] = self.stage
        if self.thinking_ms is not None:
            most = {"max_tokens": self.thinking_tokens} if self.thinking_tokens else {}
            asked["stages"] = {THINKING: {"tpot_ms": self.thinking_ms, **most}}
        return asked or None

    def limits(self) -> str:
        """The numbers, as text; empty if it states none."""
        limits = ((name, getattr(self, f"{name}_ms")) for name in NAMES)
        return ", ".join(
            f"{name} <= {limit:.10g} ms" for name, limit in limits if limit is not None
        )

    def __str__(self) -> str:
        parts = [] if self.slo_class is None else [f"class {self.slo_class}"]
        return ", ".join([*parts, *filter(None, [self.limits()])]) or "none"


def parse_objective(text: str) -> Objective:
    """Reads words separated by spaces or commas: `NAME=MILLISECONDS`, or one word that names a class; `off`, alone,
    asks for nothing. Raises ObjectiveError."""
    words = text.replace(",", " ").split()
    if not words:
        raise ObjectiveError(
            "write an objective, for example ttft=300 tpot=40, or the name of a class"
        )
    if words == ["off"]:
        return Objective()
    objective = Objective()
    for word in words:
        name, given, value = word.partition("=")
        if not given and (_UNFINISHED.match(word) or _NUMBER.match(word)):
            raise ObjectiveError(f"{clean_line(word)}: an objective is of the form ttft=300 (ms)")
        if given:
            field = f"{name.removesuffix('_ms')}_ms"
            limit = parse_milliseconds(name, value)
            objective = replace(objective, **{field: limit})  # type: ignore[arg-type]
        elif objective.slo_class is None:
            objective = replace(objective, slo_class=word)
        else:
            raise ObjectiveError(f"two classes: {objective.slo_class} and {clean_line(word)}")
    return objective


def parse_milliseconds(name: str, value: str) -> float:
    """The limit of objective `name`: more than 0 and at most a day. Raises ObjectiveError."""
    if name.removesuffix("_ms") not in NAMES:
        raise ObjectiveError(f"{clean_line(name)}: not one of {', '.join(NAMES)}")
    try:
        limit = float(value.removesuffix("ms"))
    except ValueError:
        raise ObjectiveError(
            f"{name}: {clean_line(value)!r} is not a number of milliseconds"
        ) from None
    if not (math.isfinite(limit) and 0 < limit <= MAX_MS):
        raise ObjectiveError(f"{name}: {value} is not more than 0 and at most {MAX_MS} ms")
    return int(limit) if limit == int(limit) else limit
