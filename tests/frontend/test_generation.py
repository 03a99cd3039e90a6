"""Chat and completion, streamed and whole, as the official client sees them."""

from __future__ import annotations

from typing import Any

import pytest

MESSAGES: Any = [{"role": "user", "content": "hello"}]


def test_chat_whole(stage: Any) -> None:
    stage.says("The quick brown fox")
    answer = stage.client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert answer.choices[0].message.content == "The quick brown fox"
    assert answer.choices[0].finish_reason == "stop"
    prompt = stage.tokenizer.encode(
        "<|begin|><|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    ).ids
    submit = stage.scheduler.submit()
    assert submit.prompt.tokens == prompt
    assert submit.max_tokens == 512 - len(prompt)
    assert submit.stop_token_ids == [stage.tokenizer.token_to_id("<|im_end|>")]
    completion = len(stage.tokenizer.encode("The quick brown fox").ids) + 1
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == completion
    assert answer.usage.prompt_tokens_details.cached_tokens == 3


def test_chat_stream(stage: Any) -> None:
    stage.says("Héllo wörld, 漢字 🙂")
    stream = stage.client.chat.completions.create(
        model="tiny", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert all(c.choices[0].delta.role is None for c in chunks[1:-1])
    text = "".join(c.choices[0].delta.content or "" for c in chunks[:-1])
    assert text == "Héllo wörld, 漢字 🙂"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * (len(chunks) - 2) + [
        "stop"
    ]
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 5
    assert all(c.usage is None for c in chunks[:-1])
    assert "�" not in text
    verdict = chunks[-1].model_extra["accelgen"]
    assert verdict["slo_class"] == "standard" and verdict["slo_met"]["ttft"] is True


@pytest.mark.parametrize("stream", [False, True])
def test_completion(stage: Any, stream: bool) -> None:
    stage.says(" jumps over")
    answer = stage.client.completions.create(model="tiny", prompt="The fox", stream=stream)
    pieces = list(answer) if stream else [answer]
    assert "".join(p.choices[0].text for p in pieces) == " jumps over"
    assert pieces[-1].choices[0].finish_reason == "stop"
    assert pieces[-1].object == "text_completion"
    submit = stage.scheduler.submit()
    assert submit.prompt.tokens == stage.tokenizer.encode("The fox").ids
    assert submit.max_tokens == 16
