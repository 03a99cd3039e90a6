"""A frontend process with a reasoning model: objectives by stage go out, verdicts by stage come back."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from accelgen.proto.config import SloClass
from accelgen.proto.messages import Failure, Objective, Thinking

STATED = {"slo": {"ttft_ms": 5000, "tpot_ms": 3000}, "stages": {"thinking": {"tpot_ms": 0.0011}}}


@pytest.fixture(scope="module")
def thinker(
    open_stage: Callable[..., Any], tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Any]:
    made = Tokenizer.from_str(tokenizer.to_str())
    made.add_tokens([AddedToken("</think>", special=False)])
    folder = tmp_path_factory.mktemp("models")
    made.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(
        json.dumps({"eos_token_id": made.token_to_id("<|im_end|>")})
    )
    classes = {"standard": SloClass(bounds_ms=(0.001, 3_600_000.0))}
    with open_stage(model=str(folder), slo_classes=classes) as stage:
        stage.tokenizer = made
        stage.learns()
        yield stage


def ask(stage: Any, accelgen: dict[str, Any], **fields: Any) -> Any:
    body = {"prompt": "hello", "max_tokens": 60, "accelgen": accelgen, **fields}
    return stage.http.post("/v1/completions", json=body)


def test_both_parts_are_judged(thinker: Any, wait: Any) -> None:
    thinker.scheduler.reset()
    thinker.says("the dog</think>fox", per_token=True)
    wait(lambda: ask(thinker, {}).status_code == 200, "a scheduler that answers")
    thinker.scheduler.submits.clear()
    reply = ask(thinker, {**STATED, "stage": "answer"})
    assert reply.status_code == 200, reply.text
    mark = thinker.tokenizer.token_to_id("</think>")
    objective = thinker.scheduler.submit().objective
    assert objective == Objective(5.0, 3.0, None, Thinking(0.0011 / 1000, [mark]))
    verdict = reply.json()["accelgen"]
    before = len(thinker.tokenizer.encode("the dog").ids)
    after = len(thinker.tokenizer.encode("fox").ids) + 1  # and the end of the sequence
    assert verdict["stage"] == "answer"
    assert verdict["stages"]["thinking"]["tokens"] == before + 1
    assert verdict["stages"]["response"] == {
        "tokens": after,
        "tpot_ms": verdict["stages"]["response"]["tpot_ms"],
        "met": True,
    }
    assert verdict["slo_met"]["tpot"] is verdict["stages"]["thinking"]["met"]
    metrics = thinker.http.get("/metrics").text
    assert 'slo="tpot_thinking"' in metrics and 'stage="answer"' in metrics


def test_refusals_name_the_field(thinker: Any) -> None:
    for accelgen, param in (
        ({"stage": "loop"}, "accelgen.stage"),
        ({"stages": {"plan": {}}}, "accelgen.stages.plan"),
        ({"stages": {"thinking": {"tpot_ms": 1e9}}}, "accelgen.stages.thinking.tpot_ms"),
    ):
        reply = ask(thinker, accelgen)
        assert reply.status_code == 400 and reply.json()["error"]["param"] == param


def test_think_tokens_that_the_model_lacks_end_the_process(
    model_folder: Path, fakes: Any, wait: Any
) -> None:
    supervisor = fakes.supervisor(think_tokens="</reasons>")
    said = wait(
        lambda: [one for one in supervisor.said if isinstance(one, Failure)], "its last words", 30
    )
    assert "think_tokens: '</reasons>' is not one token" in said[0].line
