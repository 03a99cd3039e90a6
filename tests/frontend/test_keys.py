"""API keys: every route is closed without one, but for the three that say whether the server lives."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route

from accelgen.frontend.app import make_routes
from accelgen.frontend.keys import OPEN_PATHS, Gate
from accelgen.proto.key_file import KeyFileError, read_keys

KEYS = ["first-key-0123456789", "second-key-0123456789"]


@pytest.fixture(scope="module")
def closed(open_stage: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text("# rotation: old, new\n\n" + "\n".join(KEYS) + "\n")
    path.chmod(0o600)
    with open_stage(api_key_file=str(path)) as opened:
        yield opened


def routes() -> list[tuple[str, str]]:
    """Every registered method and path."""
    found = [route for route in make_routes(None, False).routes if isinstance(route, Route)]  # type: ignore[arg-type]
    return [(method, route.path) for route in found for method in sorted(route.methods or ())]


def test_there_are_routes() -> None:
    assert {"/v1/models", "/v1/chat/completions", "/v1/completions", "/metrics"} <= {
        path for _, path in routes()
    }


@pytest.mark.parametrize(("method", "path"), [*routes(), ("GET", "/none"), ("PUT", "/v1/models")])
def test_route_without_and_with_key(closed: Any, method: str, path: str) -> None:
    path = path.replace("{model:path}", "tiny")

    def status(authorization: str | None) -> int:
        headers = {} if authorization is None else {"authorization": authorization.encode()}
        return int(closed.http.request(method, path, headers=headers).status_code)

    wrong = [
        None,
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {KEYS[0]}",
        KEYS[0],
        f"Bearer {KEYS[0]}x",
        "Bearer é",
    ]
    for authorization in wrong:
        if path in OPEN_PATHS:
            assert status(authorization) == 200
        else:
            assert status(authorization) == 401
    for key in KEYS:
        assert status(f"Bearer {key}") != 401


def test_refusal_is_an_error_object(closed: Any) -> None:
    reply = closed.http.get("/v1/models")
    assert reply.json()["error"]["code"] == "invalid_api_key" and reply.headers["x-request-id"]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", "short\n", f"{KEYS[0]}\nshort"])
def test_bad_key_files(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    path.chmod(0o600)
    for setting, files in (("api_key_file", (path, "")), ("admin_key_file", ("", path))):
        with pytest.raises(KeyFileError, match=f"^{setting}: {path} ") as refused:
            read_keys(*map(str, files))
        assert "short" not in str(refused.value).replace(str(path), "")


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o777])
def test_a_key_file_that_others_can_open(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "keys"
    path.write_text(KEYS[0])
    path.chmod(mode)
    with pytest.raises(
        KeyFileError, match=f"open to every user of this machine .mode {mode:04o}.; chmod 600"
    ):
        read_keys(str(path), "")
    path.chmod(0o640)
    assert read_keys(str(path), "") == (KEYS[:1], [])


def test_no_key_file_is_no_key() -> None:
    assert read_keys("", "") == ([], [])


def test_a_key_file_is_a_small_file(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_text("x" * (1 << 21))
    large.chmod(0o600)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for path in (large, pipe, tmp_path):
        with pytest.raises(KeyFileError, match="must be a file of at most"):
            read_keys(str(path), "")


def test_comparison_takes_constant_time(monkeypatch: Any) -> None:
    """Every key is compared by compare_digest, on digests of one length."""
    seen: list[int] = []

    def compare(one: bytes, other: bytes) -> bool:
        seen.extend((len(one), len(other)))
        return one == other

    monkeypatch.setattr("accelgen.frontend.keys.hmac.compare_digest", compare)
    Gate(KEYS, KEYS[:1]).check("/v1/models", f"bearer {KEYS[0]}".encode())
    assert seen == [32] * 6
