"""Whatever a client sends: a 4xx with the OpenAI error object naming the field, and a server that goes on."""

from __future__ import annotations

import json
import socket
from typing import Any

import httpx
import pytest

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
TEXT = {"model": "tiny", "prompt": "hi"}
PATHS = {"chat": ("/v1/chat/completions", CHAT), "text": ("/v1/completions", TEXT)}

NUMBERS = [
    ("max_tokens", [-1, 0, 2**31, 2**63, "1", True, 1.5, [], {}]),
    ("n", [-1, 0, 65, 10**9, 2**63, "1", True, 1.5]),
    ("seed", [-1, 2**63, "1", True, 1.5]),
    ("temperature", [-0.1, 2.1, 2**31, 2**63, "1", True, [1]]),
    ("top_p", [-1, 0, 1.1, 2**63, "1", True]),
    ("top_k", [-1, 2**31, 2**63, "1", True, 0.5]),
    ("min_p", [-1, 1.1, "1", True]),
    ("presence_penalty", [-2.1, 2.1, 2**63, "1", True]),
    ("frequency_penalty", [-2.1, 2.1, 2**63, "1", True]),
    ("repetition_penalty", [-1, 0, 10.1, 2**63, "1", True]),
    ("stop_token_ids", [[-1], [2**31], [10**6], ["1"], 5, [True]]),
    ("stop", ["", [""], ["x"] * 17, "x" * 257, 5, [5], {}]),
    ("ignore_eos", [1, "true"]),
    ("stream", [1, "true"]),
    ("stream_options", [{"include_usage": True}, 5]),
    ("user", [5]),
    ("accelgen", [5, [], "x"]),
]
UNSUPPORTED = [
    ("logit_bias", {"5": 1}), ("best_of", 2), ("response_format", {"type": "json_object"}),
    ("service_tier", "priority"), ("store", True), ("min_tokens", 5), ("use_beam_search", True),
    ("guided_json", {}), ("prompt_logprobs", 1), ("best_of", True),
]  # fmt: skip
CASES = [
    *((kind, field, value) for kind in PATHS for field, values in NUMBERS for value in values),
    *((kind, field, value) for kind in PATHS for field, value in UNSUPPORTED),
    ("chat", "max_completion_tokens", 0), ("chat", "logprobs", True), ("chat", "top_logprobs", 5),
    ("chat", "tools", [{"type": "function"}]), ("chat", "tool_choice", "required"),
    ("chat", "functions", [{}]), ("chat", "audio", {}), ("chat", "modalities", ["audio"]),
    ("chat", "prediction", {}), ("chat", "chat_template", "{{ x }}"), ("chat", "messages", []),
    ("chat", "chat_template_kwargs", {"tokenize": False}), ("chat", "add_generation_prompt", False),
    ("chat", "messages", "hi"), ("chat", "messages", None), ("chat", "messages", [{}] * 4097),
    ("text", "echo", True), ("text", "suffix", "x"), ("text", "logprobs", 0), ("text", "logprobs", 5),
    ("text", "prompt", ""), ("text", "prompt", []), ("text", "prompt", [[]]), ("text", "prompt", ["a", ""]),
    ("text", "prompt", None), ("text", "prompt", 5), ("text", "prompt", ["a", 5]), ("text", "prompt", [True]),
    ("text", "prompt", [-1]), ("text", "prompt", [10**9]), ("text", "prompt", [[1], [10**30]]),
    ("text", "prompt", {"a": 1}), ("text", "prompt", ["x"] * 1025), ("text", "prompt", [1] * 512),
    ("text", "prompt", "fox " * 600), ("text", "prompt", "\ud800"), ("text", "max_tokens", 512),
]  # fmt: skip


def check_error(reply: httpx.Response, status: int | None = 400) -> dict[str, Any]:
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert reply.headers["x-request-id"]
    result: dict[str, Any] = error
    return result


def post(stage: Any, kind: str, **changes: Any) -> httpx.Response:
    path, base = PATHS[kind]
    body = json.dumps({**base, **changes})  # NaN and surrogates as they come
    return stage.http.post(path, content=body, headers={"content-type": "application/json"})


