"""The client side of the OpenAI API for a person at a terminal: find the server, stream one answer, time it.

The benchmark has a client of its own (`bench_http`): this one is for one request at a time and prefers clear errors.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlsplit

import httpx
import msgspec

from accelgen.proto.clocks import now_s
from accelgen.proto.config import Config, load_config
from accelgen.scripts.chat_classes import Classes
from accelgen.scripts.chat_clean import Cleaner, clean_line
from accelgen.scripts.sse import DONE, SseError, SseReader
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.rundir import CONFIG, entries, is_live

DEFAULT_URL = "http://127.0.0.1:8000"
CONNECT_TIMEOUT_S = 5.0
READ_TIMEOUT_S = 600.0  # how long a server may be silent, for example while a request queues
MAX_ERROR_BYTES = 64 * 1024


class ServerError(Exception):
    """What went wrong between us and the server, in one line for people, safe to print. `option` is the one of the
    command line that is at fault, or empty."""

    def __init__(self, said: str, option: str = "") -> None:
        super().__init__(said)
        self.option = option


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible server. `url` has no trailing slash and no `/v1`."""

    url: str
    api_key: str | None = None

    def headers(self) -> dict[str, str]:
        """What goes with every request."""
        return {} if self.api_key is None else {"authorization": f"Bearer {self.api_key}"}


def make_server(url: str, api_key: str | None) -> Server:
    """A Server from what a user typed. Raises ServerError that names the option."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ServerError(f"--url: {clean_line(url)} is not like http://HOST:PORT", "--url")
    if api_key and not (api_key.isascii() and api_key.isprintable()):
        raise ServerError("--api-key: a key has printable ASCII characters only", "--api-key")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Server(f"{parts.scheme}://{parts.netloc}{path}", api_key or None)


def find_url() -> str:
    """The URL of the one AccelGen server that lives on this machine under our name, else DEFAULT_URL.
    Raises ServerError when there are several."""
    urls = [_url_of(load_config(run / CONFIG)) for run in _live_runs()]
    if len(urls) > 1:
        raise ServerError(
            f"{len(urls)} servers are running; name one with --url: {', '.join(urls)}", "--url"
        )
    return urls[0] if urls else DEFAULT_URL


def find_classes(url: str) -> Classes:
    """The classes of the server at `url` if it lives on this machine under our name, else none."""
    for run in _live_runs():
        try:
            config = load_config(run / CONFIG)
        except (OSError, msgspec.DecodeError):  # of another version, or just gone
            continue
        if _url_of(config) == url.replace("//localhost:", "//127.0.0.1:"):
            return Classes(config.slo_classes, config.default_class)
    return Classes()


def _live_runs() -> list[Path]:
    try:
        return [run for run in entries() if is_live(run) and (run / CONFIG).is_file()]
    except (StartError, OSError):  # no folder of our own here: then no server of ours either
        return []


def _url_of(config: Config) -> str:
    """Where a client on this machine finds a server: one that listens on every address is found on loopback."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine: then no proxy of the environment belongs in between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


@dataclass
class Answer:
    """One answer: what was measured here while it streamed, and what the server said about it at the end."""

    sent_s: float = 0.0
    first_s: float | None = None
    last_s: float | None = None
    pieces: int = 0
    finish_reason: str | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    verdict: dict[str, Any] = field(
        default_factory=dict
    )  # the `accelgen` object of the final chunk
    complete: bool = False

    def take(self, chunk: dict[str, Any], arrived_s: float) -> str:
        """Notes one chunk and returns the text in it."""
        usage, verdict = chunk.get("usage"), chunk.get("accelgen")
        self.usage = usage if isinstance(usage, dict) else self.usage
        self.verdict = verdict if isinstance(verdict, dict) else self.verdict
        text = ""
        for choice in chunk.get("choices") or []:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            said = (choice.get("delta") or {}).get("content") or choice.get("text") or ""
            text += said if isinstance(said, str) else ""
        if text:
            self.first_s = arrived_s if self.first_s is None else self.first_s
            self.last_s = arrived_s
            self.pieces += 1
        return text

    @property
    def tokens(self) -> int:
        """Generated tokens: the server's count, else the pieces that came."""
        count = self.usage.get("completion_tokens")
        return count if isinstance(count, int) else self.pieces


class Stream:
    """An answer under way: iterate for its text, clean to print; closing it early makes the server stop."""

    def __init__(self, response: httpx.Response, sent_s: float) -> None:
        self._response = response
        self.answer = Answer(sent_s=sent_s)

    def __iter__(self) -> Iterator[str]:
        reader, cleaner = SseReader(), Cleaner()
        for piece in self._response.iter_bytes():
            arrived_s = now_s()
            try:
                events = reader.feed(piece)
            except SseError as error:
                raise ServerError(f"cannot read the stream: {error}") from error
            for event in events:
                if event == DONE:
                    self.answer.complete = True
                    return
                text = cleaner.feed(self.answer.take(decode_chunk(event), arrived_s))
                if text:
                    yield text
        raise ServerError("the server closed the connection in the middle of the answer")


