"""A small HTTP/1.1 client for load: one asyncio protocol over httptools, answers handed on as they arrive.

A general client costs about as much processor time per streamed token as the server's whole budget for it, and with
both on one machine it would be measured with the server (benchmarks/README.md has the figures); this one costs a
tenth. It sends a request, tells status and body, reuses connections, and does nothing else.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

import httptools

from accelgen.proto.clocks import now_s

KEEP_IDLE_S = 2.0
"""Servers close idle connections (uvicorn after 5 s); one that has been idle longer than this is not used again."""

OnBody = Callable[[int, bytes, float], None]
"""Called with status, a piece of the body, and when it arrived."""


class HttpError(Exception):
    """The exchange did not come to its end; the text says why."""


@dataclass
class Response:
    """What came back, besides the body."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class _Connection(asyncio.Protocol):
    """One connection, one exchange at a time."""

    def __init__(self) -> None:
        self.idle_since_s = 0.0
        self.closed = False
        self._transport: asyncio.Transport | None = None
        self._parser: httptools.HttpResponseParser | None = None
        self._arrived_s = 0.0

    async def exchange(self, request: bytes, on_body: OnBody) -> tuple[Response, bool]:
        """Sends `request`; the response, and whether the connection can be used again."""
        assert self._transport is not None and self._parser is None
        self._response, self._on_body = Response(), on_body
        self._done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._parser = httptools.HttpResponseParser(self)
        self._transport.write(request)
        try:
            reusable = await self._done
        except BaseException:
            self.close()
            raise
        self._parser = None
        self.idle_since_s = now_s()
        return self._response, reusable and not self.closed

    def close(self) -> None:
        """At once: the server sees that we are gone."""
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # asyncio's callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's does not derive from it

    def data_received(self, data: bytes) -> None:
        self._arrived_s = now_s()
        if self._parser is None:  # nobody asked: the server is out of step
            self.close()
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail(f"cannot read the answer: {error.__context__ or error}")

    def connection_lost(self, error: Exception | None) -> None:
        self.closed = True
        self._fail("the server closed the connection before the answer ended")

    def _fail(self, why: str) -> None:
        if self._parser is not None and not self._done.done():
            self._done.set_exception(HttpError(why))

    # httptools' callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._response.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        assert self._parser is not None
        self._response.status = self._parser.get_status_code()

    def on_body(self, piece: bytes) -> None:
        self._on_body(self._response.status, piece, self._arrived_s)

    def on_message_complete(self) -> None:
        assert self._parser is not None
        if not self._done.done():
            self._done.set_result(self._parser.should_keep_alive())


class HttpClient:
    """Posts to one server from one event loop. `headers` go with every request."""

    def __init__(self, url: str, headers: dict[str, str]) -> None:
        parts = urlsplit(url)
        assert parts.scheme in ("http", "https") and parts.hostname
        self._host = parts.hostname
        self._tls = ssl.create_default_context() if parts.scheme == "https" else None
        self._port = parts.port or (443 if self._tls else 80)
        self._path = parts.path.rstrip("/")
        lines = {"host": parts.netloc.rpartition("@")[2], "user-agent": "accelgen-bench", **headers}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        assert "\n" not in self._headers.replace("\r\n", "")
        self._idle: list[_Connection] = []

    async def post(self, path: str, body: bytes, on_body: OnBody) -> Response:
        """Sends JSON, hands the body of the answer to `on_body`. Raises HttpError."""
        head = (
            f"POST {self._path}{path} HTTP/1.1\r\n{self._headers}"
            f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        connection = await self._connect()
        response, reusable = await connection.exchange(head.encode("latin-1") + body, on_body)
        if reusable:
            self._idle.append(connection)
        else:
            connection.close()
        return response

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _connect(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and now_s() - connection.idle_since_s < KEEP_IDLE_S:
                return connection
            connection.close()
        try:
            _, fresh = await asyncio.get_running_loop().create_connection(
                _Connection, self._host, self._port, ssl=self._tls
            )
        except OSError as error:
            raise HttpError(f"cannot connect: {error.strerror or error}") from error
        return fresh