@pytest.mark.parametrize(("kind", "field", "value"), CASES)
def test_field(stage: Any, kind: str, field: str, value: Any) -> None:
    error = check_error(post(stage, kind, **{field: value}))
    assert error["param"].split(".")[0] == field
    assert field in error["message"] or error["code"] == "context_length_exceeded"
    assert stage.scheduler.submits == []


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n", 0, "n: must be greater than or equal to 1"),
        ("max_tokens", "a", "max_tokens: must be a valid integer"),
        ("accelgen", 3, "accelgen: must be an object"),
        ("stop", ["x"] * 17, "stop: must have at most 16 items, not 17"),
        (
            "stream_options",
            {"include_obfuscation": True},
            "stream_options.include_obfuscation: must be false",
        ),
        ("stop", [""], "stop.0: must have at least 1 character"),
        ("stop", "x" * 257, "stop.0: must have at most 256 characters"),
        ("echo", True, "echo is not supported; the only accepted value is false"),
    ],
)
def test_wording(stage: Any, field: str, value: Any, said: str) -> None:
    assert check_error(post(stage, "text", **{field: value}))["message"] == said


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e309", "-1e309", "9" * 5000])
def test_not_a_finite_number(stage: Any, number: str) -> None:
    body = f'{{"prompt": "hi", "temperature": {number}}}'
    reply = stage.http.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    check_error(reply)


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"role": "user"}, "messages.0.content"),
        ({"content": "x"}, "messages.0.role"),
        ({"role": "robot", "content": "x"}, "messages.0.role"),
        ({"role": "tool", "content": "x"}, "messages.0.role"),
        ({"role": "user", "content": None}, "messages.0.content"),
        ({"role": "user", "content": 5}, "messages.0.content"),
        ({"role": "user", "content": []}, "messages.0.content"),
        ({"role": "user", "content": "\ud800"}, "messages.0.content"),
        ({"role": "user", "content": [{"type": "text"}]}, "messages.0.content"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]},
            "messages.0.content",
        ),
        ({"role": "user", "content": "x", "name": "bob"}, "messages.0.name"),
        ({"role": "user", "content": "x", "extra": 1}, "messages.0.extra"),
        ({"role": "assistant", "content": "x", "tool_calls": [{}]}, "messages.0.tool_calls"),
        ("hi", "messages.0"),
    ],
)
def test_message(stage: Any, message: Any, param: str) -> None:
    assert check_error(post(stage, "chat", messages=[message]))["param"] == param


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"foo": 1}, "accelgen.foo"),
        ({"slo": {"foo": 1}}, "accelgen.slo.foo"),
        ({"slo": 5}, "accelgen.slo"),
        ({"slo_class": "gold"}, "accelgen.slo_class"),
        ({"slo_class": 5}, "accelgen.slo_class"),
        ({"cache_salt": ""}, "accelgen.cache_salt"),
        ({"cache_salt": "x" * 257}, "accelgen.cache_salt"),
        ({"cache_salt": "\ud800"}, "accelgen.cache_salt"),
        ({"slo": {"ttft_ms": 0}}, "accelgen.slo.ttft_ms"),
        ({"slo": {"ttft_ms": -5}}, "accelgen.slo.ttft_ms"),
        ({"slo": {"tpot_ms": 1e18}}, "accelgen.slo.tpot_ms"),
        ({"slo": {"tpot_ms": 10**18}}, "accelgen.slo.tpot_ms"),
        ({"slo": {"e2e_ms": "inf"}}, "accelgen.slo.e2e_ms"),
        ({"slo": {"e2e_ms": True}}, "accelgen.slo.e2e_ms"),
        ({"slo": {"e2e_ms": float("nan")}}, None),
    ],
)
def test_extension(stage: Any, given: Any, param: str | None) -> None:
    assert check_error(post(stage, "chat", accelgen=given))["param"] == param


@pytest.mark.parametrize(
    "headers",
    [
        [("x-slo-ttft-ms", "0")],
        [("x-slo-ttft-ms", "1000000000000000000")],
        [("x-slo-ttft-ms", "inf")],
        [("X-SLO-TTFT-MS", "5"), ("x-slo-ttft-ms", "6")],
        [("x-llm-d-slo-ttft-ms", "5"), ("x-slo-ttft-ms", "6")],
    ],
)
def test_objective_in_headers(stage: Any, headers: Any) -> None:
    reply = stage.http.post("/v1/completions", json=TEXT, headers=headers)
    assert check_error(reply)["param"] == "x-slo-ttft-ms"


@pytest.mark.parametrize("kind", PATHS)
def test_unknown_field_is_named(stage: Any, kind: str) -> None:
    error = check_error(post(stage, kind, max_tokns=5))
    assert error["param"] == "max_tokns" and error["code"] == "unknown_parameter"


def test_unknown_model(stage: Any) -> None:
    error = check_error(post(stage, "chat", model="gpt-5"), 404)
    assert error["param"] == "model" and error["code"] == "model_not_found"


