"""Bytes of a request body to a Python object: bounded, strict JSON, no key twice."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable
from typing import Any, NoReturn

from starlette.requests import ClientDisconnect, Request

from accelgen.frontend.errors import ApiError, busy, quoted

UPLOAD_TIMEOUT_S = 60.0
_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")
HELD_BYTES_LIMIT = 64 * 1024 * 1024  # of all bodies being read and parsed at a time


class BodyBudget:
    """Bytes of request bodies held at this moment, so that many large uploads cannot exhaust memory."""

    def __init__(self, limit_bytes: int = HELD_BYTES_LIMIT) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0

    def take(self, count: int) -> None:
        """Raises ApiError 429 when the bytes would not fit."""
        if self.held_bytes + count > self.limit_bytes:
            raise busy(429, "saturated", "too many large requests at the same time", 1.0)
        self.held_bytes += count

    def give(self, count: int) -> None:
        self.held_bytes -= count
        assert self.held_bytes >= 0


async def read_body(request: Request, budget: BodyBudget, limit_bytes: int) -> bytes:
    """The whole body. The caller gives `len(body)` back to the budget when it has been parsed.

    Raises ApiError: 413 above `limit_bytes` (as soon as it is known), 415 for anything but plain JSON, 408 when the
    upload takes longer than UPLOAD_TIMEOUT_S."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(415, "content-type must be application/json", "content-type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "content-encoding is not supported", "content-encoding")
    if int(request.headers.get("content-length", 0)) > limit_bytes:
        raise _too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(UPLOAD_TIMEOUT_S):
            async for chunk in request.stream():
                if size + len(chunk) > limit_bytes:
                    raise _too_large(limit_bytes)
                budget.take(len(chunk))
                size += len(chunk)
                chunks.append(chunk)
    except BaseException as cause:  # whatever ends the upload: nothing of it is held any more
        budget.give(size)
        if isinstance(cause, TimeoutError):
            raise ApiError(
                408, f"the body did not arrive within {UPLOAD_TIMEOUT_S:.0f} s"
            ) from None
        raise
    return b"".join(chunks)


def _too_large(limit_bytes: int) -> ApiError:
    message = f"request body is larger than the limit of {limit_bytes} bytes"
    return ApiError(413, message, code="request_too_large")


def parse_object(body: bytes) -> dict[str, Any]:
    """The JSON object in `body`. Raises ApiError 400 for anything else, NaN, infinities and repeated keys included."""
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(400, f"body is not valid UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
        surrogate = _find_surrogate(value) if _SURROGATE_ESCAPE.search(text) else None
    except json.JSONDecodeError as error:
        raise ApiError(
            400, f"body is not valid JSON: {error.msg} at character {error.pos}"
        ) from None
    except (ValueError, RecursionError):  # an integer of thousands of digits, nesting without end
        raise ApiError(400, "body is not valid JSON: a number or the nesting is too long") from None
    if not isinstance(value, dict):
        raise ApiError(400, "body must be a JSON object")
    if surrogate is not None:
        message = f"{quoted(surrogate)}: half of a surrogate pair is not a character"
        raise ApiError(400, message, surrogate[:200], "invalid_value")
    return value


def _find_surrogate(value: Any, path: str = "") -> str | None:
    """Where in a JSON value a text stands that has no UTF-8 form; None if there is none."""
    parts: Iterable[tuple[Any, Any]] = ()
    match value:
        case str():
            return path if any("\ud800" <= char <= "\udfff" for char in value) else None
        case list():
            parts = enumerate(value)
        case dict():
            if any(_find_surrogate(key) is not None for key in value):
                return path or "body"
            parts = value.items()
    for name, inner in parts:
        found = _find_surrogate(inner, f"{path}.{name}" if path else str(name))
        if found is not None:
            return found
    return None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ApiError(400, f"{quoted(twice)} is given twice", twice[:200])
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ApiError(400, f"body is not valid JSON: {name} is not a number")


__all__ = ["BodyBudget", "ClientDisconnect", "parse_object", "read_body"]
