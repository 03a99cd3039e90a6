"""What becomes of a request whose objectives cannot be promised: what the client may say, and what it hears."""

from __future__ import annotations

from typing import Any

import pytest

from accelgen.frontend.objectives import resolve
from accelgen.frontend.schema import parse_completion
from accelgen.proto.config import ConfigError, SloClass, make_config
from accelgen.proto.messages import Admitted, Body, End, Finished, Reason, Submit

CLASSES = {"soft": SloClass(ttft_ms=100), "hard": SloClass(ttft_ms=100, on_overload="refuse")}


@pytest.mark.parametrize(
    ("body", "refuses"),
    [
        ({"slo_class": "soft"}, False),
        ({"slo_class": "hard"}, True),
        ({"slo_class": "soft", "on_overload": "refuse"}, True),
        ({"slo_class": "hard", "on_overload": "best_effort"}, False),
    ],
)
def test_the_request_goes_before_its_class(body: dict[str, Any], refuses: bool) -> None:
    extension = parse_completion({"prompt": "x", "accelgen": body}).accelgen
    assert resolve(CLASSES, "soft", (), extension).objective.refuses is refuses


def test_a_class_that_says_something_else_is_no_class(tmp_path: Any) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[slo_classes.mine]\non_overload = "wait"\n')
    with pytest.raises(ConfigError, match=r"slo_classes.mine.on_overload: .*'wait'"):
        make_config(file, {})


def ask(stage: Any, **accelgen: Any) -> Any:
    body = {"prompt": "hello", "accelgen": accelgen}
    return stage.http.post("/v1/completions", json=body)


def test_what_a_client_may_say(stage: Any) -> None:
    stage.says("fox")
    for said, refuses in (({}, False), ({"on_overload": "refuse"}, True)):
        stage.scheduler.submits.clear()
        assert ask(stage, **said).status_code == 200
        assert stage.scheduler.submit().objective.refuses is refuses
    reply = ask(stage, on_overload="wait")
    error = reply.json()["error"]
    assert reply.status_code == 400 and error["param"] == "accelgen.on_overload"
    assert "'best_effort' or 'refuse'" in error["message"]


def test_a_best_effort_answer_says_so(stage: Any) -> None:
    def answer(submit: Submit) -> list[Body]:
        id = submit.prompt.id
        return [Admitted(id, 0, 0.1, 0), Finished([End(id, Reason.STOP, best_effort=True)])]

    stage.scheduler.answer = answer
    reply = ask(stage, slo_class="chat")
    assert reply.status_code == 200 and reply.json()["accelgen"]["best_effort"] is True
    metrics = stage.http.get("/metrics").text
    assert 'accelgen:request_best_effort_total{slo_class="chat"} 1' in metrics
    stage.says("fox")
    assert ask(stage, slo_class="chat").json()["accelgen"]["best_effort"] is False


def test_a_refusal_has_its_reason(stage: Any) -> None:
    words = "no replica of 2 can keep its objective beside those admitted before"
    stage.scheduler.answer = lambda submit: [
        Finished([End(submit.prompt.id, Reason.REFUSED_SATURATED, words, retry_after_s=0.7)])
    ]
    reply = ask(stage, on_overload="refuse")
    assert reply.status_code == 429 and reply.json()["error"]["message"] == words
    assert reply.headers["retry-after-ms"] == "700"
