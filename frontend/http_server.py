"""uvicorn on a socket that the supervisor has bound, with bounds on the head of a request.

httptools has none of its own: a head of any size would be collected, and a client could take all day to send it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from accelgen.frontend.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024
MAX_HEADERS = 256
HEAD_TIMEOUT_S = 15.0
KEEP_ALIVE_S = 75


class BoundedProtocol(HttpToolsProtocol):
    """Refuses heads that are too large (431) or do not end in time (connection closed)."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        self._status = 400

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if self._in_head:
            self._arm()
            self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self._status = 431
            self.send_400_response("")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > MAX_HEAD_BYTES or len(self.headers) > MAX_HEADERS:
            self._status = 431
            raise ValueError("head too large")  # the parser turns it into send_400_response
        self._in_head, self._head_bytes = False, 0
        self._disarm()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head = True

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is not HTTP, as an error object."""
        message = "the request is not valid HTTP"
        if self._status == 431:
            message = (
                f"the head of the request exceeds {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers"
            )
        body = ApiError(self._status, message).body()
        head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        self.transport.write(STATUS_LINE[self._status] + head % len(body) + body)
        self.transport.close()

    def _unsupported_upgrade_warning(self) -> None:
        """A client may ask for WebSocket or HTTP/2 here; it is answered in HTTP/1.1. uvicorn would log two lines each
        time, one of them advice to install packages."""

    def _arm(self) -> None:
        if self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _disarm(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _too_slow(self) -> None:
        self._head_timer = None
        if self._in_head and not self.transport.is_closing():
            self.transport.close()


class HttpServer(uvicorn.Server):
    """Leaves signals alone: the supervisor's Stop and SIGTERM are handled by `Child`."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: Any) -> HttpServer:
    """A server for `app`; run it with `serve(sockets=[...])`."""
    config = uvicorn.Config(
        app,
        http=BoundedProtocol,
        loop="none",
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=1,
        backlog=2048,
    )
    return HttpServer(config)
