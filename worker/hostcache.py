"""KV of swapped-out requests in the host's memory, and the copies there and back.

On CUDA the host's blocks are pinned, and copies run on a stream of their own, beside the forward pass: behind all that
was computed before them, one after the other. On CPU a copy is done when it has been asked for.

The device keeps a tensor per layer; the host keeps a row per block, with all layers in it. So a copy crosses the bus
once per run of blocks, and not once per run and layer: a host whose free blocks lie scattered costs as many calls as a
request has blocks, and those calls are made before the forward pass.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from accelgen.worker.faults import LoadError, mib
from accelgen.worker.kvcache import KvCache

STAGING_BYTES = 64 << 20  # of the device, for what is on its way


@dataclass(frozen=True)
class Copies:
    """Blocks `sources[i]` go to `targets[i]` for the requests `ids`; `out` of the device, or into it."""

    ids: tuple[int, ...]
    sources: Sequence[int]
    targets: Sequence[int]
    out: bool


class HostCache:
    """Blocks 0 .. num_blocks-1 of the host: row i has keys and values of all layers of a block of `cache`. Takes
    exactly as many bytes as so many blocks have. Raises LoadError when the host does not pin them."""

    def __init__(self, cache: KvCache, num_blocks: int) -> None:
        self.cache, self.num_blocks = cache, num_blocks
        self.layers = [*cache.keys, *cache.values]
        self.device = self.layers[0].device
        widths = [layer[0].numel() for layer in self.layers]
        self.rows = torch.zeros((num_blocks, sum(widths)), dtype=self.layers[0].dtype)
        self._stream = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None
        if self._stream is not None:
            pin(self.rows)
        self._under_way: deque[tuple[torch.cuda.Event, Copies]] = deque()
        self._done: list[int] = []

    @property
    def total_bytes(self) -> int:
        return self.rows.nbytes

    def copy(self, copies: Copies) -> None:
        """Begins to copy, after all work that has been given to the device so far. When it raises, nothing is under way
        any more of what it has begun."""
        if not copies.sources:
            self._done += copies.ids
        elif self._stream is None:
            self._copy_here(copies)
            self._done += copies.ids
        else:
            self._begin(self._stream, copies)

    def _copy_here(self, copies: Copies) -> None:
        sources, targets = torch.tensor(copies.sources), torch.tensor(copies.targets)
        for layer, row in parts(self.layers, self.rows):
            source, target = (layer, row) if copies.out else (row, layer)
            target.index_copy_(0, targets, source.index_select(0, sources))

    def _begin(self, stream: torch.cuda.Stream, copies: Copies) -> None:
        computing = torch.cuda.current_stream(self.device)
        with torch.inference_mode(), torch.cuda.stream(stream):
            stream.wait_stream(computing)
            try:
                for part in portions(copies, STAGING_BYTES // self.rows[0].nbytes):
                    stage(self.layers, self.rows, part)
            except Exception:
                stream.synchronize()
                raise
            event = torch.cuda.Event()
            event.record(stream)
        self._under_way.append((event, copies))

    def take_done(self, wait: bool) -> list[int]:
        """Requests whose copies are done and that have not been named yet. To `wait` means: at least for the oldest
        copy under way."""
        while self._under_way and (wait or self._under_way[0][0].query()):
            event, copies = self._under_way.popleft()
            event.synchronize()
            self._done += copies.ids
            wait = False
        done, self._done = self._done, []
        return done

    def finish(self) -> list[int]:
        """As `take_done`, of all copies, once they are done."""
        done = self.take_done(wait=True)
        while self._under_way:
            done += self.take_done(wait=True)
        return done


def pin(rows: Tensor) -> None:
    """Pins the host's memory of `rows` for as long as they live. torch's own pinned memory is rounded up to a power of
    two: up to twice as much, of what cannot be paged out."""
    cuda = torch.cuda.cudart()
    fault = int(cuda.cudaHostRegister(rows.data_ptr(), rows.nbytes, 0))
    if fault:
        raise LoadError(
            f"swap_gb: the host does not pin {mib(rows.nbytes)} (CUDA error {fault}); lower swap_gb"
        )
    weakref.finalize(rows, cuda.cudaHostUnregister, rows.data_ptr()).atexit = False


def parts(layers: Sequence[Tensor], rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Each layer, and where in `rows` [n, all layers] its share lies, shaped like it."""
    at = 0
    for layer in layers:
        width = layer[0].numel()
        yield layer, rows[:, at : at + width].view(len(rows), *layer.shape[1:])
        at += width


def portions(copies: Copies, blocks: int) -> Iterator[Copies]:
    """`copies` in pieces of at most so many blocks (at least one)."""
    blocks = max(1, blocks)
    for at in range(0, len(copies.sources), blocks):
        sources, targets = copies.sources[at : at + blocks], copies.targets[at : at + blocks]
        yield Copies(copies.ids, sources, targets, copies.out)


def stage(layers: Sequence[Tensor], rows: Tensor, copies: Copies) -> None:
    """Copies through a buffer on the device, since only whole runs of blocks travel at full speed."""
    device = layers[0].device
    on_cuda = device.type == "cuda"
    blocks = copies.sources if copies.out else copies.targets
    # Pinned, or this would wait for the copies before.
    index = torch.tensor(blocks, pin_memory=on_cuda).to(device, non_blocking=True)
    buffer = torch.empty((len(blocks), rows.shape[1]), dtype=rows.dtype, device=device)
    if copies.out:
        for layer, part in parts(layers, buffer):
            part.copy_(layer.index_select(0, index))
        for at, first, count in runs(copies.targets):
            rows[first : first + count].copy_(buffer[at : at + count], non_blocking=True)
        return
    for at, first, count in runs(copies.sources):
        buffer[at : at + count].copy_(rows[first : first + count], non_blocking=True)
    for layer, part in parts(layers, buffer):
        layer.index_copy_(0, index, part)


def runs(blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(position, first block, number) of each run of consecutive numbers in `blocks`."""
    begin = 0
    for at in range(1, len(blocks) + 1):
        if at == len(blocks) or blocks[at] != blocks[at - 1] + 1:
            yield begin, blocks[begin], at - begin
            begin = at
