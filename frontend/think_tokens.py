"""Which tokens end a model's thinking, from its tokenizer; and whether a prompt has ended it already.

Reasoning models write what they think first, up to a token of its own: `</think>` in most, which their tokenizers have
among the added tokens (special or not). Templates open the thinking at the end of the prompt, or the answer begins
with the opening token; either way an answer thinks from its first token on, unless its prompt ends in a thinking that
is over (Qwen3's templates write an empty one when thinking is switched off).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from tokenizers import Tokenizer

from accelgen.frontend.errors import quoted
from accelgen.frontend.model_files import ModelError

KNOWN_ENDS = (
    "</think>", "</thinking>", "</thought>", "</thoughts>", "</reasoning>", "</seed:think>", "[/THINK]",
    "<|END_THINKING|>", "<|end_of_thought|>", "<|/think|>",
)  # fmt: skip
"""Of public models; other names are given by `--think-tokens`."""
NOTHING = "none"
CLOSED_TAIL = 4
"""Tokens at the end of a prompt among which the mark says that nothing is thought: it and a line break or two."""


def think_end_ids(tokenizer: Tokenizer, stated: str = "") -> tuple[int, ...]:
    """The ids of the tokens that end thinking, ascending. `stated`: their texts, separated by commas; "" for those of
    KNOWN_ENDS that the tokenizer has among its added tokens; "none" for none. Raises ModelError for a text that is not
    one token."""
    if stated == NOTHING:
        return ()
    if not stated:
        added = tokenizer.get_added_tokens_decoder().items()
        return tuple(sorted(id for id, token in added if token.content in KNOWN_ENDS))
    found = {_id_of(tokenizer, text) for text in stated.split(",")}
    return tuple(sorted(found))


def is_closed(prompt: Sequence[int], end_ids: Collection[int]) -> bool:
    """Whether a prompt ends in a thinking that is over."""
    return any(token in end_ids for token in prompt[-CLOSED_TAIL:])


def _id_of(tokenizer: Tokenizer, text: str) -> int:
    text = text.strip()
    id: int | None = tokenizer.token_to_id(text) if text else None
    if id is None and text:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        id = ids[0] if len(ids) == 1 else None
    if id is None:
        raise ModelError(f"think_tokens: {quoted(text)} is not one token of this model's tokenizer")
    return id
