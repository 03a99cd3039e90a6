"""A small OpenAI server with a script, for tests of the clients (the real one has tests of its own)."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

VERDICT = {
    "slo_class": "standard",
    "queue_ms": 1.0,
    "ttft_ms": 12.5,
    "tpot_ms": 3.0,
    "e2e_ms": 20.0,
    "cached_tokens": 0,
    "preemptions": 0,
    "slo_met": {"ttft": True, "tpot": False, "e2e": None},
}


@dataclass
class Script:
    """What the server does: `pieces` are streamed one chunk each; `tokens` are sent instead to completions."""

    pieces: list[str] = field(default_factory=lambda: ["Hello", " there", "!"])
    status: int = 200
    error: dict[str, Any] | None = None  # body of a refusal, or event after the pieces
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False  # after the pieces: wait until the client goes away
    done: bool = True  # whether [DONE] comes
    tokens_per_chunk: int = 1
    counted: bool = True  # usage in every chunk
    pause_s: float = 0.0
    classes: list[str] = field(default_factory=list)  # if any: other classes are refused
    refused: int = 0  # so many requests get 503 before the others are answered
    verdict: dict[str, Any] = field(default_factory=lambda: VERDICT)
    api_key: str = ""


class FakeServer:
    """Its `script` can be changed at any time; `seen` are the bodies that came."""

    def __init__(self) -> None:
        self.script = Script()
        self.seen: list[dict[str, Any]] = []
        self.aborted = threading.Event()
        self.url = ""
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._chat, methods=["POST"]),
            Route("/v1/completions", self._completion, methods=["POST"]),
        ]
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_config=None, lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def start(self) -> None:
        self._thread.start()
        until_s = time.monotonic() + 10
        while not self._server.started:
            assert time.monotonic() < until_s and self._thread.is_alive()
            time.sleep(0.005)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    def _refusal(self, request: Request) -> Response | None:
        script = self.script
        if script.api_key and request.headers.get("authorization") != f"Bearer {script.api_key}":
            return JSONResponse({"error": {"message": "invalid API key", "param": None}}, 401)
        return None

    async def _models(self, request: Request) -> Response:
        models = [{"id": "tiny", "object": "model", "max_model_len": 4096}]
        return self._refusal(request) or JSONResponse({"object": "list", "data": models})

    async def _chat(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"delta": {"content": text}})

    async def _completion(self, request: Request) -> Response:
        return await self._answer(request, lambda text: {"text": text})

    async def _answer(self, request: Request, choice: Callable[[str], dict[str, Any]]) -> Response:
        body = await request.json()
        self.seen.append(body)
        script = self.script
        refused = self._refusal(request)
        if refused is not None:
            return refused
        named = body.get("accelgen", {}).get("slo_class")
        if script.classes and named is not None and named not in script.classes:
            known = f"{named!r} is not one of {', '.join(script.classes)}"
            return JSONResponse({"error": {"message": known, "param": "accelgen.slo_class"}}, 400)
        if script.refused > 0:
            script.refused -= 1
            return JSONResponse({"error": {"message": "starting"}}, 503)
        if script.status != 200:
            return JSONResponse({"error": script.error}, script.status, headers=script.headers)
        events = self._events(script, body, choice)
        return StreamingResponse(events, media_type="text/event-stream")

    async def _events(
        self, script: Script, body: dict[str, Any], choice: Callable[[str], dict[str, Any]]
    ) -> AsyncIterator[bytes]:
        pieces = script.pieces
        if isinstance(
            body.get("prompt"), list
        ):  # the benchmark's token ids: as many tokens as asked
            pieces = ["x"] * (body["max_tokens"] // script.tokens_per_chunk)
        prompt = len(body.get("prompt", "")) or 7
        try:
            for number, text in enumerate(pieces, 1):
                usage = {
                    "prompt_tokens": prompt,
                    "completion_tokens": number * script.tokens_per_chunk,
                }
                yield _event(
                    choices=[{"index": 0, "finish_reason": None, **choice(text)}],
                    usage=usage if script.counted else None,
                )
                await asyncio.sleep(script.pause_s)
            if script.hang:
                await asyncio.sleep(30)
            if script.error:
                yield _event(error=script.error)
            yield _event(choices=[{"index": 0, "finish_reason": "stop", **choice("")}], usage=None)
            tokens = len(pieces) * script.tokens_per_chunk
            usage = {"prompt_tokens": prompt, "completion_tokens": tokens}
            yield _event(choices=[], usage=usage, accelgen=script.verdict)
            if script.done:
                yield b"data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.aborted.set()
            raise


def _event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


@pytest.fixture(scope="session")
def _running_server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(_running_server: FakeServer) -> FakeServer:
    """The running server with a fresh script."""
    _running_server.script = Script()
    _running_server.seen.clear()
    _running_server.aborted.clear()
    return _running_server
