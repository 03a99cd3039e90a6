"""Which block holds which prefix: a hash chain over full blocks, separate for each tenant.

The key of a block is the hash of its parent's key and its own tokens, so equal keys mean equal prefixes from the first
token on. The chain starts at a hash of the tenant's salt: two tenants never share a block. Who may be evicted, and
when, is the pool's business (`accelgen.kvmanager.block_pool`); only blocks whose KV is or will be computed before
anybody can read it, and whose tokens are confirmed, are ever entered (`accelgen.kvmanager.core`).
"""

from __future__ import annotations

from array import array
from hashlib import blake2b

KEY_BYTES = 16  # 128 bits: a collision takes about 2**64 different blocks


def root_key(salt: bytes) -> bytes:
    """Start of the chain of the tenant that `salt` names."""
    return blake2b(salt, digest_size=KEY_BYTES, person=b"accelgen-kv-root").digest()


def extend_chain(
    chain: list[bytes], root: bytes, tokens: array[int], block_size: int, blocks: int
) -> None:
    """Appends keys to `chain` until it covers the first `blocks` full blocks of `tokens` (4-byte items)."""
    key = chain[-1] if chain else root
    for at in range(len(chain) * block_size, blocks * block_size, block_size):
        content = tokens[at : at + block_size].tobytes()
        key = blake2b(key + content, digest_size=KEY_BYTES).digest()
        chain.append(key)


class PrefixIndex:
    """Key to block and back. A key names at most one block, a block has at most one key."""

    def __init__(self) -> None:
        self._block_of: dict[bytes, int] = {}
        self._key_of: dict[int, bytes] = {}

    def __len__(self) -> int:
        return len(self._block_of)

    def __contains__(self, block: int) -> bool:
        return block in self._key_of

    def add(self, key: bytes, block: int) -> None:
        """Enters `block` under `key`; nothing happens when another block already has that content."""
        if self._block_of.setdefault(key, block) == block:
            assert self._key_of.get(block, key) == key, (
                "a block must be forgotten before it changes"
            )
            self._key_of[block] = key

    def forget(self, block: int) -> None:
        """Removes `block`: it is about to hold something else."""
        del self._block_of[self._key_of.pop(block)]

    def find(self, key: bytes) -> int | None:
        """The block that holds the prefix `key`."""
        return self._block_of.get(key)

    def check(self) -> list[str]:
        """What is wrong with the index: nothing, if both directions agree."""
        if self._block_of == {key: block for block, key in self._key_of.items()}:
            return []
        return ["the two directions of the prefix index disagree"]
