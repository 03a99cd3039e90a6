"""What the worker knows of one request: its tokens, its block table, and what of it is computed.

The worker owns the newest token. A plan that was made while drafted tokens of the request were in flight counts all of
them as accepted; so its entry starts too late by as many as were not, and is moved to where the request really is.
Nothing else may start elsewhere than where the request is, or before.
"""

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
        self._rejected = 0  # drafts of its last entry that were not accepted
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
            self.computed, self._rejected = start, 0

    def cut(self, tokens: int, block_size: int) -> None:
        """Only the KV of the first `tokens` tokens is still ours."""
        self.computed = min(self.computed, tokens)
        del (
            self.table[-(-self.computed // block_size) :],
            self.host[-(-self.computed // block_size) :],
        )
        self._rejected = 0

    def span(self, start: int, count: int, block_size: int) -> Span:
        """The work of one entry. Raises RequestFault when it does not continue what is computed."""
        if self.fault:
            raise RequestFault(self.fault)
        if count == 1 and self._rejected and start == self.computed + self._rejected:
            start = self.computed
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
        return Span(self.tokens[start:end], start, self.table, int(end == len(self.tokens)))

    def draw(self, ahead: Sequence[int] = ()) -> Draw:
        """How the next token is sampled, or the one that follows if the tokens `ahead` come first. Its position is its
        index in the sequence."""
        counts = None
        if self._penalised:
            seen, times = self._seen, self._times
            if ahead:
                seen, times = seen.union(ahead), times + Counter(ahead)
            counts = Counts(
                np.fromiter(seen, dtype=np.int64, count=len(seen)),
                np.fromiter(times.keys(), dtype=np.int64, count=len(times)),
                np.fromiter(times.values(), dtype=np.float32, count=len(times)),
            )
        return Draw(self.sampling, len(self.tokens) + len(ahead), counts)

    def extend(self, tokens: Sequence[int], rejected: int) -> None:
        """Sampled tokens become part of the sequence; all but the newest are computed. `rejected`: by how many more
        tokens it would have grown if all its drafts had been accepted."""
        self.tokens.extend(tokens)
        if self._penalised:
            self._seen.update(tokens)
            self._times.update(tokens)
        self.computed, self._rejected = len(self.tokens) - 1, rejected

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
