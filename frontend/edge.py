"""The outermost layer of the application: request ids, API keys, the last net for errors, counts by status."""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

import structlog
from starlette.types import ASGIApp, Receive, Scope, Send

from accelgen.frontend.errors import ApiError, internal_error
from accelgen.frontend.keys import Gate
from accelgen.frontend.metrics import Metrics
from accelgen.frontend.responses import error_response
from accelgen.proto.clocks import now_s

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")

log = structlog.get_logger()


class Edge:
    """Plain ASGI, since starlette's own middleware costs a task and a queue per request.

    Puts `received_s` and `request_id` into `scope["state"]`."""

    def __init__(self, app: ASGIApp, gate: Gate, metrics: Metrics) -> None:
        self._app, self._gate, self._metrics = app, gate, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        request_id = _request_id(headers.get(b"x-request-id"))
        scope["state"]["received_s"] = now_s()
        scope["state"]["request_id"] = request_id
        started = ended = False

        async def send_marked(message: MutableMapping[str, Any]) -> None:
            nonlocal started, ended
            if message["type"] == "http.response.start":
                started = True
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
                self._metrics.count("http_requests_total", status=str(message["status"]))
            else:
                ended = not message.get("more_body", False)
            await send(message)

        try:
            self._gate.check(scope["path"], headers.get(b"authorization"))
            await self._app(scope, receive, send_marked)
        except ApiError as error:
            await error_response(error)(scope, receive, send_marked)
        except Exception as error:
            # Only where and what kind: the text of an exception may hold what a client wrote.
            log.error(
                "request failed", request_id=request_id, kind=type(error).__name__, at=_where(error)
            )
            if not started:
                await error_response(internal_error())(scope, receive, send_marked)
            elif not ended:
                raise  # the server closes the connection, so that nobody takes this for a whole answer


def _request_id(given: bytes | None) -> str:
    """The client's id if it is harmless, else a fresh one."""
    if given is not None and _REQUEST_ID.fullmatch(given):
        return given.decode("ascii")
    return f"req-{secrets.token_hex(12)}"


def _where(error: BaseException) -> list[str]:
    """Innermost frames of a traceback, file and line."""
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        frames.append(f"{code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} {code.co_name}")
        trace = trace.tb_next
    return frames[-6:]
