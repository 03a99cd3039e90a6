"""KV of swapped-out requests in the host's memory, and the copies there and back.

On CUDA the host's blocks are pinned, and copies run on a stream of their own, beside the forward pass: behind all that
was computed before them, one after the other. (torch rounds each pinned tensor up to a power of two of bytes.) On CPU a
copy is done when it has been asked for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accelgen.worker.kvcache import KvCache


@dataclass(frozen=True)
class Copies:
    """Blocks `sources[i]` go to `targets[i]` for the requests `ids`; `out` of the device, or into it."""

    ids: tuple[int, ...]
    sources: Sequence[int]
    targets: Sequence[int]
    out: bool


class HostCache:
    """Blocks 0 .. num_blocks-1 of the host, shaped like those of `cache`: for each layer keys and values."""

    def __init__(self, cache: KvCache, num_blocks: int) -> None:
        self.cache, self.num_blocks = cache, num_blocks
        self.device = cache.keys[0].device
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        self._pairs = [(one, self._like(one)) for one in (*cache.keys, *cache.values)]
        self._under_way: deque[tuple[torch.cuda.Event, Copies]] = deque()
        self._done: list[int] = []

    def _like(self, tensor: Tensor) -> Tensor:
        pinned = self._stream is not None
        shape = (self.num_blocks, *tensor.shape[1:])
        return torch.zeros(shape, dtype=tensor.dtype, pin_memory=pinned)

    @property
    def total_bytes(self) -> int:
        return sum(host.nbytes for _, host in self._pairs)

    def copy(self, copies: Copies) -> None:
        """Begins to copy, after all work that has been given to the device so far."""
        if not copies.sources:
            self._done += copies.ids
        elif self._stream is None:
            for device, host in self._pairs:
                _copy_here(device, host, copies)
            self._done += copies.ids
        else:
            self._begin(self._stream, copies)

    def _begin(self, stream: torch.cuda.Stream, copies: Copies) -> None:
        blocks = copies.sources if copies.out else copies.targets
        computing = torch.cuda.current_stream(self.device)
        with torch.inference_mode(), torch.cuda.stream(stream):
            stream.wait_stream(computing)
            # Pinned, or this would wait for the copies before.
            index = torch.tensor(blocks, pin_memory=True).to(self.device, non_blocking=True)
            for device, host in self._pairs:
                _copy_beside(device, host, copies, index)
            event = torch.cuda.Event()
            event.record(stream)
        self._under_way.append((event, copies))

    def take_done(self, wait: bool) -> list[int]:
        """Requests whose copies are done and that have not been named yet; all there are if we `wait` for them."""
        while self._under_way and (wait or self._under_way[0][0].query()):
            event, copies = self._under_way.popleft()
            event.synchronize()
            self._done += copies.ids
        done, self._done = self._done, []
        return done


def _copy_here(device: Tensor, host: Tensor, copies: Copies) -> None:
    source, target = (device, host) if copies.out else (host, device)
    rows = source.index_select(0, torch.tensor(copies.sources))
    target.index_copy_(0, torch.tensor(copies.targets), rows)


def _copy_beside(device: Tensor, host: Tensor, copies: Copies, index: Tensor) -> None:
    """Through a buffer on the device, since only whole runs of blocks travel at full speed."""
    if copies.out:
        rows = device.index_select(0, index)
        for at, first, count in runs(copies.targets):
            host[first : first + count].copy_(rows[at : at + count], non_blocking=True)
        return
    rows = torch.empty((len(index), *device.shape[1:]), dtype=device.dtype, device=device.device)
    for at, first, count in runs(copies.sources):
        rows[at : at + count].copy_(host[first : first + count], non_blocking=True)
    device.index_copy_(0, index, rows)


def runs(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(position, first block, number) of each run of consecutive numbers in `blocks`."""
    begin = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1:
            yield begin, blocks[begin], at - begin
            begin = at
