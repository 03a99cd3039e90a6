"""Requests that end without success: refusals with a status, failures in the middle, clients that leave."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import openai
import psutil
import pytest

from accelgen.proto.messages import Activate, Admitted, Body, End, Finished, Reason, Submit, Tokens

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def refuses(end: Callable[[int], End]) -> Callable[[Submit], list[Body]]:
    return lambda submit: [Finished([end(submit.prompt.id)])]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (Reason.REFUSED_SATURATED, 429, "saturated"),
        (Reason.REFUSED_EXPIRED, 429, "ttl_expired"),
        (Reason.REFUSED_TOO_LONG, 400, "context_length_exceeded"),
        (Reason.REFUSED_OBJECTIVE, 400, "objective_unattainable"),
        (Reason.REFUSED_DRAINING, 503, "draining"),
        (Reason.FAILED, 500, "worker_failed"),
        (Reason.ABORTED, 500, "cancelled"),
    ],
)
def test_refusal(stage: Any, reason: Reason, status: int, code: str, stream: bool) -> None:
    stage.scheduler.answer = refuses(lambda id: End(id, reason, "because", retry_after_s=2.5))
    reply = stage.http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert reply.status_code == status
    assert reply.json()["error"]["code"] == code
    if status == 429:
        assert reply.headers["retry-after-ms"] == "2500" and reply.headers["retry-after"] == "3"
        assert reply.headers["x-accelgen-dropped-reason"] == code
    if reason is Reason.REFUSED_OBJECTIVE:
        assert (
            reply.json()["error"]["param"] == "accelgen.slo" and "retry-after" not in reply.headers
        )
    if reason is Reason.REFUSED_TOO_LONG:
        assert reply.json()["error"]["param"] == "prompt"


def test_client_library_sees_a_rate_limit(stage: Any) -> None:
    stage.scheduler.answer = refuses(lambda id: End(id, Reason.REFUSED_SATURATED, "full"))
    with pytest.raises(openai.RateLimitError, match="full"):
        stage.client.chat.completions.create(model="tiny", **CHAT)


def test_failure_in_the_middle_of_a_stream(stage: Any) -> None:
    """The text so far, one error event that the client library raises, and no [DONE]."""
    fox = stage.tokenizer.encode("fox").ids
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    body = {**CHAT, "stream": True}
    with stage.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        id = stage.scheduler.submit().prompt.id
        stage.scheduler.send(Tokens(0, [id], [len(fox)], fox))
        stage.scheduler.send(Finished([End(id, Reason.FAILED, "no memory")]))
        reply.read()
    text, last = [block.removeprefix("data: ") for block in reply.text.split("\n\n") if block]
    assert json.loads(text)["choices"][0]["delta"]["content"] == "fox"
    assert json.loads(last)["error"] == {
        "message": "no memory", "type": "server_error", "param": None, "code": "worker_failed",
    }  # fmt: skip
    stream = stage.client.chat.completions.create(model="tiny", stream=True, **CHAT)
    id = stage.scheduler.submit(2).prompt.id
    stage.scheduler.send(Tokens(0, [id], [len(fox)], fox))
    stage.scheduler.send(Finished([End(id, Reason.FAILED, "no memory")]))
    with pytest.raises(openai.APIError, match="no memory"):
        list(stream)


def test_one_refused_choice_ends_the_call(stage: Any, wait: Any) -> None:
    def answer(submit: Submit) -> list[Body]:
        if len(stage.scheduler.submits) == 2:
            return [Finished([End(submit.prompt.id, Reason.REFUSED_SATURATED)])]
        return [Admitted(submit.prompt.id, 0, 0.1, 0)]

    stage.scheduler.answer = answer
    reply = stage.http.post("/v1/completions", json={"prompt": ["a", "b"]})
    assert reply.status_code == 429
    first = stage.scheduler.submits[0].prompt.id
    wait(lambda: first in stage.scheduler.aborts, "Abort of the other choice")


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("admitted", [False, True])
def test_client_that_leaves_is_aborted(stage: Any, wait: Any, stream: bool, admitted: bool) -> None:
    if admitted:
        stage.scheduler.answer = lambda submit: [
            Admitted(submit.prompt.id, 0, 0.1, 0),
            Tokens(0, [submit.prompt.id], [1], [100]),
        ]
    body = json.dumps({**CHAT, "stream": stream, "n": 2}).encode()
    with socket.create_connection(("127.0.0.1", stage.supervisor.port), timeout=10) as raw:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
        raw.sendall(f"{head}content-type: application/json\r\n\r\n".encode() + body)
        submit = stage.scheduler.submit()
    expected = [submit.prompt.id, *submit.siblings]
    wait(lambda: set(expected) <= set(stage.scheduler.aborts), "Abort")


def test_late_tokens_of_an_aborted_request_do_no_harm(stage: Any, wait: Any) -> None:
    test_client_that_leaves_is_aborted(stage, wait, stream=True, admitted=True)
    id = stage.scheduler.submit().prompt.id
    stage.scheduler.send(Tokens(1, [id], [1], [100]))
    stage.scheduler.send(Finished([End(id, Reason.ABORTED)]))
    stage.says("fine")
    assert stage.client.chat.completions.create(model="tiny", **CHAT).choices


def test_credits(stage: Any) -> None:
    stage.scheduler.send(Activate(2))
    stage.says("x")
    assert stage.http.post("/v1/completions", json={"prompt": "a", "n": 2}).status_code == 200
    never = stage.http.post("/v1/completions", json={"prompt": "a", "n": 3})
    assert never.status_code == 400 and never.json()["error"]["param"] == "n"
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    with stage.http.stream("POST", "/v1/completions", json={"prompt": "a", "stream": True}):
        stage.scheduler.submit(2)
        reply = stage.http.post("/v1/completions", json={"prompt": "a", "n": 2})
    assert reply.status_code == 429 and reply.headers["x-accelgen-dropped-reason"] == "saturated"
    assert int(reply.headers["retry-after-ms"]) > 0


def test_credits_come_back_after_a_disconnect(stage: Any, wait: Any) -> None:
    stage.scheduler.send(Activate(2))
    test_client_that_leaves_is_aborted(stage, wait, stream=False, admitted=False)
    stage.says("x")
    assert stage.http.post("/v1/completions", json={"prompt": "a", "n": 2}).status_code == 200


def test_messages_of_an_older_epoch_are_dropped(stage: Any) -> None:
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    body = {**CHAT, "stream": True}
    with stage.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        id = stage.scheduler.submit().prompt.id
        stage.scheduler.send(Finished([End(id, Reason.FAILED)]), epoch=0)
        stage.scheduler.send(Activate(1), epoch=0)
        fox = stage.tokenizer.encode("fox").ids
        stage.scheduler.send(Tokens(0, [id], [len(fox)], fox))
        stage.scheduler.send(Finished([End(id, Reason.STOP)]))
        reply.read()
    assert '"content":"fox"' in reply.text and "error" not in reply.text


def test_messages_that_make_no_sense_do_no_harm(stage: Any) -> None:
    stage.scheduler.send(Tokens(0, [5, 6], [3], [1]))
    stage.scheduler.send(Finished([]))
    stage.says("fine")
    assert stage.client.chat.completions.create(model="tiny", **CHAT).choices


def test_nothing_is_left_of_clients_that_leave(stage: Any, wait: Any) -> None:
    """Descriptors, threads and the journal are as before after a hundred aborted streams."""
    process = psutil.Process(stage.supervisor.process.pid)
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    body = json.dumps({**CHAT, "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n"
    request = f"{head}content-type: application/json\r\n\r\n".encode() + body
    before = process.num_fds(), process.num_threads()
    for count in range(0, 100, 20):
        raws = [socket.create_connection(("127.0.0.1", stage.supervisor.port)) for _ in range(20)]
        for raw in raws:
            raw.sendall(request)
        stage.scheduler.submit(count + 20)
        for raw in raws:
            raw.close()
        wait(lambda done=count + 20: len(stage.scheduler.aborts) == done, "Aborts")
    wait(lambda: (process.num_fds(), process.num_threads()) <= before, "descriptors to close")
    assert "accelgen:frontend_open_requests 0" in stage.http.get("/metrics").text
