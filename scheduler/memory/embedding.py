"""Whose allocated but unused KV can a newcomer live in? CacheOPT's KV embedding (arXiv 2503.13773, section 3.3.1).

All running requests gain one token per iteration. While a guest with s_p prompt and s_o output tokens lives, its host
grows by s_o; what is left of the host's allocation must hold the whole guest and a buffer of b tokens:

    a_j - (u_j + s_o) - (s_p + s_o) >= b

with a_j allocated and u_j used tokens of host j. Among the hosts that can, the one with the least allocation to spare
is taken (best fit), so that large rooms are kept for large guests.

Reconstructed: a prompt that takes c chunks lets the host grow by c - 1 tokens more (with one chunk this is the paper's
inequality); KV is paged, so host and guest each need whole blocks, which the inequality alone does not see (with
blocks of one token it is the paper's); several guests of one host are judged one after the other, each with what the
ones before it have left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from accelgen.scheduler.parameters import within
from accelgen.scheduler.table import Bools, Ints

BUFFER = 8  # tokens; b is not published, this is a third party's


@dataclass(frozen=True, slots=True)
class Guest:
    """A request that is to be embedded: its tokens so far that need room (the prompt; of one that returns, its output
    too), its predicted further output, and the iterations that the former take."""

    prompt: int
    output: int
    chunks: int = 1

    def __post_init__(self) -> None:
        within("prompt", self.prompt, 1, unit="tokens")
        within("output", self.output, 1, unit="tokens")
        within("chunks", self.chunks, 1)

    @property
    def tokens(self) -> int:
        """What it will have in the cache in the end."""
        return self.prompt + self.output

    @property
    def life(self) -> int:
        """Iterations until it ends; the last one of the prompt gives the first token."""
        return self.output + self.chunks - 1

    def blocks(self, block_size: int) -> int:
        """Blocks that it takes over from its host."""
        return -(-self.tokens // block_size)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The rule with its constants: b in tokens, at least 0, and tokens per block. Raises ValueError."""

    buffer: int = BUFFER
    block_size: int = 16

    def __post_init__(self) -> None:
        within("buffer", self.buffer, 0, unit="tokens")
        within("block_size", self.block_size, 1, unit="tokens")

    def feasible(self, allocated: Ints, used: Ints, guest: Guest) -> Bools:
        """Which hosts can take the guest, [n]; `allocated` and `used` are their tokens, [n]: blocks that belong to
        other guests are not theirs."""
        own = -(-(used + guest.life) // self.block_size)
        fits: Bools = left_over(allocated, used, guest) >= self.buffer
        fits &= own + guest.blocks(self.block_size) <= allocated // self.block_size
        return fits

    def best_host(self, allocated: Ints, used: Ints, guest: Guest) -> int | None:
        """The position of the feasible host with the least left over, the first of equals; None if there is none."""
        feasible = np.flatnonzero(self.feasible(allocated, used, guest))
        if not len(feasible):
            return None
        left = left_over(allocated[feasible], used[feasible], guest)
        return int(feasible[left.argmin()])

    def assign(self, allocated: Ints, used: Ints, guests: Sequence[Guest]) -> list[int | None]:
        """The host of each guest, in the order of the queue. What one gets the next cannot have."""
        allocated = allocated.copy()
        hosts = []
        for guest in guests:
            host = self.best_host(allocated, used, guest)
            hosts.append(host)
            if host is not None:
                allocated[host] -= guest.blocks(self.block_size) * self.block_size
        return hosts


def left_over(allocated: Ints, used: Ints, guest: Guest) -> Ints:
    """Tokens of each host's allocation that neither it nor the guest will need while the guest lives, [n]; negative
    where it does not fit."""
    left: Ints = allocated - (used + guest.life) - guest.tokens
    return left
