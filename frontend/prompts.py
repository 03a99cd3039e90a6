"""The forms that `prompt` may take in `/v1/completions`, checked and made one."""

from __future__ import annotations

from typing import Any

from accelgen.frontend.errors import ApiError
from accelgen.frontend.schema import MAX_PROMPTS


def split_prompts(prompt: Any, vocab_size: int) -> list[str] | list[list[int]]:
    """A list of texts, or a list of token id lists, none of them empty.

    Accepts a string, a list of strings, a list of token ids, a list of lists of token ids.
    Raises ApiError 400 naming `prompt` and the limit."""
    if isinstance(prompt, str):
        prompt = [prompt]
    if not isinstance(prompt, list):
        raise _refusal("must be a string, a list of strings, token ids, or lists of token ids")
    if not prompt:
        raise _refusal("must not be empty")
    if all(type(item) is int for item in prompt):
        prompt = [prompt]
    if len(prompt) > MAX_PROMPTS:
        raise _refusal(f"has {len(prompt)} prompts, the limit is {MAX_PROMPTS}")
    if not all(prompt):
        raise _refusal("must not be empty")
    if all(type(item) is str for item in prompt):
        return list[str](prompt)
    for ids in prompt:
        if type(ids) is not list or not all(type(token) is int for token in ids):
            raise _refusal("must not mix strings, token ids and other things")
        if min(ids) < 0 or max(ids) >= vocab_size:
            raise _refusal(f"token ids must lie in 0..{vocab_size - 1}")
    return list[list[int]](prompt)


def _refusal(message: str) -> ApiError:
    return ApiError(400, f"prompt: {message}", "prompt", "invalid_value")
