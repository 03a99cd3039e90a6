"""Request fields that are known but not supported (yet), and the values of them that ask for nothing.

A request that gives one of them any other value is refused with 400 naming the field; nothing is accepted and
ignored. Compared with their type: `logprobs: 0` asks for something where `logprobs: false` does not.
"""

from __future__ import annotations

import json
from typing import Any

from accelgen.frontend.errors import ApiError

_NOTHING: tuple[Any, ...] = (None,)
_OFF = (None, False)

_BOTH: dict[str, tuple[Any, ...]] = {
    "add_special_tokens": _NOTHING,
    "allowed_token_ids": _NOTHING,
    "bad_words": (None, []),
    "best_of": (None, 1),
    "cache_salt": _NOTHING,
    "detokenize": (None, True),
    "guided_choice": _NOTHING,
    "guided_decoding_backend": _NOTHING,
    "guided_grammar": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "include_stop_str_in_output": _OFF,
    "kv_transfer_params": _NOTHING,
    "length_penalty": (None, 1, 1.0),
    "logit_bias": (None, {}),
    "logits_processors": _NOTHING,
    "min_tokens": (None, 0),
    "priority": (None, 0),
    "prompt_logprobs": _NOTHING,
    "response_format": (None, {"type": "text"}),
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "service_tier": (None, "auto", "default"),
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "store": _OFF,
    "structured_outputs": _NOTHING,
    "truncate_prompt_tokens": _NOTHING,
    "use_beam_search": _OFF,
}

CHAT: dict[str, tuple[Any, ...]] = {
    **_BOTH,
    "add_generation_prompt": (None, True),
    "audio": _NOTHING,
    "chat_template": _NOTHING,
    "chat_template_kwargs": (None, {}),
    "continue_final_message": _OFF,
    "documents": (None, []),
    "echo": _OFF,
    "function_call": (None, "none"),
    "functions": (None, []),
    "logprobs": _OFF,
    "modalities": (None, ["text"]),
    "moderation": _NOTHING,
    "parallel_tool_calls": (None, True, False),  # about tools, which are refused
    "prediction": _NOTHING,
    "prompt_cache_retention": _NOTHING,
    "reasoning_effort": _NOTHING,
    "tool_choice": (None, "none", "auto"),  # without tools both mean: no call
    "tools": (None, []),
    "top_logprobs": (None, 0),  # only has a meaning with logprobs
    "verbosity": (None, "medium"),
    "web_search_options": _NOTHING,
}

COMPLETION: dict[str, tuple[Any, ...]] = {
    **_BOTH,
    "echo": _OFF,
    "logprobs": _NOTHING,
    "suffix": (None, ""),
}

MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": (None, []),
    "audio": _NOTHING,
    "function_call": _NOTHING,
    "name": _NOTHING,
    "reasoning": (None, ""),
    "reasoning_content": (None, ""),
    "refusal": _NOTHING,
    "tool_call_id": _NOTHING,
    "tool_calls": (None, []),
}


def drop_neutral(
    given: dict[str, Any], known: dict[str, tuple[Any, ...]], prefix: str = ""
) -> dict[str, Any]:
    """`given` without the fields of `known`. Raises ApiError 400 for one whose value asks for something."""
    kept = {}
    for name, value in given.items():
        neutral = known.get(name)
        if neutral is None:
            kept[name] = value
        elif not any(type(value) is type(one) and value == one for one in neutral):
            message = f"{prefix}{name} is not supported" + _allowed(neutral)
            raise ApiError(400, message, prefix + name, "unsupported_parameter")
    return kept


def _allowed(neutral: tuple[Any, ...]) -> str:
    values = [json.dumps(one) for one in neutral if one is not None]
    return f"; the only accepted value is {' or '.join(values)}" if values else ""
