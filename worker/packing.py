"""From the spans of one iteration to one packed row: which token lies where, and who attends to what.

A span is the part of one request that this iteration processes. Spans are laid out as: decodes (one token each) by
growing context, then prefill chunks without a past by growing length, then those with one: every attention group is a
contiguous slice of rows. A decode whose drafts are verified is a short chunk with a past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

PAD_SHARE = 0.25  # a decode group may be padded by this share of its blocks
PAD_FREE_BLOCKS = 16  # and by this many blocks whatever its size: one more kernel call costs more


@dataclass(frozen=True)
class Span:
    """Tokens [start, start + len(tokens)) of one request, and the block table that covers them. Logits are wanted at
    the last `logits` of them: none amid a prompt, one for the next token, more where drafted tokens are verified."""

    tokens: Sequence[int]
    start: int
    table: Sequence[int]
    logits: int = 1

    @property
    def samples(self) -> bool:
        """Whether it has any logits to sample from."""
        return self.logits > 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


def split(spans: Sequence[Span], limit: int) -> list[list[tuple[int, Span]]]:
    """Cuts `spans` into runs of at most `limit` tokens, in order; each part comes with the index of its span.

    A span may be cut, too: its later part is in a later run, and logits come with the tokens they belong to."""
    runs: list[list[tuple[int, Span]]] = [[]]
    room = limit
    for index, span in enumerate(spans):
        lo, count = 0, len(span.tokens)
        while lo < count:
            if room == 0:
                runs.append([])
                room = limit
            hi = min(count, lo + room)
            wanted = max(0, hi - max(lo, count - span.logits))
            runs[-1].append((index, Span(span.tokens[lo:hi], span.start + lo, span.table, wanted)))
            room -= hi - lo
            lo = hi
    return runs


@dataclass(frozen=True)
class DecodeGroup:
    """Rows [lo, hi) of the packed row, one token of one request each; `ends` are context lengths."""

    lo: int
    hi: int
    ends: tuple[int, ...]
    tables: tuple[Sequence[int], ...]


@dataclass(frozen=True)
class ChunkGroup:
    """`members` prefill chunks of `count` tokens each in rows [lo, lo + members * count).

    Chunks at start 0 are grouped by equal length; a chunk with a past (start > 0) is a group of its own."""

    lo: int
    members: int
    count: int
    start: int
    table: Sequence[int]

    @property
    def hi(self) -> int:
        return self.lo + self.members * self.count


@dataclass(frozen=True)
class Packed:
    """One iteration, ready for the model: all tensors on the model's device.

    `ids`, `positions`, `slots` are int64 [T]; `sample_rows` int64 [S] are the rows whose logits are needed, and
    `sample_order[j]` is the index of the span that row j belongs to; rows of one span are in the order of its
    tokens."""

    ids: Tensor
    positions: Tensor
    slots: Tensor
    sample_rows: Tensor
    sample_order: tuple[int, ...]
    decodes: tuple[DecodeGroup, ...]
    chunks: tuple[ChunkGroup, ...]
    spans: tuple[Span, ...] = field(repr=False)  # in the order of the rows


def pack(
    spans: Sequence[Span], block_size: int, device: torch.device, group_tokens: int = 1 << 30
) -> Packed:
    """Lays out `spans` (at least one, none empty); decode groups have at most `group_tokens` of padded context, or one
    member."""
    assert spans and all(len(span.tokens) > 0 for span in spans)
    order = sorted(range(len(spans)), key=lambda i: _layout_key(spans[i]))
    ordered = tuple(spans[i] for i in order)
    ids = np.concatenate([np.asarray(span.tokens, dtype=np.int64) for span in ordered])
    positions = np.concatenate([np.arange(span.start, span.end) for span in ordered])
    slots = np.concatenate([_slots(span, block_size) for span in ordered])
    ends = np.cumsum([len(span.tokens) for span in ordered]).tolist()
    wanted = [
        (row, order[at])
        for at, (span, end) in enumerate(zip(ordered, ends, strict=True))
        for row in range(end - span.logits, end)
    ]
    decode_count = sum(1 for span in ordered if len(span.tokens) == 1)
    return Packed(
        torch.from_numpy(ids).to(device),
        torch.from_numpy(positions).to(device),
        torch.from_numpy(slots).to(device),
        torch.tensor([row for row, _ in wanted], dtype=torch.int64).to(device),
        tuple(index for _, index in wanted),
        tuple(_group_decodes(ordered[:decode_count], block_size, group_tokens)),
        tuple(_group_chunks(ordered[decode_count:], decode_count)),
        ordered,
    )


def _layout_key(span: Span) -> tuple[bool, bool, int, int]:
    """Decodes first, by context; then chunks without a past, by length; then those with one, by length and context."""
    decode = len(span.tokens) == 1
    length = span.end if decode else len(span.tokens)
    return (not decode, not decode and span.start > 0, length, span.end)


def _slots(span: Span, block_size: int) -> np.ndarray:
    first = span.start // block_size
    table = np.asarray(span.table[first : -(-span.end // block_size)], dtype=np.int64)
    positions = np.arange(span.start, span.end)
    slots: np.ndarray = table[positions // block_size - first] * block_size + positions % block_size
    return slots


def _group_decodes(spans: Sequence[Span], block_size: int, group_tokens: int) -> list[DecodeGroup]:
    """Cuts decodes, sorted by context, from the longest down, so that padding and size stay small."""
    blocks = [-(-span.end // block_size) for span in spans]
    groups: list[DecodeGroup] = []
    hi = len(spans)
    while hi > 0:
        lo, total = hi - 1, blocks[hi - 1]
        while lo > 0:
            padded = blocks[hi - 1] * (hi - lo + 1)
            padding = padded - (total + blocks[lo - 1])
            too_large = padded * block_size > group_tokens
            if too_large or padding > max(PAD_FREE_BLOCKS, PAD_SHARE * total):
                break
            lo, total = lo - 1, total + blocks[lo - 1]
        members = spans[lo:hi]
        groups.append(
            DecodeGroup(
                lo,
                hi,
                tuple(span.end for span in members),
                tuple(span.table for span in members),
            )
        )
        hi = lo
    return groups[::-1]


def _group_chunks(spans: Sequence[Span], first_row: int) -> list[ChunkGroup]:
    groups: list[ChunkGroup] = []
    row = first_row
    for span in spans:
        count = len(span.tokens)
        last = groups[-1] if groups else None
        if last and span.start == last.start == 0 and last.count == count:
            groups[-1] = ChunkGroup(last.lo, last.members + 1, count, 0, ())
        else:
            groups.append(ChunkGroup(row, 1, count, span.start, span.table))
        row += count
    return groups
