"""The bodies of `/v1/chat/completions` and `/v1/completions`: types, bounds, and errors that name field and limit."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError

from accelgen.frontend import fields
from accelgen.frontend.errors import ApiError, quoted

MAX_MESSAGES = 4096
MAX_PROMPTS = 1024
MAX_STOPS = 16
MAX_STOP_CHARS = 256
INT31 = 2**31 - 1
INT63 = 2**63 - 1

Role = Literal["system", "developer", "user", "assistant"]


class Strict(BaseModel):
    """No conversion between types, no field unknown, no NaN."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, frozen=True)


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _plain_text(value: Any) -> str:
    """A message's content: a string, or text parts joined by line breaks."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            name = quoted(kind) if isinstance(kind, str) else "a part without a type"
            raise PydanticCustomError("content", "only text parts are supported, not " + name)
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError(
                "content", "a text part has the fields type and text, a string"
            )
        texts.append(part["text"])
    return "\n".join(texts)


class Message(Strict):
    role: Role
    content: Annotated[str, BeforeValidator(_plain_text)]


class StreamOptions(Strict):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SloFields(Strict):
    """Objectives in milliseconds; bounds come from the class (`objectives.py`)."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2e_ms: float | None = None


Name = Annotated[str, Field(min_length=1, max_length=100)]


class StageFields(Strict):
    """Objectives of one stage; which of them a stage can have is checked with the bounds (`stage_goals.py`)."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    max_tokens: Annotated[int, Field(ge=1, le=INT31)] | None = None


OnOverload = Literal["best_effort", "refuse"]


class Extension(Strict):
    """The body object `accelgen`. `stage`: which call of a session this one is; `stages`: objectives by stage;
    `on_overload`: what becomes of the request if the server cannot promise its objectives."""

    slo_class: Name | None = None
    slo: SloFields | None = None
    stage: Name | None = None
    stages: Annotated[dict[Name, StageFields], Field(max_length=16)] | None = None
    on_overload: OnOverload | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None


Stop = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARS)]],
    Field(max_length=MAX_STOPS),
    BeforeValidator(_one_or_many),
]
StopIds = Annotated[list[Annotated[int, Field(ge=0, le=INT31)]], Field(max_length=128)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
AtLeastOne = Annotated[int, Field(ge=1, le=INT31)]


class Generation(Strict):
    """What both endpoints share. None is "not given" everywhere."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: AtLeastOne | None = None
    n: Annotated[int, Field(ge=1, le=INT31)] | None = None
    seed: Annotated[int, Field(ge=0, le=INT63)] | None = None
    stop: Stop | None = None
    stop_token_ids: StopIds | None = None
    ignore_eos: bool | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0, le=INT31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    accelgen: Extension | None = None
    # Bookkeeping of the client, without meaning for the generation.
    user: str | None = None
    metadata: dict[str, Any] | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @property
    def choices(self) -> int:
        return self.n or 1


class ChatBody(Generation):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: AtLeastOne | None = None


class CompletionBody(Generation):
    prompt: Any


AnyBody = TypeVar("AnyBody", bound=Strict)


def parse_chat(given: dict[str, Any]) -> ChatBody:
    """Raises ApiError 400 that names the field."""
    given = fields.drop_neutral(given, fields.CHAT)
    if isinstance(messages := given.get("messages"), list):
        given["messages"] = [
            fields.drop_neutral(message, fields.MESSAGE, f"messages.{index}.")
            if isinstance(message, dict)
            else message
            for index, message in enumerate(messages)
        ]
    body = validate(ChatBody, given)
    if None not in (both := (body.max_tokens, body.max_completion_tokens)) and both[0] != both[1]:
        message = (
            f"max_tokens is {both[0]} and max_completion_tokens is {both[1]}: give one of them"
        )
        raise ApiError(400, message, "max_completion_tokens")
    return _checked(body)


def parse_completion(given: dict[str, Any]) -> CompletionBody:
    """Raises ApiError 400 that names the field."""
    body = validate(CompletionBody, fields.drop_neutral(given, fields.COMPLETION))
    return _checked(body)


AnyGeneration = TypeVar("AnyGeneration", bound=Generation)


def _checked(body: AnyGeneration) -> AnyGeneration:
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options needs stream: true", "stream_options")
    return body


def validate(kind: type[AnyBody], given: dict[str, Any]) -> AnyBody:
    """`given` as a `kind`. Raises ApiError 400 that names the first field at fault."""
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        param = ".".join(str(part) for part in first["loc"])[:200]
        raise _refusal(first["type"], _wording(first["type"], first["msg"]), param) from None


def _wording(kind: str, said: str) -> str:
    """The validation library's words as the API's: what the field must be, in terms of JSON."""
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return "must be an object"
    if kind == "literal_error":
        said = said.replace("False", "false")
    return re.sub("^(Input|String|List) should", "must", said).replace(" after validation", "")


def _refusal(kind: str, reason: str, param: str) -> ApiError:
    shown = quoted(param, 200).strip("'\"")
    if kind == "extra_forbidden":
        return ApiError(400, f"unknown field: {shown}", param, "unknown_parameter")
    if kind == "missing":
        return ApiError(400, f"{shown} is required", param, "missing_required_parameter")
    return ApiError(400, f"{shown}: {reason}", param, "invalid_value")
