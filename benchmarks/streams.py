"""Streamed completions as benchmarks of faults and swaps read them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

import httpx


@dataclass
class Streamed:
    """What came of a stream. `whole`: all its tokens, and the server said that it was done."""

    status: int = 0
    text: str = ""
    tokens: int = 0
    done: bool = False
    whole: bool = False


async def complete(
    http: httpx.AsyncClient,
    url: str,
    prompt: list[int],
    tokens: int,
    seed: int,
    heard: Callable[[float], None],
) -> Streamed:
    """One completion, sampled with a seed; `heard` gets the moment of each chunk. Raises httpx.HTTPError."""
    body = {
        "model": "accelgen-demo", "prompt": prompt, "max_tokens": tokens, "temperature": 0.8, "seed": seed,
        "ignore_eos": True, "stream": True, "stream_options": {"include_usage": True},
    }  # fmt: skip
    found = Streamed()
    async with http.stream("POST", f"{url}/v1/completions", json=body) as response:
        found.status = response.status_code
        async for line in response.aiter_lines():
            found.done |= line == "data: [DONE]"
            if line.startswith("data: {"):
                heard(time.monotonic())
                chunk = json.loads(line[6:])
                found.text += "".join(choice["text"] for choice in chunk.get("choices", ()))
                found.tokens = (chunk.get("usage") or {}).get("completion_tokens", found.tokens)
    found.whole = found.done and found.tokens == tokens
    return found
