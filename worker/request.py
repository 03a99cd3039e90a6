"""What the worker knows of one request: its tokens, its block table, and what of it is computed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from accelgen.proto.messages import Held, Prompt
from accelgen.worker.packing import Span
from accelgen.worker.sampler import Counts, Draw, needs_counts


class RequestFault(ValueError):
    """An entry of a batch that does not fit the request; the text becomes the request's cause of failure."""


class Request:
    """Tokens (prompt, then sampled), block table, and number of leading tokens whose keys and values are written."""

    def __init__(self, prompt: Prompt, vocab_size: int) -> None:
        self.id, self.sampling = prompt.id, prompt.sampling
        self.tokens = list(prompt.tokens)
        self.prompt_len = len(self.tokens) - prompt.generated
        self.table: list[int] = []
        self.host: list[int] = []  # blocks of the host instead, when it has been swapped out
        self.computed = 0
        self.fault = _prompt_fault(prompt, vocab_size)
        self._seen: set[int] = set()
        self._times: Counter[int] = Counter()
        self._penalised = needs_counts(self.sampling)
        if self._penalised and not self.fault:
            self._seen.update(self.tokens)
            self._times.update(self.tokens[self.prompt_len :])

    def set_table(self, at: int, blocks: Sequence[int], start: int) -> None:
        """Replaces the table from entry `at` on. A table sent from its beginning, for an entry that starts elsewhere
        than where we are, is a new life of the request (prefix hit, preemption, fork): what it covers is computed."""
        if at > len(self.table):
            raise RequestFault(f"block table has {len(self.table)} entries, update is at {at}")
        self.table[at:] = blocks
        if at == 0 and blocks:
            self.computed = start

    def cut(self, tokens: int, block_size: int) -> None:
        """Only the KV of the first `tokens` tokens is still ours."""
        self.computed = min(self.computed, tokens)
        del (
            self.table[-(-self.computed // block_size) :],
            self.host[-(-self.computed // block_size) :],
        )

    def span(self, start: int, count: int, block_size: int) -> Span:
        """The work of one entry. Raises RequestFault when it does not continue what is computed."""
        if self.fault:
            raise RequestFault(self.fault)
        if start > self.computed:
            raise RequestFault(
                f"entry starts at {start}, but only {self.computed} tokens are computed"
            )
        end = start + count
        if count < 1 or end > len(self.tokens):
            raise RequestFault(f"entry covers [{start}, {end}) of {len(self.tokens)} tokens")
        if len(self.table) * block_size < end:
            raise RequestFault(
                f"block table of {len(self.table)} blocks does not cover {end} tokens"
            )
        return Span(self.tokens[start:end], start, self.table, end == len(self.tokens))

    def draw(self) -> Draw:
        """How the next token is sampled. Its position is its index in the sequence."""
        counts = None
        if self._penalised:
            counts = Counts(
                np.fromiter(self._seen, dtype=np.int64, count=len(self._seen)),
                np.fromiter(self._times.keys(), dtype=np.int64, count=len(self._times)),
                np.fromiter(self._times.values(), dtype=np.float32, count=len(self._times)),
            )
        return Draw(self.sampling, len(self.tokens), counts)

    def append(self, token: int) -> None:
        """A sampled token becomes part of the sequence."""
        self.tokens.append(token)
        if self._penalised:
            self._seen.add(token)
            self._times[token] += 1

    def held(self, block_size: int) -> Held:
        """For an Inventory."""
        used = -(-self.computed // block_size)
        return Held(self.id, self.computed, self.table[:used], self.host[:used])


def _prompt_fault(prompt: Prompt, vocab_size: int) -> str:
    if not prompt.tokens or prompt.generated >= len(prompt.tokens):
        return "prompt has no tokens"
    largest = max(prompt.tokens)
    if largest >= vocab_size:
        return f"token id {largest} is outside of the vocabulary of {vocab_size}"
    return ""
