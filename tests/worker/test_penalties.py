"""Penalties on the whole way through the worker, beside a loop over transformers' logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from accelgen.proto.messages import Batch, Prompt, Sampling
from accelgen.worker.core import WorkerCore

PROMPT, STEPS = [5, 9, 5, 30, 61, 2], 12


def entry(step: int, prompt: Prompt, start: int, count: int, blocks: list[int]) -> Batch:
    """A batch of one entry; the first brings all `blocks`."""
    new = blocks if step == 0 else []
    return Batch(
        step=step, new=[] if step else [prompt], ids=[prompt.id], starts=[start], counts=[count],
        table_at=[len(blocks) - len(new)], table_counts=[len(new)], table_blocks=new,
        copy_from=[], copy_to=[], release=[], predicted_s=0.01, bound_s=1.0,
    )  # fmt: skip


def reference(model: Any, sampling: Sampling) -> list[int]:
    """Greedy tokens under the penalties, by their definition (OpenAI's for presence and frequency, CTRL's)."""
    tokens: list[int] = []
    for _ in range(STEPS):
        with torch.no_grad():
            line = model(torch.tensor([PROMPT + tokens])).logits[0, -1].clone()
        for token in set(PROMPT + tokens):
            factor = sampling.repetition_penalty
            line[token] = line[token] / factor if line[token] > 0 else line[token] * factor
        for token in set(tokens):
            line[token] -= sampling.presence_penalty + sampling.frequency_penalty * tokens.count(
                token
            )
        tokens.append(int(line.argmax()))
    return tokens


@pytest.mark.parametrize(
    "penalties",
    [
        {"presence_penalty": 1.5},
        {"frequency_penalty": 0.7},
        {"repetition_penalty": 1.4},
        {"presence_penalty": -0.5, "frequency_penalty": 0.3, "repetition_penalty": 1.1},
    ],
)
def test_penalties_equal_their_definition(bench: Any, penalties: dict[str, float]) -> None:
    tiny = bench("llama")
    core = WorkerCore(tiny.core.runner)
    prompt = Prompt(1, PROMPT, Sampling(temperature=0.0, **penalties))
    blocks = list(range(10, 10 + (len(PROMPT) + STEPS) // 4 + 1))
    results = [core.execute(entry(0, prompt, 0, len(PROMPT), blocks))]
    for i in range(STEPS - 1):
        results.append(core.execute(entry(i + 1, prompt, len(PROMPT) + i, 1, blocks)))
    assert [result.causes for result in results] == [[]] * STEPS
    assert [t for result in results for t in result.tokens] == reference(
        tiny.reference, prompt.sampling
    )
