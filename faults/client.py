"""A client of the completions API that writes down what it sees, and can misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Any
from urllib.parse import urlsplit

import httptools

from accelgen.faults.history import History, Kind
from accelgen.proto.clocks import now_s

SLO_CLASS = "chat"
READ_BYTES = 65536


class Manner(StrEnum):
    """How a client behaves."""

    GOOD = "good"
    LEAVES_AT_ONCE = "leaves at once"  # after the request, before anything of the answer
    LEAVES_MIDWAY = "leaves midway"  # after the third chunk
    SLOW = "slow"  # stops reading for a while after the third chunk
    HALF_CLOSED = "half closed"  # ends its sending direction after the request


SLOW_S = 1.5
MIDWAY = 3


@dataclass
class Answer:
    """Turns the bytes of one HTTP response into events of a history; callbacks of httptools' parser."""

    history: History
    status: int = 0
    whole: bytes = b""
    complete: bool = False
    chunks: int = 0
    _buffer: bytes = b""
    _tokens: int = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() in (b"retry-after", b"retry-after-ms"):
            self.history.retry_after = True

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        if self.status == 200:
            self.history.note(now_s(), Kind.ADMIT)

    def on_body(self, data: bytes) -> None:
        if self.status != 200 or not self.history.request.streamed:
            self.whole += data
            return
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data: "):
                self._event(line[6:].strip())

    def on_message_complete(self) -> None:
        self.complete = True
        now = now_s()
        if self.status != 200:
            error = _error_of(self.whole)
            self.history.note(now, Kind.REFUSED, self.status, detail=str(error.get("code")))
        elif not self.history.request.streamed:
            self._whole(now)
        self.history.note(now, Kind.CLOSED)

    def feed(self, data: bytes) -> None:
        """Bytes of the response. Raises httptools.HttpParserError if they are none of HTTP."""
        self.parser.feed_data(data)

    def __post_init__(self) -> None:
        self.parser = httptools.HttpResponseParser(self)

    def _event(self, data: bytes) -> None:
        now = now_s()
        if data == b"[DONE]":
            self.history.note(now, Kind.DONE)
            return
        chunk = json.loads(data)
        if "error" in chunk:
            self.history.note(now, Kind.ERROR, detail=str(chunk["error"].get("code")))
            return
        self._verdict(chunk)
        count = (chunk.get("usage") or {}).get("completion_tokens", self._tokens)
        if not chunk["choices"]:
            self.history.note(now, Kind.USAGE, count)
        for choice in chunk["choices"]:
            text, reason = choice["text"], choice["finish_reason"]
            if count > self._tokens or (text and reason is None):
                self._tokens, text = count, ""
                self.chunks += 1
                self.history.note(now, Kind.TOKENS, count, choice["text"])
            if reason is not None:
                self.history.note(now, Kind.FINISH, text=text, detail=reason)

    def _whole(self, now: float) -> None:
        body = json.loads(self.whole)
        self._verdict(body)
        count = body["usage"]["completion_tokens"]
        [choice] = body["choices"]
        self.history.note(now, Kind.TOKENS, count, choice["text"])
        self.history.note(now, Kind.FINISH, detail=choice["finish_reason"])
        self.history.note(now, Kind.USAGE, count)
        self.history.note(now, Kind.DONE)

    def _verdict(self, chunk: dict[str, Any]) -> None:
        if "accelgen" in chunk:
            stated = [kept for kept in chunk["accelgen"]["slo_met"].values() if kept is not None]
            self.history.kept = all(stated)


def _error_of(body: bytes) -> dict[str, Any]:
    with suppress(json.JSONDecodeError):
        found = json.loads(body)
        if isinstance(found, dict) and isinstance(found.get("error"), dict):
            return dict(found["error"])
    return {}


async def send(url: str, history: History, manner: Manner = Manner.GOOD) -> None:
    """One request on a connection of its own, to its end; `history` gets every event. Cancel it to give up."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    history.note(now_s(), Kind.SUBMIT)
    try:
        reader, writer = await _connect(host, port, manner)
    except OSError as error:
        history.note(now_s(), Kind.REFUSED, detail=f"no connection: {error.strerror}")
        return
    try:
        history.port = writer.get_extra_info("sockname")[1]
        writer.write(_http(history, f"{host}:{port}"))
        await _converse(history, reader, writer, manner)
    except OSError as error:
        history.note(now_s(), Kind.CUT, detail=type(error).__name__)
    finally:
        writer.transport.abort()


async def _connect(
    host: str | None, port: int | None, manner: Manner
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if manner is not Manner.SLOW:
        return await asyncio.open_connection(host, port)
    # small buffers, so that what the server cannot send is seen to wait
    link = socket.socket()
    link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    link.setblocking(False)
    await asyncio.get_running_loop().sock_connect(link, (host, port))
    return await asyncio.open_connection(sock=link, limit=1024)


async def _converse(
    history: History,
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    manner: Manner,
) -> None:
    if manner is Manner.HALF_CLOSED:
        writer.write_eof()
    if manner is Manner.LEAVES_AT_ONCE:
        await writer.drain()
        history.note(now_s(), Kind.LEFT)
        return
    answer, slept = Answer(history), False
    while not answer.complete:
        data = await reader.read(READ_BYTES)
        if not data:
            history.note(now_s(), Kind.CUT, detail="end of connection")
            return
        answer.feed(data)
        if manner is Manner.LEAVES_MIDWAY and answer.chunks >= MIDWAY and not answer.complete:
            history.note(now_s(), Kind.LEFT)
            return
        if manner is Manner.SLOW and answer.chunks >= MIDWAY and not slept:
            slept = True
            await asyncio.sleep(SLOW_S)


def _http(history: History, host: str) -> bytes:
    request = history.request
    body: dict[str, Any] = {
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0.8,
        "seed": request.seed,
        "ignore_eos": True,
        "stream": request.streamed,
        "accelgen": {"slo_class": SLO_CLASS},
    }
    if request.streamed:
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + data
