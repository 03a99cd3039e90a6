"""From token ids to text, token by token, and the search for stop strings in it."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

_CONTEXT_TOKENS = 6  # tokens before the first one that can influence its text (a leading space)
_MAX_HELD_TOKENS = 16  # a character has at most 4 bytes; whoever holds more holds garbage


class Detokenizer:
    """Text of a growing list of tokens. A character spread over several tokens comes out when it is whole.

    `prompt`: what was there before, so that a space at the border is not lost; () where a text begins anew."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._context = list(prompt[-_CONTEXT_TOKENS:])
        if tokenizer.decode(self._context, skip_special_tokens=True).endswith("\ufffd"):
            self._context = []  # the prompt ends within a character: the stream would repeat its context
        self._held: list[int] = []
        self._stream = DecodeStream(ids=self._context, skip_special_tokens=True)

    def push(self, token: int) -> str:
        """The text that `token` completes, often "" """
        self._held.append(token)
        try:
            text = self._stream.step(self._tokenizer, token)
        except Exception as error:  # the library raises a bare Exception
            if "prefix" not in str(error).lower():
                raise
            return self.flush()  # its window no longer fits (decoders that rewrite earlier text)
        if text is None:
            return self.flush() if len(self._held) >= _MAX_HELD_TOKENS else ""
        self._context, self._held = self._held, []
        return text

    def flush(self) -> str:
        """The text of what is held back, incomplete characters as U+FFFD. Decoding may go on afterwards."""
        if not self._held:
            return ""
        before = self._tokenizer.decode(self._context, skip_special_tokens=True)
        both = self._tokenizer.decode(self._context + self._held, skip_special_tokens=True)
        self._context, self._held = self._held, []
        # The stream needs a context that ends with a whole character.
        whole = not both.endswith("\ufffd")
        self._stream = DecodeStream(ids=self._context if whole else [], skip_special_tokens=True)
        return both[len(before) :]


class StopStrings:
    """Cuts a growing text before the stop string whose match is complete first (of those the longest).

    One automaton per stop string (Knuth-Morris-Pratt), so the outcome does not depend on how the text is split. Text
    that may turn out to be the beginning of a stop string is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = sorted(set(stops), key=len, reverse=True)
        self._borders = [_borders(stop) for stop in self._stops]
        self._states = [0] * len(self._stops)
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """The text that may be shown now, and whether a stop string was found (then it is the last text)."""
        if not self._stops:
            return text, False
        held = self._held + text
        for position, char in enumerate(text, len(self._held) + 1):
            for index, stop in enumerate(self._stops):
                state, borders = self._states[index], self._borders[index]
                while state and stop[state] != char:
                    state = borders[state - 1]
                state += stop[state] == char
                if state == len(stop):
                    self._held = ""
                    return held[: position - state], True
                self._states[index] = state
        shown = len(held) - max(self._states)
        self._held = held[shown:]
        return held[:shown], False

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _borders(stop: str) -> list[int]:
    """For each prefix of `stop` the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[index] != stop[length]:
            length = borders[length - 1]
        length += stop[index] == stop[length]
        borders[index] = length
    return borders