def test_too_long_gives_numbers(stage: Any) -> None:
    error = check_error(post(stage, "text", prompt=[1] * 500, max_tokens=13))
    assert error["code"] == "context_length_exceeded" and error["param"] == "max_tokens"
    assert all(number in error["message"] for number in ("500", "13", "512"))
    error = check_error(post(stage, "chat", messages=[{"role": "user", "content": "fox " * 600}]))
    assert error["code"] == "context_length_exceeded" and "512" in error["message"]


def test_absurdly_long_prompt_is_not_even_encoded(stage: Any) -> None:
    error = check_error(post(stage, "text", prompt="x" * 4_000_000))
    assert error["param"] == "prompt" and "4000000 characters" in error["message"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'"hi"', b"null", b"\xff\xfe", b'{"prompt": "\xff"}', b"[" * 100_000,
     b'{"prompt": "a", "prompt": "b"}', b'{"prompt":"a","accelgen":{"slo":{"ttft_ms":1,"ttft_ms":2}}}',
     b"\xef\xbb\xbf{}"],
)  # fmt: skip
def test_not_a_json_object(stage: Any, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    check_error(stage.http.post("/v1/completions", content=body, headers=headers))


def test_content_type_and_encoding(stage: Any) -> None:
    url = "/v1/completions"
    check_error(stage.http.post(url, content=b"{}", headers={"content-type": "text/plain"}), 415)
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    check_error(stage.http.post(url, content=b"{}", headers=headers), 415)


def test_body_of_50_megabytes(stage: Any) -> None:
    headers = {"content-type": "application/json"}
    url = "/v1/chat/completions"
    error = check_error(stage.http.post(url, content=b"x" * 50_000_000, headers=headers), 413)
    assert "8388608" in error["message"]

    def chunks() -> Any:
        for _ in range(50):
            yield b"x" * 1_000_000

    check_error(stage.http.post(url, content=chunks(), headers=headers), 413)


def test_unknown_routes(stage: Any) -> None:
    check_error(stage.http.get("/v2/none"), 404)
    check_error(stage.http.get("/docs"), 404)
    check_error(stage.http.delete("/v1/models"), 405)
    check_error(stage.http.get("/v1/models/other"), 404)


def exchange(stage: Any, data: bytes) -> bytes:
    """Raw bytes to the server; all it says until it closes."""
    with socket.create_connection(("127.0.0.1", stage.supervisor.port), timeout=10) as raw:
        raw.settimeout(10)
        received = b""
        try:
            raw.sendall(data)
            while piece := raw.recv(65536):
                received += piece
        except ConnectionError:
            pass
        return received


@pytest.mark.parametrize(
    "head",
    [
        b"GET /live HTTP/1.1\r\nhost: x\r\nx-long: " + b"a" * 100_000 + b"\r\n\r\n",
        b"GET /live HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 10_000 + b"\r\n",
        b"GET /live HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 300 + b"\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_oversize_head(stage: Any, head: bytes) -> None:
    reply = exchange(stage, head)
    assert reply.startswith(b"HTTP/1.1 431 ") and b'"error"' in reply


def test_head_of_ten_megabytes_without_end(stage: Any) -> None:
    assert b"200" not in exchange(stage, b"GET / HTTP/1.1\r\na: " + b"a" * 10_000_000)[:20]


def test_not_http(stage: Any) -> None:
    reply = exchange(stage, b"\x00\x01\x02 what\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 400 ") and b'"error"' in reply


@pytest.mark.parametrize("given", ["x" * 129, "a b", "é", "../etc", "a\tb", ""])
def test_request_id_of_the_client_is_checked(stage: Any, given: str) -> None:
    reply = stage.http.get("/live", headers={"x-request-id": given.encode()})
    assert reply.headers["x-request-id"].startswith("req-")
    reply = stage.http.get("/live", headers={"x-request-id": "My-id_1:2.3"})
    assert reply.headers["x-request-id"] == "My-id_1:2.3"


def test_neutral_values_are_accepted(stage: Any) -> None:
    stage.says("fine")
    neutral = {
        "logprobs": False, "tools": [], "tool_choice": "auto", "response_format": {"type": "text"}, "user": "me",
        "logit_bias": {}, "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": 1, "stop": None,
        "modalities": ["text"], "temperature": 0, "top_p": 1, "functions": None, "seed": 2**63 - 1,
    }  # fmt: skip
    messages = [
        {"role": "developer", "content": "be kind", "name": None},
        {"role": "assistant", "content": "yes", "refusal": None, "tool_calls": None, "audio": None},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    assert post(stage, "chat", messages=messages, **neutral).status_code == 200
    text = stage.tokenizer.decode(stage.scheduler.submit().prompt.tokens, skip_special_tokens=False)
    assert "<|im_start|>system\nbe kind<|im_end|>" in text and "user\na\nb<|im_end|>" in text
