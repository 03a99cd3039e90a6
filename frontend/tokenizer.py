"""Text to token ids with the `tokenizers` library, chat templates included; runs in the frontend's text thread.

Text of a client never becomes control tokens in a chat. Normally the rendered template is encoded as one text, which
gives exactly what transformers' `apply_chat_template` gives. When a message contains the text of a special token,
the template is rendered again with a random placeholder for each message, cut at the placeholders, and the pieces
are encoded one by one: those of the template with special tokens, those of the client as plain text. The price, for
such messages only, is that no token spans the border between template and message. A template that changes the
content it is given (beyond stripping blanks) cannot be cut; then such a message is refused.

`/v1/completions` is raw access to the model: special tokens in a prompt are special tokens there.
"""

from __future__ import annotations

import ctypes
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Encoding, Tokenizer

from accelgen.frontend.chat_template import ChatTemplate, RenderError
from accelgen.frontend.errors import ApiError, quoted
from accelgen.frontend.model_files import ModelError, ModelFiles
from accelgen.frontend.think_tokens import think_end_ids

_SHORTEST_LONG_TOKEN = (
    16  # bytes; a floor below which the bound on the length of a prompt would be too tight
)
_SLACK = 4  # normalisers may shrink a text

Message = Mapping[str, str]


class TextCodec:
    """Encodes for one model. `stop_ids`: tokens that end an answer; `think_end_ids`: that end its thinking.
    `vocab_size`: number of token ids."""

    def __init__(self, model: ModelFiles, think_tokens: str = "") -> None:
        """`think_tokens`: see `think_tokens.py`. Raises ModelError when the tokenizer or the template cannot be used,
        or one of these is no token."""
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_file(str(model.tokenizer))
        except Exception as error:  # the library raises a bare Exception
            raise ModelError(f"model: {model.tokenizer} cannot be read: {error}") from error
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.vocab_size: int = self.tokenizer.get_vocab_size(with_added_tokens=True)
        self._longest_token = max(_SHORTEST_LONG_TOKEN, *map(len, self.tokenizer.get_vocab()))
        added = self.tokenizer.get_added_tokens_decoder().values()
        self._special = {token.content for token in added if token.special}
        self._special_pattern = re.compile("|".join(map(re.escape, self._special)) or r"(?!)")
        self._folded = {
            self._fold(token.content) for token in added if token.special and token.normalized
        }
        self.stop_ids = self._stop_ids(model)
        self.think_end_ids = think_end_ids(self.tokenizer, think_tokens)
        try:
            self._template = (
                ChatTemplate(model.chat_template, model.special) if model.chat_template else None
            )
        except RenderError as error:
            raise ModelError(f"model: {error}") from error
        _return_memory()

    def encode_text(self, text: str, context_tokens: int) -> list[int]:
        """Ids of a completion prompt, with the tokens that the tokenizer adds by itself (a begin-of-sequence).

        Raises ApiError 400 when the text is not Unicode or can never fit the context."""
        self._check_length(text, context_tokens, "prompt")
        return self._encode(text, add_special_tokens=True).ids

    def encode_chat(self, messages: Sequence[Message], context_tokens: int) -> list[int]:
        """Ids of a conversation up to where the answer begins. Raises ApiError 400 naming the field."""
        if self._template is None:
            message = "this model has no chat template: use /v1/completions"
            raise ApiError(400, message, "messages", "no_chat_template")
        text = self._render(messages)
        self._check_length(text, context_tokens, "messages")
        contents = [message["content"] for message in messages]
        if not self._has_special(contents):
            return self._encode(text).ids
        return self._encode_cut(messages, contents, text)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`, special tokens included."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=False)

    def _render(self, messages: Sequence[Message]) -> str:
        assert self._template is not None
        try:
            return self._template.render(messages)
        except RenderError as error:
            raise ApiError(400, str(error), "messages", "chat_template_refused") from error

    def _encode(self, text: str, add_special_tokens: bool = False) -> Encoding:
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0]

    def _encode_plain(self, text: str) -> list[int]:
        """Ids of a text in which nothing is special. (Only the text thread encodes, so the switch is safe.)"""
        self.tokenizer.encode_special_tokens = True
        try:
            return self._encode(text).ids
        finally:
            self.tokenizer.encode_special_tokens = False

    def _encode_cut(
        self, messages: Sequence[Message], contents: Sequence[str], text: str
    ) -> list[int]:
        """See the module: template and messages encoded apart."""
        nonce = secrets.token_hex(8)
        marks = [f"\ue000{nonce}{index}\ue001" for index in range(len(messages))]
        marked = self._render(
            [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
        )
        pieces = re.split(f"\ue000{nonce}(\\d+)\ue001", marked)
        for variant in (contents, [content.strip() for content in contents]):
            filled = [
                variant[int(piece)] if index % 2 else piece for index, piece in enumerate(pieces)
            ]
            if "".join(filled) == text:
                break
        else:
            raise self._cannot_cut(contents)
        ids: list[int] = []
        for index, piece in enumerate(filled):
            ids += self._encode_plain(piece) if index % 2 else self._encode(piece).ids
        return ids

    def _cannot_cut(self, contents: Sequence[str]) -> ApiError:
        index = next((i for i, one in enumerate(contents) if self._has_special([one])), 0)
        found = self._special_pattern.search(contents[index])
        shown = quoted(found.group()) if found else "a control token"
        param = f"messages.{index}.content"
        message = f"{param} contains {shown}, which this model's chat template cannot pass as text"
        return ApiError(400, message, param, "control_token")

    def _has_special(self, contents: Sequence[str]) -> bool:
        """Whether the text of a special token occurs, also across the border of messages that follow each other
        with nothing but blanks between them, or in the normalised text."""
        for joined in ("".join(contents), "".join(content.strip() for content in contents)):
            if self._special_pattern.search(joined):
                return True
        if not self._folded:
            return False
        folded = self._fold("".join(contents))
        return any(one in folded for one in self._folded)

    def _fold(self, text: str) -> str:
        normalizer = self.tokenizer.normalizer
        return text if normalizer is None else normalizer.normalize_str(text)

    def _check_length(self, text: str, context_tokens: int, param: str) -> None:
        """Refuses what cannot fit before time and memory go into encoding it."""
        most = context_tokens * self._longest_token * _SLACK
        if len(text) > most:
            message = (
                f"the prompt has {len(text)} characters, which cannot fit"
                f" the context of {context_tokens} tokens"
            )
            raise ApiError(400, message, param, "context_length_exceeded")

    def _stop_ids(self, model: ModelFiles) -> tuple[int, ...]:
        named = (self.tokenizer.token_to_id(text) for text in model.eos_texts)
        found = {*model.eos_ids, *(one for one in named if one is not None)}
        return tuple(sorted(found))


def _return_memory() -> None:
    """Gives freed memory back to the system: parsing a large vocabulary leaves about half of its peak behind."""
    libc: Any = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # glibc only
        libc.malloc_trim(0)
