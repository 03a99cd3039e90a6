"""JSON answers and errors as ASGI responses."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
from starlette.responses import Response

from accelgen.frontend.errors import ApiError


def json_response(
    body: bytes | Any, headers: Iterable[tuple[bytes, bytes]] = (), status: int = 200
) -> Response:
    """A JSON answer; `body` is encoded unless it is bytes already."""
    content = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = Response(content, status, media_type="application/json")
    response.raw_headers += list(headers)
    return response


def error_response(error: ApiError) -> Response:
    """The OpenAI error object with the error's status and headers."""
    headers = [(name.encode(), value.encode()) for name, value in error.headers.items()]
    return json_response(error.body(), headers, error.status)