def decode_chunk(event: bytes) -> dict[str, Any]:
    """One event of a stream as an object. Raises ServerError, also for the error event of a failed stream."""
    try:
        chunk = json.loads(event)
    except ValueError:
        chunk = None
    if not isinstance(chunk, dict):
        raise ServerError(f"the stream holds something that is no JSON object: {_excerpt(event)}")
    if chunk.get("error"):
        raise ServerError(f"the server failed: {error_text(event)}")
    return chunk


class Client:
    """Talks to one Server, synchronously. Use as a context manager."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self._http = httpx.Client(
            base_url=server.url,
            headers=server.headers(),
            timeout=httpx.Timeout(READ_TIMEOUT_S, connect=CONNECT_TIMEOUT_S),
            trust_env=not is_loopback(server.url),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()

    def models(self) -> list[dict[str, Any]]:
        """What /v1/models lists, never empty. Raises ServerError."""
        with self._errors():
            response = self._http.get("/v1/models")
        if response.status_code != 200:
            raise refusal(
                response.status_code, response.content, response.headers.get("retry-after")
            )
        try:
            models = response.json()["data"]
            if not models or not all(isinstance(model["id"], str) for model in models):
                raise ValueError
        except (ValueError, KeyError, TypeError):
            raise ServerError(f"{self.server.url} answers, but /v1/models lists no model") from None
        return list(models)

    @contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Stream]:
        """Sends `body` with `stream` on to `path`. Raises ServerError, also while the Stream is iterated."""
        body = {**body, "stream": True, "stream_options": {"include_usage": True}}
        with self._errors():
            sent_s = now_s()
            with self._http.stream("POST", path, json=body) as response:
                if response.status_code != 200:
                    raise refusal(
                        response.status_code,
                        _read_some(response),
                        response.headers.get("retry-after"),
                    )
                kind = response.headers.get("content-type", "")
                if not kind.startswith("text/event-stream"):
                    raise ServerError(
                        f"{path} answers with {clean_line(kind)!r}, not an event stream"
                    )
                yield Stream(response, sent_s)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns the errors of the HTTP client into ours."""
        url = self.server.url
        try:
            yield
        except httpx.ConnectTimeout as error:
            raise ServerError(f"no answer from {url} in {CONNECT_TIMEOUT_S:g} s") from error
        except httpx.ConnectError as error:
            raise ServerError(
                f"cannot reach {url}: {clean_line(str(error))} (is the server up? start it: accelgen up)"
            ) from error
        except httpx.ReadTimeout as error:
            raise ServerError(f"{url} said nothing for {READ_TIMEOUT_S:g} s") from error
        except httpx.HTTPError as error:
            raise ServerError(f"lost the connection to {url}: {clean_line(str(error))}") from error


def refusal(status: int, body: bytes, retry_after: str | None = None) -> ServerError:
    """The error for an answer that is not 200."""
    said = error_text(body)
    if status == 400 and error_param(body).startswith("accelgen."):
        return ServerError(f"400: {said}", "--slo")
    if status == 401:
        return ServerError(
            f"401: {said} (the server wants an API key: --api-key or the variable ACCELGEN_API_KEY)"
        )
    if status in (429, 503) and retry_after:
        return ServerError(f"{status}: {said} (try again in {clean_line(retry_after)} s)")
    return ServerError(f"{status}: {said}")


def error_text(body: bytes) -> str:
    """What an OpenAI error object (or anything else) says, as one printable line."""
    try:
        error = json.loads(body)["error"]
        said = error if isinstance(error, str) else error["message"]
        param = None if isinstance(error, str) else error.get("param")
    except (ValueError, KeyError, TypeError, AttributeError):
        return _excerpt(body)
    line = clean_line(str(said))
    return f"{line} ({clean_line(str(param))})" if param and str(param) not in line else line


def error_param(body: bytes) -> str:
    """The field that an OpenAI error object names, or nothing."""
    try:
        return str(json.loads(body)["error"]["param"] or "")
    except (ValueError, KeyError, TypeError):
        return ""


def _read_some(response: httpx.Response) -> bytes:
    """The beginning of an error's body."""
    body = b""
    for piece in response.iter_bytes():
        body += piece
        if len(body) > MAX_ERROR_BYTES:
            break
    return body


def _excerpt(body: bytes) -> str:
    return clean_line(body.decode(errors="replace"), 200) or "(empty answer)"
