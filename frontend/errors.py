"""What a client is told when something is refused: the OpenAI error object, with status, field and limit."""

from __future__ import annotations

import math

import msgspec

from accelgen.proto.messages import End, Reason

_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A refusal on its way to the client. `param` names the field, `code` is for programs, `message` for people."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}

    def body(self) -> bytes:
        """`{"error": {message, type, param, code}}` as JSON."""
        kind = _TYPES.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})


def quoted(text: str, limit: int = 80) -> str:
    """Text of the client, safe to repeat in a message: escaped, cut to `limit` characters."""
    return ascii(text if len(text) <= limit else text[:limit] + "...")


def retry_headers(retry_after_s: float) -> dict[str, str]:
    """Both spellings of "try again then": milliseconds for the openai client, whole seconds for everyone."""
    return {
        "retry-after-ms": str(max(1, math.ceil(retry_after_s * 1000))),
        "retry-after": str(max(1, math.ceil(retry_after_s))),
    }


def busy(
    status: int, reason: str, message: str, retry_after_s: float, param: str | None = None
) -> ApiError:
    """A refusal that a later try may not meet: 429 or 503 with its reason and when to come back."""
    headers = {**retry_headers(retry_after_s), "x-accelgen-dropped-reason": reason}
    return ApiError(status, message, param, reason, headers)


def not_activated() -> ApiError:
    return busy(
        503, "no_workers", "no scheduler is active; the server is starting or recovering", 1.0
    )


def internal_error() -> ApiError:
    return ApiError(500, "internal error", code="internal_error")


def draining() -> ApiError:
    return busy(503, "draining", "the server is shutting down", 5.0)


def from_end(end: End) -> ApiError:
    """The error that tells the client of a request that did not end with `stop` or `length`."""
    retry_after_s = end.retry_after_s or 1.0
    match end.reason:
        case Reason.REFUSED_SATURATED:
            message = end.detail or "the queue is full"
            return busy(429, "saturated", message, retry_after_s)
        case Reason.REFUSED_EXPIRED:
            message = end.detail or "the request waited longer than its class allows"
            return busy(429, "ttl_expired", message, retry_after_s)
        case Reason.REFUSED_TOO_LONG:
            message = end.detail or "the prompt does not fit the KV cache"
            param = "n" if message.startswith("n:") else "prompt"
            return ApiError(400, message, param, "context_length_exceeded")
        case Reason.REFUSED_OBJECTIVE:
            message = end.detail or "no idle replica could keep this objective"
            return ApiError(400, message, "accelgen.slo", "objective_unattainable")
        case Reason.REFUSED_DRAINING:
            return draining()
        case Reason.ABORTED:
            return ApiError(500, end.detail or "the request was cancelled", code="cancelled")
        case _:
            message = end.detail or "the request could not be computed"
            return ApiError(500, message, code="worker_failed")
