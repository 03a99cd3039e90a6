"""The shapes of OpenAI's answers: whole bodies and stream chunks, for chat and for completions.

Golden rules from the specification and from clients that break otherwise: `finish_reason` is
present and null until the end; with include_usage every chunk has `usage`, null except in the last one, which has no
choices; the role comes once, in the first chunk of a choice.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Literal

import msgspec
from msgspec import UNSET, Struct, UnsetType

from accelgen.frontend.events import Ended, Outcome, Text
from accelgen.frontend.objectives import Verdict

DONE = b"data: [DONE]\n\n"
_ENCODER = msgspec.json.Encoder()


class PromptDetails(Struct, frozen=True):
    cached_tokens: int


class Usage(Struct, frozen=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class Said(Struct, frozen=True):
    role: str
    content: str
    refusal: None = None


class Delta(Struct, frozen=True):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChoice(Struct, frozen=True):
    index: int
    message: Said
    finish_reason: str
    logprobs: None = None


class ChatChunkChoice(Struct, frozen=True):
    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: None = None


class TextChoice(Struct, frozen=True):
    index: int
    text: str
    finish_reason: str | None = None
    logprobs: None = None


class Answer(Struct, frozen=True):
    """A whole body or one chunk, told apart by `object`."""

    id: str
    object: str
    created: int
    model: str
    choices: Sequence[ChatChoice | ChatChunkChoice | TextChoice]
    system_fingerprint: None = None
    usage: Usage | None | UnsetType = UNSET
    accelgen: Verdict | UnsetType = UNSET


def usage_of(outcomes: Sequence[Outcome], n: int) -> Usage:
    """`outcomes` by choice index; the n choices of a prompt share it, so it counts once."""
    prompt = sum(one.prompt_tokens for one in outcomes[::n])
    completion = sum(one.completion_tokens for one in outcomes)
    cached = sum(one.cached_tokens for one in outcomes[::n])
    return Usage(prompt, completion, prompt + completion, PromptDetails(cached))


class Answers:
    """Builds everything that is said about one call."""

    def __init__(self, kind: Literal["chat", "completion"], id: str, model: str) -> None:
        self._chat = kind == "chat"
        self.id, self._model = id, model
        self._created = int(time.time())
        self._object = "chat.completion" if self._chat else "text_completion"
        self._chunk_object = "chat.completion.chunk" if self._chat else "text_completion"
        self._begun: set[int] = set()

    def whole(
        self, texts: Sequence[str], ends: Sequence[Ended], usage: Usage, verdict: Verdict
    ) -> bytes:
        """The body of an answer that is not streamed. Both sequences by choice index."""
        pairs = enumerate(zip(texts, ends, strict=True))
        choices: list[ChatChoice | TextChoice]
        if self._chat:
            choices = [
                ChatChoice(index, Said("assistant", text), end.reason)
                for index, (text, end) in pairs
            ]
        else:
            choices = [TextChoice(index, text, end.reason) for index, (text, end) in pairs]
        return _ENCODER.encode(
            Answer(
                self.id, self._object, self._created, self._model, choices,
                usage=usage, accelgen=verdict,
            )
        )  # fmt: skip

    def text(self, event: Text, usage: Usage | None | UnsetType) -> bytes:
        """The chunk of new text."""
        return self._chunk([self._piece(event.choice, event.text, None)], usage)

    def ended(
        self, event: Ended, usage: Usage | None | UnsetType, verdict: Verdict | UnsetType
    ) -> bytes:
        """The chunk that ends a choice: the text held back (chat: in a chunk of its own) and the finish reason."""
        chunks = []
        if self._chat and (event.text or event.choice not in self._begun):
            chunks.append(self._chunk([self._piece(event.choice, event.text, None)], usage))
        last = self._piece(event.choice, "" if self._chat else event.text, event.reason)
        chunks.append(self._chunk([last], usage, verdict))
        return b"".join(chunks)

    def usage(self, usage: Usage, verdict: Verdict) -> bytes:
        """The chunk without choices at the very end."""
        return self._chunk([], usage, verdict)

    def _piece(self, choice: int, text: str, reason: str | None) -> ChatChunkChoice | TextChoice:
        if not self._chat:
            return TextChoice(choice, text, reason)
        if reason is not None:
            return ChatChunkChoice(choice, Delta(), reason)
        if choice in self._begun:
            return ChatChunkChoice(choice, Delta(content=text))
        self._begun.add(choice)
        return ChatChunkChoice(choice, Delta("assistant", text))

    def _chunk(
        self,
        choices: Sequence[ChatChunkChoice | TextChoice],
        usage: Usage | None | UnsetType,
        verdict: Verdict | UnsetType = UNSET,
    ) -> bytes:
        answer = Answer(
            self.id, self._chunk_object, self._created, self._model, choices,
            usage=usage, accelgen=verdict,
        )  # fmt: skip
        return b"data: " + _ENCODER.encode(answer) + b"\n\n"
