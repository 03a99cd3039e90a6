"""The routes."""

from __future__ import annotations

import time
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

import accelgen
from accelgen.frontend.admin import describe, parse_swap
from accelgen.frontend.body import ClientDisconnect
from accelgen.frontend.edge import Edge
from accelgen.frontend.errors import ApiError, internal_error
from accelgen.frontend.keys import Gate
from accelgen.frontend.responses import error_response, json_response
from accelgen.frontend.service import Service
from accelgen.frontend.token_routes import detokenize, tokenize

_GET = ["GET", "HEAD"]


def make_app(service: Service, gate: Gate) -> Edge:
    """The ASGI application: the routes inside the edge."""
    return Edge(make_routes(service, gate.has_admin), gate, service.metrics)


def make_routes(service: Service, has_admin: bool) -> FastAPI:
    app = FastAPI(title="AccelGen", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(Exception, _internal_error)  # the edge writes the log line
    app.add_exception_handler(ClientDisconnect, _nobody)
    _add_generation(app, service)
    _add_models(app, service)
    _add_operation(app, service)
    if has_admin:
        _add_admin(app, service)
    return app


def _add_generation(app: FastAPI, service: Service) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        return await service.generate(request, "chat")

    @app.post("/v1/completions", response_model=None)
    async def completions(request: Request) -> Response:
        return await service.generate(request, "completion")

    @app.post("/tokenize", response_model=None)
    async def tokenize_route(request: Request) -> Response:
        return json_response(await service.read(request, lambda given: tokenize(service, given)))

    @app.post("/detokenize", response_model=None)
    async def detokenize_route(request: Request) -> Response:
        return json_response(await service.read(request, lambda given: detokenize(service, given)))


def _add_models(app: FastAPI, service: Service) -> None:
    created = int(time.time())

    def card() -> dict[str, Any]:
        return {
            "id": service.model.name,
            "object": "model",
            "created": created,
            "owned_by": "accelgen",
            "max_model_len": service.context_tokens,
        }

    @app.api_route("/v1/models", methods=_GET, response_model=None)
    async def models() -> Response:
        return json_response({"object": "list", "data": [card()]})

    @app.api_route("/v1/models/{model:path}", methods=_GET, response_model=None)
    async def model(model: str) -> Response:
        service.check_model(model)
        return json_response(card())


def _add_operation(app: FastAPI, service: Service) -> None:
    @app.api_route("/live", methods=_GET, response_model=None)
    async def live() -> Response:
        """The process answers."""
        return json_response({"status": "alive"})

    @app.api_route("/ready", methods=_GET, response_model=None)
    @app.api_route("/health", methods=_GET, response_model=None)
    async def ready() -> Response:
        """Requests would be served."""
        await service.require_ready()
        return json_response({"status": "ready"})

    @app.api_route("/metrics", methods=_GET, response_model=None)
    async def metrics() -> Response:
        return Response(
            service.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    @app.api_route("/version", methods=_GET, response_model=None)
    async def version() -> Response:
        return json_response({"version": accelgen.__version__})


def _add_admin(app: FastAPI, service: Service) -> None:
    @app.get("/admin/v1/policy", response_model=None)
    async def policy() -> Response:
        """Which policy is in office, and which could be."""
        return json_response(await service.in_text_thread(describe, service.child.directory))

    @app.post("/admin/v1/policy", response_model=None)
    async def swap(request: Request) -> Response:
        """Another policy while requests go on."""
        asked = await service.read(request, parse_swap)
        return json_response(await service.swaps.ask(asked))


async def _http_error(_: Request, error: Exception) -> Response:
    """404 and 405 of the router."""
    assert isinstance(error, HTTPException)
    messages = {404: "there is nothing at this path", 405: "this path does not take that method"}
    message = messages.get(error.status_code, str(error.detail))
    return error_response(ApiError(error.status_code, message, headers=dict(error.headers or {})))


async def _validation_error(_: Request, __: Exception) -> Response:
    return error_response(ApiError(400, "the request is not valid"))


async def _api_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error)


async def _internal_error(_: Request, __: Exception) -> Response:
    return error_response(internal_error())


async def _nobody(_: Request, __: Exception) -> Response:
    """The client left while it was still sending."""
    return error_response(ApiError(499, "the client closed the connection"))
