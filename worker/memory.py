"""Memory arithmetic: what is free, what the weights need, and how many KV blocks that leaves."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from accelgen.proto.config import NGRAM, Config
from accelgen.worker.faults import LoadError, mib

CPU_SHARE = 0.25  # of the memory free after loading: others live on this machine, too
TOKENS_PER_SEQ = 512  # enough for max_num_seqs conversations of this length, on CPU
LONGEST_REQUESTS = 4  # or for this many of the longest allowed
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # glibc's malloc.h
CUDA_CONTEXT = 512 << 20  # what a process takes of a GPU before it has allocated anything
CPU_RESERVE = 600 << 20  # interpreter, libraries, activations


@dataclass(frozen=True)
class KvSize:
    """How large the KV cache becomes, and the longest request it admits."""

    num_blocks: int
    block_bytes: int
    max_model_len: int
    note: str = ""

    @property
    def total_bytes(self) -> int:
        return self.num_blocks * self.block_bytes


def available_bytes(device: torch.device) -> int:
    """Bytes this process may still take: of the GPU, or of the machine and the control group it runs in."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit = _cgroup_number("memory.max")
    used = _cgroup_number("memory.current")
    return free if limit is None or used is None else max(0, min(free, limit - used))


def _cgroup_number(name: str) -> int | None:
    try:
        text = (Path("/sys/fs/cgroup") / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def keep_freed_memory() -> None:
    """Tells the C library to keep large freed blocks for the next iteration.

    Otherwise every large intermediate tensor is mapped, faulted in page by page and unmapped again, in every layer:
    measured at a sixth of the time of a prefill of 8,192 tokens. To be called after what stays is allocated."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # glibc only
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def check_weights_fit(
    parameters: int, dtype: torch.dtype, device: torch.device, model: str
) -> None:
    """Raises LoadError with both numbers when the weights are larger than what is free."""
    reserve = CPU_RESERVE if device.type == "cpu" else 0
    needed = parameters * dtype.itemsize + reserve
    free = available_bytes(device)
    if needed > free:
        raise LoadError(
            f"model {model}: not enough memory: {mib(needed)} needed"
            f" ({parameters:,} parameters in {name_of(dtype)}), {mib(free)} free on {device.type}"
        )


def name_of(dtype: torch.dtype) -> str:
    """ "float32" of torch.float32."""
    return str(dtype).removeprefix("torch.")


def verification_bytes(config: Config, vocab_size: int) -> int:
    """What the largest verification of drafts needs beyond CPU_RESERVE on a GPU: for each decode a row of logits for
    its own token and for each draft, as they come (2 bytes a value), in float32, and as scores and weights of the
    sampler. Rejection sampling has the drafter's distribution and the model's in float64, too, the first one twice
    while it is put together."""
    if not config.drafter:
        return 0
    decodes = min(
        config.max_num_seqs, config.max_num_batched_tokens // (1 + config.max_draft_tokens)
    )
    rows = max(1, decodes) * (1 + config.max_draft_tokens)
    rejection = config.draft_sampling == "rejection" and config.drafter != NGRAM
    return rows * vocab_size * (16 + 24 * rejection)


def size_kv(
    config: Config, block_bytes: int, max_positions: int, device: torch.device, reserve: int = 0
) -> KvSize:
    """Number of KV blocks and the longest request. `reserve`: bytes of a GPU that are kept back for other things than
    those that every step needs. Raises LoadError when one longest request does not fit."""
    free = available_bytes(device)
    wanted_len = config.max_model_len or max_positions
    if wanted_len > max_positions:
        raise LoadError(
            f"max_model_len: {wanted_len} is more than the {max_positions} positions the model is exact for"
        )
    if config.kv_blocks:
        blocks = config.kv_blocks
        if blocks * block_bytes > free:
            raise LoadError(
                f"kv_blocks: {blocks} blocks need {mib(blocks * block_bytes)}, {mib(free)} free on {device.type}"
            )
    else:
        blocks = _automatic_bytes(config, block_bytes, wanted_len, free, device, reserve)
        blocks //= block_bytes
    return _with_length(config, blocks, block_bytes, wanted_len)


def size_host(config: Config, block_bytes: int) -> int:
    """Number of KV blocks that are kept in the host's memory for who is swapped out. Raises LoadError when it does not
    have them."""
    if config.preemption != "swap":
        return 0
    wanted = int(config.swap_gb * 1e9)
    blocks = wanted // block_bytes
    if not blocks:
        raise LoadError(f"swap_gb: {config.swap_gb:g} GB hold no block of {block_bytes:,} bytes")
    free = available_bytes(torch.device("cpu"))
    if wanted > free:
        raise LoadError(
            f"swap_gb: {config.swap_gb:g} GB are {mib(wanted)}, {mib(free)} free in the host's memory"
        )
    return blocks


def _automatic_bytes(
    config: Config, block_bytes: int, max_len: int, free: int, device: torch.device, reserve: int
) -> int:
    if device.type == "cuda" and config.replicas > 1:
        budget = _share_of_gpu(config, block_bytes, device)
    elif device.type == "cuda":
        total = int(torch.cuda.mem_get_info(device)[1])
        budget = int(total * config.gpu_memory_utilization) - (total - free)
        budget -= CPU_RESERVE + reserve  # activations of one step
    else:
        tokens = max(config.max_num_seqs * TOKENS_PER_SEQ, LONGEST_REQUESTS * max_len)
        enough = -(-tokens // config.block_size) * block_bytes
        budget = min(enough, int(free * CPU_SHARE))
    if config.kv_memory_bytes:
        budget = min(budget, config.kv_memory_bytes)
    return max(0, budget)


def _share_of_gpu(config: Config, block_bytes: int, device: torch.device) -> int:
    """What one of several replicas on a GPU may take for its KV: they start together, so that how much is free says
    nothing; each has an equal share of what may be used. Raises LoadError with the numbers if that is used up."""
    total = int(torch.cuda.mem_get_info(device)[1])
    share = int(total * config.gpu_memory_utilization) // config.replicas
    taken = int(torch.cuda.memory_reserved(device)) + CUDA_CONTEXT + CPU_RESERVE
    if share - taken < block_bytes:
        raise LoadError(
            f"replicas: {config.replicas} on one GPU have {mib(share)} each of {mib(total)}"
            f" (gpu_memory_utilization {config.gpu_memory_utilization:g}); weights, the process and"
            f" activations need {mib(taken)}, and no KV block is left"
        )
    return share - taken


def _with_length(config: Config, blocks: int, block_bytes: int, wanted_len: int) -> KvSize:
    needed = -(-wanted_len // config.block_size)
    if blocks >= needed:
        return KvSize(blocks, block_bytes, wanted_len)
    if config.max_model_len or blocks < 1:
        raise LoadError(
            f"KV cache: one request of {wanted_len} tokens needs {needed} blocks ({mib(needed * block_bytes)}),"
            f" there is room for {blocks} ({mib(blocks * block_bytes)}); lower max_model_len or raise kv_blocks"
        )
    fits = blocks * config.block_size
    note = f"max_model_len lowered from {wanted_len} to {fits}: the KV cache has {blocks} blocks"
    return KvSize(blocks, block_bytes, fits, note)
