"""Life of the process: starting, readiness, a scheduler that comes, goes and is replaced, the orderly end."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from accelgen.proto.child import endpoint_of
from accelgen.proto.config import SloClass
from accelgen.proto.messages import (
    Admitted,
    Directory,
    End,
    Failure,
    Finished,
    Hello,
    Reason,
    Role,
    Stop,
    Tokens,
)

CHAT = {"messages": [{"role": "user", "content": "hi"}]}


def test_before_and_after_activation(make_stage: Callable[..., Any], wait: Any, fakes: Any) -> None:
    classes = {"standard": SloClass(ttft_ms=5000, tpot_ms=250, max_queue_ms=400)}
    stage = make_stage(activated=False, slo_classes=classes)
    assert stage.http.get("/live").status_code == 200
    assert stage.http.get("/v1/models").status_code == 200
    for path in ("/ready", "/health"):
        reply = stage.http.get(path)
        assert reply.status_code == 503 and reply.headers["retry-after"]
    reply = stage.http.post("/v1/chat/completions", json=CHAT)
    assert reply.status_code == 503
    assert reply.headers["x-accelgen-dropped-reason"] == "no_workers"

    first = fakes.scheduler(stage.supervisor.endpoint, epoch=3, name="first")
    wait(lambda: stage.http.get("/ready").status_code == 200, "readiness")
    said = stage.supervisor.said
    wait(lambda: any(isinstance(one, Hello) and one.phase == "ready" for one in said), "Hello")

    # Its successor gets what is live, with the tokens so far; what the old one still says is dropped.
    first.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    with stage.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        id = first.submit().prompt.id
        ids = stage.tokenizer.encode("the lazy fox").ids
        first.send(Tokens(0, [id], [1], ids[:1]))
        chunks = (line.removeprefix("data: ") for line in reply.iter_lines() if line)
        text = _content(next(chunks))
        second = fakes.scheduler(stage.supervisor.endpoint, epoch=4, name="second")
        again = second.submit()
        assert again.prompt.id == id and again.prompt.generated == 1
        assert again.prompt.tokens[-1] == ids[0]
        first.send(Tokens(1, [id], [1], [ids[2]]))
        second.send(Tokens(0, [id], [len(ids) - 1], ids[1:]))
        second.send(Finished([End(id, Reason.LENGTH)]))
        *rest, done = list(chunks)
        assert text + "".join(map(_content, rest)) == "the lazy fox" and done == "[DONE]"
    second.close()
    first.close()
    reply = wait(lambda: _refused(stage), "the scheduler's connection to end")
    assert reply.headers["x-accelgen-dropped-reason"] == "no_workers"

    # Within the queue limit of its class a request waits for the next scheduler.
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stage.http.post, "/v1/chat/completions", json=CHAT)
        third = fakes.scheduler(stage.supervisor.endpoint, epoch=5, name="third")
        id = third.submit().prompt.id
        third.send(Tokens(0, [id], [len(ids)], ids))
        third.send(Finished([End(id, Reason.STOP)]))
        assert waiting.result(10).json()["choices"][0]["message"]["content"] == "the lazy fox"


def test_a_frontend_that_has_never_had_a_scheduler_waits_like_the_others(
    make_stage: Callable[..., Any], wait: Any, fakes: Any
) -> None:
    """Found by injecting two faults at once: a frontend that is started again amid an outage."""
    stage = make_stage(activated=False)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stage.http.post, "/v1/chat/completions", json=CHAT)
        enough_s = time.monotonic() + 1.2  # it used to give up after 1.0 s
        wait(lambda: time.monotonic() > enough_s or waiting.done(), "the time to pass")
        assert not waiting.done()
        scheduler = fakes.scheduler(stage.supervisor.endpoint, epoch=1, name="first")
        id = scheduler.submit().prompt.id
        scheduler.send(Finished([End(id, Reason.STOP)]))
        assert waiting.result(10).status_code == 200


def _content(chunk: str) -> str:
    return str(json.loads(chunk)["choices"][0]["delta"].get("content", ""))


def _refused(stage: Any) -> httpx.Response | None:
    try:
        reply = stage.http.post("/v1/chat/completions", json=CHAT, timeout=1.0)
    except httpx.ReadTimeout:  # it was sent into a pipe that nobody empties any more
        return None
    return reply if reply.status_code == 503 else None


def test_readiness_follows_the_directory(make_stage: Callable[..., Any], wait: Any) -> None:
    stage = make_stage()
    wait(lambda: stage.http.get("/ready").status_code == 200, "readiness")
    stage.supervisor.tell(Directory([], ready=False, draining=False))
    wait(lambda: stage.http.get("/ready").status_code == 503, "the loss of readiness")


@pytest.mark.parametrize("by_signal", [False, True])
def test_orderly_end(make_stage: Callable[..., Any], wait: Any, by_signal: bool) -> None:
    """What runs is completed, what comes is refused, then the process ends with status 0."""
    stage = make_stage(shutdown_timeout_s=20.0)
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    text = stage.tokenizer.encode("fox").ids
    with stage.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        id = stage.scheduler.submit().prompt.id
        if by_signal:
            stage.supervisor.process.send_signal(signal.SIGTERM)
        else:
            stage.supervisor.tell(Stop(20.0, "test"))
        wait(lambda: stage.supervisor.phase() == "stopping", "the phase")
        with httpx.Client(base_url=stage.url) as other:
            refused = other.post("/v1/chat/completions", json=CHAT)
            assert refused.status_code == 503
            assert refused.headers["x-accelgen-dropped-reason"] == "draining"
            assert other.get("/ready").status_code == 503
        stage.scheduler.send(Tokens(0, [id], [len(text)], text))
        stage.scheduler.send(Finished([End(id, Reason.STOP)]))
        assert "[DONE]" in reply.read().decode()
    assert stage.supervisor.process.wait(10) == 0


def test_end_in_bounded_time(make_stage: Callable[..., Any], wait: Any) -> None:
    """A stream that does not end is told so, and the process goes."""
    stage = make_stage()
    stage.scheduler.answer = lambda submit: [Admitted(submit.prompt.id, 0, 0.1, 0)]
    with stage.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        id = stage.scheduler.submit().prompt.id
        stage.supervisor.tell(Stop(0.3, "test"))
        assert '"code":"draining"' in reply.read().decode()
    wait(lambda: stage.scheduler.aborts == [id], "Abort")
    assert stage.supervisor.process.wait(10) == 0


def test_several_share_a_socket(make_stage: Callable[..., Any], fakes: Any, wait: Any) -> None:
    """Two frontends serve one port; when one dies the other goes on, and a new one takes the same socket."""
    stage = make_stage()
    supervisor = stage.supervisor
    stage.says("one")
    endpoint = endpoint_of(supervisor.run_dir, Role.FRONTEND, 1)

    def start_second(epoch: int) -> tuple[Any, Any]:
        process = supervisor.start(1)
        scheduler = fakes.scheduler(endpoint, epoch=epoch, name=f"second-{epoch}")
        scheduler.answer = stage.scheduler.answer
        return process, scheduler

    def both_serve(second: Any) -> bool:
        with httpx.Client(base_url=stage.url) as fresh:
            assert fresh.post("/v1/chat/completions", json=CHAT).status_code == 200
        return bool(stage.scheduler.submits and second.submits)

    process, second = start_second(1)
    wait(lambda: both_serve(second), "requests at both frontends", 20)
    process.kill()
    process.wait()
    for _ in range(20):
        with httpx.Client(base_url=stage.url) as fresh:
            assert fresh.post("/v1/chat/completions", json=CHAT).status_code == 200
    (supervisor.run_dir / "frontend-1.sock").unlink()
    second.close()
    _, third = start_second(2)
    stage.scheduler.submits.clear()
    wait(lambda: both_serve(third), "requests at the restarted frontend", 20)


def test_dies_with_a_clear_line(make_stage: Callable[..., Any], fakes: Any, tmp_path: Any) -> None:
    keys = tmp_path / "keys"
    keys.write_text("short\n")
    keys.chmod(0o600)
    for settings, expected in [
        ({"model": str(tmp_path / "none")}, "neither a folder nor a hub name"),
        ({"model": str(tmp_path)}, "no tokenizer.json"),
        ({"api_key_file": str(keys)}, "the key has 5 characters, at least 16"),
        ({"api_key_file": str(tmp_path / "nothing")}, "cannot be read"),
    ]:
        supervisor = fakes.supervisor(**settings)
        assert supervisor.process.wait(20) == 1
        deadline_s = time.monotonic() + 5
        lines: list[str] = []
        while not lines and time.monotonic() < deadline_s:
            lines = [said.line for said in supervisor.said if isinstance(said, Failure)]
        assert len(lines) == 1 and expected in lines[0]


def test_beats_go_on_under_load(stage: Any) -> None:
    stage.says("the quick brown fox jumps over the lazy dog")
    before = len(stage.supervisor.beats)
    end_s = time.monotonic() + 1.2

    def load() -> None:
        while time.monotonic() < end_s:
            stage.client.chat.completions.create(model="tiny", **CHAT)

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    beats = stage.supervisor.beats[before:]
    assert len(beats) >= 2
    assert beats[-1].progress > beats[0].progress and beats[-1].rss_bytes < 150_000_000


def test_hello(stage: Any) -> None:
    hello = stage.supervisor.said[0]
    assert isinstance(hello, Hello)
    assert (hello.role, hello.index, hello.pid) == (Role.FRONTEND, 0, stage.supervisor.process.pid)
    assert hello.endpoint == stage.supervisor.endpoint


def test_nothing_of_a_client_is_logged(make_stage: Callable[..., Any], tmp_path: Any) -> None:
    """Prompts, answers, keys and headers stay out of logs and metrics, whether requests succeed or not."""
    key = "canary-key-0123456789"
    (tmp_path / "keys").write_text(key)
    (tmp_path / "keys").chmod(0o600)
    stage = make_stage(api_key_file=str(tmp_path / "keys"), log_level="debug")
    stage.says("CANARY-answer")
    headers = {"authorization": f"Bearer {key}", "x-other": "CANARY-header"}
    good = {"messages": [{"role": "user", "content": "CANARY-prompt"}], "user": "CANARY-user"}
    assert stage.http.post("/v1/chat/completions", json=good, headers=headers).status_code == 200
    bad = [
        {"prompt": "CANARY\ud800"}, {"prompt": "CANARY", "CANARY-field": 1},
        {"prompt": "CANARY", "temperature": "CANARY"}, {"prompt": "CANARY", "model": "CANARY"},
    ]  # fmt: skip
    headers["content-type"] = "application/json"
    for body in bad:
        reply = stage.http.post("/v1/completions", content=json.dumps(body), headers=headers)
        assert 400 <= reply.status_code < 500
    stage.http.post("/v1/completions", content=b"CANARY \xff", headers=headers)
    metrics = stage.http.get("/metrics", headers=headers).text
    assert "CANARY" not in metrics and key not in metrics
    log = stage.supervisor.log.read_text()
    assert log and "CANARY" not in log and "canary" not in log
