"""Which prompts a replica has seen, from what the scheduler itself knows: keys of a hash chain over full blocks.

The KV manager of a replica knows what is in its prefix cache; the scheduler only knows what it has sent there. A key
stands for a block's tokens and all tokens before it, so the keys of a prompt that are known from the first one on are
the prefix that the replica has computed, unless it was evicted since. What is kept is bounded by what the replica has
room for; the least recently used goes first, as in the cache itself.

The keys are Python's hashes of integers: the same in every process of a server, 64 bits wide. Two prefixes that share
one cost a wrong choice of replica and nothing else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from hashlib import blake2b

Keys = dict[int, None]
"""Keys that a replica has, least recently used first: an ordered set that serialises."""


def chain(tokens: Sequence[int], salt: bytes, block_size: int) -> Iterator[int]:
    """The keys of the full blocks of `tokens`, from the first one on. Those of tenants with different salts differ."""
    key = int.from_bytes(blake2b(salt, digest_size=7).digest()) if salt else 0
    for at in range(0, len(tokens) - block_size + 1, block_size):
        key = hash((key, *tokens[at : at + block_size]))
        yield key


def matched(keys: Sequence[int], known: Collection[int]) -> int:
    """How many of `keys` are known, from the first one on."""
    return next((i for i, key in enumerate(keys) if key not in known), len(keys))


def note(known: Keys, keys: Sequence[int], most: int) -> None:
    """`keys` have been used just now, of which no more than the first `most` are kept, and no more than `most` in all.
    A prefix counts as used later than what comes behind it, so that it is forgotten after that."""
    for key in reversed(keys[:most]):
        known.pop(key, None)
        known[key] = None
    while len(known) > most:
        del known[next(iter(known))]
