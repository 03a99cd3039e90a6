"""Everything between a configuration and a worker that can serve: load, check, size, allocate, time.

A drafter model is loaded and checked like the model; both caches have as many blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import psutil
from msgspec import structs

from accelgen.proto.config import Config
from accelgen.proto.messages import Facts, Sample, SwapSample
from accelgen.proto.profiles import profile_path
from accelgen.worker.attention_torch import TorchPass, float32_is_faster
from accelgen.worker.core import WorkerCore
from accelgen.worker.drafting.setup import load_drafter, make_drafter, short_drafter
from accelgen.worker.hostcache import HostCache
from accelgen.worker.kvcache import KvCache
from accelgen.worker.linears import own_weights, pack_linears
from accelgen.worker.memory import (
    KvSize,
    keep_freed_memory,
    name_of,
    size_host,
    size_kv,
    verification_bytes,
)
from accelgen.worker.model import Loaded, load_model
from accelgen.worker.runner import MakePass, Runner
from accelgen.worker.selfcheck import own_logits, self_check
from accelgen.worker.swap_timing import measure_swaps
from accelgen.worker.timing import measure

ROUGH_FIT_S = 3.0
ROUGH_SWAPS_S = 0.5
SWAP_S_PER_GB = 2.0  # silence while swap space is made ready
OVERHEAD_BYTES = 600 << 20  # the budget: resident memory beyond weights and KV cache

Announce = Callable[[str, float], None]  # phase name, seconds it may stay silent


@dataclass(frozen=True)
class Backend:
    """Who computes attention; `note` says why it is not the faster one."""

    name: str
    make_pass: MakePass
    note: str = ""


@dataclass(frozen=True)
class Engine:
    """A worker ready to serve, and what others need to know of it."""

    core: WorkerCore
    facts: Facts
    check_error: float
    notes: tuple[str, ...] = ()


def start_engine(
    config: Config,
    announce: Announce = lambda _, __: None,
    progress: Callable[[float], None] = lambda _: None,
) -> Engine:
    """Raises LoadError with one clear line when the model cannot be served."""
    announce("loading weights", 600.0)
    loaded = load_model(config, progress)
    helper = load_drafter(config, loaded)
    announce("self-check", 120.0)
    ready = _make_ready(loaded, config.block_size)
    aide = None if helper is None else _make_ready(helper, config.block_size)
    kv = size_kv(
        config,
        sum(one.block_bytes(config.block_size) for one in (loaded, helper) if one is not None),
        loaded.checkpoint.max_positions,
        loaded.device,
        verification_bytes(config, loaded.vocab_size),
    )
    runner = _make_runner(loaded, ready, kv, config)
    host_blocks = size_host(config, loaded.block_bytes(config.block_size))
    if host_blocks:  # every page is touched, and on CUDA pinned
        announce("swap space", 60.0 + SWAP_S_PER_GB * config.swap_gb)
    host = HostCache(runner.cache, host_blocks) if host_blocks else None
    second = None if helper is None or aide is None else _make_runner(helper, aide, kv, config)
    drafter = make_drafter(config, second, loaded.vocab_size)
    keep_freed_memory()
    samples: list[Sample] = []
    swaps: list[SwapSample] = []
    profile = profile_path(str(loaded.checkpoint.path), str(loaded.device), name_of(loaded.dtype))
    if not config.profile_file and not profile.exists():
        announce("timing", 60.0)
        samples = measure(runner, ROUGH_FIT_S, kv.max_model_len)
        swaps = measure_swaps(host, ROUGH_SWAPS_S) if host is not None else []
    extra = ready.extra_bytes
    if helper is not None and aide is not None:
        extra += aide.extra_bytes + helper.weights_bytes
    facts = _facts(config, loaded, ready.backend.name, kv, extra, samples)
    facts = structs.replace(facts, host_blocks=host_blocks, swaps=swaps)
    notes = (ready.backend.note, kv.note, short_drafter(helper, kv))
    core = WorkerCore(runner, host=host, drafter=drafter)
    return Engine(core, facts, ready.error, tuple(note for note in notes if note))


@dataclass(frozen=True)
class _Ready:
    """A model that has passed its self-check: who computes its attention, the error found, and what its packed layers
    take on top."""

    backend: Backend
    error: float
    extra_bytes: int


def _make_ready(loaded: Loaded, block_size: int) -> _Ready:
    backend = choose_backend(loaded, block_size)
    expected = own_logits(loaded)
    extra = _prepare_for_cpu(loaded.model) if loaded.device.type == "cpu" else 0
    return _Ready(backend, self_check(loaded, backend.make_pass, expected, block_size), extra)


def _make_runner(loaded: Loaded, ready: _Ready, kv: KvSize, config: Config) -> Runner:
    cache = KvCache(loaded.shapes, kv.num_blocks, config.block_size, loaded.dtype, loaded.device)
    return Runner(loaded, cache, ready.backend.make_pass)


def _facts(
    config: Config, loaded: Loaded, backend: str, kv: KvSize, extra: int, samples: list[Sample]
) -> Facts:
    return Facts(
        model=str(loaded.checkpoint.path),
        architecture=loaded.architecture,
        device=str(loaded.device),
        dtype=name_of(loaded.dtype),
        backend=backend,
        max_model_len=kv.max_model_len,
        vocab_size=loaded.vocab_size,
        block_size=config.block_size,
        num_blocks=kv.num_blocks,
        weights_bytes=loaded.weights_bytes + extra,
        kv_bytes=kv.total_bytes,
        samples=samples,
    )


def _prepare_for_cpu(model: Any) -> int:
    extra = pack_linears(model)
    own_weights(model)
    return extra


def choose_backend(loaded: Loaded, block_size: int) -> Backend:
    """xformers on CUDA where it is installed and covers the model, torch otherwise."""
    if loaded.device.type == "cpu":
        wide = float32_is_faster(loaded.dtype, loaded.shapes[0].key_dim)
        return Backend("torch", partial(TorchPass, wide=wide))
    from accelgen.worker import attention_xformers as xformers

    reason = xformers.covers(loaded.shapes, loaded.softcap, loaded.dtype, block_size)
    if reason is None:
        return Backend("xformers", xformers.XformersPass)
    return Backend("torch", TorchPass, f"attention runs on torch, not xformers: {reason}")


def overhead_bytes(engine: Engine) -> int:
    """Resident memory beyond weights, KV cache (on a GPU both lie elsewhere) and swap space."""
    facts = engine.facts
    resident = int(psutil.Process().memory_info().rss) - host_bytes(engine)
    return resident - (facts.weights_bytes + facts.kv_bytes if facts.device == "cpu" else 0)


def host_bytes(engine: Engine) -> int:
    """Of the host's memory, for KV that is swapped out."""
    return engine.core.host.total_bytes if engine.core.host is not None else 0
