"""Timed copies of KV to the host's memory and back: from how many blocks on they are faster than computing again is for
the scheduler to say.

Blocks are taken as they come, one after the other, so that whole runs are copied: the best case, which a host that is
not fragmented has."""

from __future__ import annotations

import statistics
from collections.abc import Callable

import torch

from accelgen.proto.clocks import now_s
from accelgen.proto.messages import SwapSample
from accelgen.worker.hostcache import Copies, HostCache

REPEATS = 3


def measure_swaps(
    host: HostCache,
    budget_s: float,
    repeats: int = REPEATS,
    beat: Callable[[], None] = lambda: None,
) -> list[SwapSample]:
    """Copies 1, 2, 4, ... blocks out and back, as far as host, device and `budget_s` allow; medians of `repeats` behind
    one that warms up. What lies in the first blocks of the host is overwritten; the device's come out as they were."""
    most = min(host.num_blocks, host.cache.num_blocks)
    block_bytes = host.total_bytes // host.num_blocks
    end_s = now_s() + budget_s
    samples: list[SwapSample] = []
    blocks, last_s = 1, 0.0
    while blocks <= most and now_s() + 2 * last_s * (repeats + 1) <= end_s:
        begin_s = now_s()
        times: dict[bool, list[float]] = {True: [], False: []}
        for _ in range(repeats + 1):
            for out in (True, False):  # back comes what has gone out
                times[out].append(_run(host, blocks, out))
            beat()
        for out, seconds in times.items():
            typical_s = statistics.median(seconds[1:])
            samples.append(SwapSample(blocks, blocks * block_bytes, out, typical_s))
        last_s = (now_s() - begin_s) / (repeats + 1)
        blocks *= 2
    return samples


def _run(host: HostCache, blocks: int, out: bool) -> float:
    """Seconds from asking until all is there."""
    if host.device.type == "cuda":
        torch.cuda.synchronize(host.device)
    numbers = range(blocks)
    begin_s = now_s()
    host.copy(Copies((0,), numbers, numbers, out))
    host.finish()
    return now_s() - begin_s
