"""`/tokenize` and `/detokenize`, with vLLM's fields."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from accelgen.frontend.errors import ApiError
from accelgen.frontend.schema import INT31, MAX_MESSAGES, Message, Strict, validate
from accelgen.frontend.service import Service


class TokenizeBody(Strict):
    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None


class DetokenizeBody(Strict):
    model: str | None = None
    tokens: list[Annotated[int, Field(ge=0, le=INT31)]]


def tokenize(service: Service, given: dict[str, Any]) -> dict[str, Any]:
    """`{count, max_model_len, tokens}` of a prompt or of messages. Raises ApiError 400."""
    body = validate(TokenizeBody, given)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise ApiError(400, "give either prompt or messages", "prompt", "invalid_value")
    context = service.context_tokens
    if body.messages is not None:
        ids = service.codec.encode_chat([one.model_dump() for one in body.messages], context)
    else:
        ids = service.codec.encode_text(body.prompt or "", context)
    return {"count": len(ids), "max_model_len": context, "tokens": ids}


def detokenize(service: Service, given: dict[str, Any]) -> dict[str, Any]:
    """`{prompt}` of token ids. Raises ApiError 400."""
    body = validate(DetokenizeBody, given)
    service.check_model(body.model)
    if body.tokens and max(body.tokens) >= service.vocab_size:
        message = f"tokens: token ids must lie in 0..{service.vocab_size - 1}"
        raise ApiError(400, message, "tokens", "invalid_value")
    return {"prompt": service.codec.decode(body.tokens)}
