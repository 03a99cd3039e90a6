"""What can be known before anything is started: every check here is fast, imports no torch, and ends in one line."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from accelgen.proto.config import NGRAM, Config
from accelgen.proto.key_file import KeyFileError, read_keys
from accelgen.proto.policies import (
    MEMORY_GROUP,
    brought_memory,
    params_fault,
    routing_fault,
    unknown_memory,
    unknown_policy,
)
from accelgen.supervisor.checkpoint import BUNDLED, Checkpoint, locate, open_checkpoint
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.linux import available_memory_bytes, has_cuda_driver

_LEAST_BLOCKS = 2  # with one block there is room for a prompt or an answer, hardly for both
# What a replica takes on a CPU beside weights and KV cache, once it serves: 340 MiB of a worker's own (torch, buffers
# of iterations) and 20 MiB of a KV manager's were measured. Libraries are shared and not in it.
REPLICA_BYTES = 384 << 20
KV_SHARE = (
    0.5  # of what is left, for the caches of several replicas; one alone is sized by its worker
)


def check(config: Config) -> tuple[Config, Checkpoint]:
    """`config` with the folders of model and drafter, and the model's name, filled in, and the checkpoint. Raises
    StartError."""
    check_policy(config.policy)
    check_params(config.policy, config.policy_params)
    check_memory_policy(config.memory, config.memory_params)
    config = name_memory(config)
    check_routing(config.routing)
    _check_key_files(config)
    _check_profile(config.profile_file)
    _check_device(config.device, config.dtype)
    folder = locate(config.model)
    checkpoint = open_checkpoint(folder)
    check_lengths(config, checkpoint)
    drafter = open_drafter(config.drafter, checkpoint)
    models = [checkpoint] if drafter is None else [checkpoint, drafter]
    config = share_memory(config, check_memory(config, *models), *models)
    check_swap(config, *models)
    hub_name = "" if folder.name == BUNDLED or Path(config.model).is_dir() else config.model
    name = config.served_model_name or Path(hub_name or folder).name
    known = {"model": str(folder), "served_model_name": name}
    if drafter is not None:
        known["drafter"] = str(drafter.folder)
    return msgspec.structs.replace(config, **known), checkpoint


def check_policy(policy: str) -> None:
    """Raises StartError (status 2) with near matches if no installed package offers `policy`."""
    if fault := unknown_policy(policy):
        raise StartError(f"--policy: {fault}", status=2)


def check_params(policy: str, params: dict[str, Any]) -> None:
    """Raises StartError (status 2) if the installed `policy` does not take `params`."""
    if fault := params_fault(policy, params):
        raise StartError(f"--policy-param: {fault}", status=2)


def open_drafter(name: str, model: Checkpoint) -> Checkpoint | None:
    """The checkpoint of a drafter model, None if there is to be none. Raises StartError, also if its configuration has
    another number of tokens than the model's, unless both have the same tokenizer (then one has more rows than tokens);
    that the tokens are the same ones the worker sees."""
    if name in ("", NGRAM):
        return None
    try:
        drafter = open_checkpoint(locate(name))
    except StartError as error:
        near = not Path(name).exists() and difflib.get_close_matches(name.lower(), [NGRAM])
        hint = f"; did you mean {NGRAM}?" if near else ""
        raise StartError(f"--drafter: {error}{hint}", status=error.status) from error
    own, other = drafter.vocab_size, model.vocab_size
    if own and other and own != other and not _same_tokenizer(drafter, model):
        raise StartError(
            f"--drafter: {name} has another vocabulary than the model: {own:,} token ids, not {other:,}",
            status=2,
        )
    return drafter


def _same_tokenizer(drafter: Checkpoint, model: Checkpoint) -> bool:
    try:
        own, other = ((one.folder / "tokenizer.json").read_bytes() for one in (drafter, model))
    except OSError:
        return False
    return own == other


def name_memory(config: Config) -> Config:
    """`config` with the memory policy that the policy brings along, where parameters are stated of none: who tunes it
    has chosen it, so that it stays when another policy takes over. Raises StartError (status 2) if it does not take
    them."""
    if config.memory or not config.memory_params:
        return config
    memory, fault = brought_memory(config.policy, config.policy_params, config.memory_params)
    if fault:
        raise StartError(f"--memory-param: {fault}", status=2)
    return msgspec.structs.replace(config, memory=memory)


def check_memory_policy(name: str, params: dict[str, Any]) -> None:
    """Raises StartError (status 2), with near matches if no installed package offers the memory policy `name`, or if it
    does not take `params`. "" is the policy's own."""
    if name and (fault := unknown_memory(name)):
        raise StartError(f"--memory: {fault}", status=2)
    if name and (fault := params_fault(name, params, MEMORY_GROUP)):
        raise StartError(f"--memory-param: {fault}", status=2)


def check_routing(routing: str) -> None:
    """Raises StartError (status 2), with near matches if no installed package offers `routing`, or if it does not take
    the parameters. "" leaves the choice of replicas to the policy."""
    if routing and (fault := routing_fault(routing)):
        raise StartError(f"--routing: {fault}", status=2)


def check_lengths(config: Config, checkpoint: Checkpoint) -> None:
    """Raises StartError (status 2) with the numbers if the longest request is more than the model allows or than the
    stated number of KV blocks holds, or if these are too few for anything."""
    wanted, allowed = config.max_model_len, checkpoint.context_tokens
    if allowed and wanted > allowed:
        raise StartError(
            f"--max-model-len: {wanted} tokens, the model allows {allowed}"
            " (max_position_embeddings in its config.json)",
            status=2,
        )
    if wanted == 1:
        raise StartError(
            "--max-model-len: 1 token has no room for a prompt and an answer; at least 2, or 0:"
            " what the model allows",
            status=2,
        )
    block_bytes = config.block_size * checkpoint.kv_token_bytes(config.dtype)
    if 0 < config.kv_memory_bytes < _LEAST_BLOCKS * block_bytes:
        raise StartError(
            f"--kv-memory-bytes: {config.kv_memory_bytes:,} bytes are too little to be of use:"
            f" {_LEAST_BLOCKS} blocks of {config.block_size} tokens have"
            f" {_LEAST_BLOCKS * block_bytes:,}",
            status=2,
        )
    if not config.kv_blocks:
        return
    holds = config.kv_blocks * config.block_size
    size = f"{config.kv_blocks} blocks of {config.block_size} tokens hold {holds:,} tokens"
    if config.kv_blocks < _LEAST_BLOCKS:
        raise StartError(
            f"--kv-blocks: {size.replace('1 blocks', '1 block').replace('hold ', 'holds ')},"
            f" too little to be of use; at least {_LEAST_BLOCKS} blocks, or 0: from free memory",
            status=2,
        )
    if wanted > holds:
        needed = -(-wanted // config.block_size)
        raise StartError(
            f"--kv-blocks: {size}, less than --max-model-len {wanted}, which needs {needed} blocks",
            status=2,
        )


def check_memory(config: Config, *models: Checkpoint) -> int:
    """Bytes left on a CPU machine beside processes, weights and KV caches (the stated size, else the least) of all
    replicas, for the model and a drafter if there is one; 0 where the memory is a GPU's, of which the worker itself
    knows better. Raises StartError with the numbers if they cannot fit."""
    if config.device == "cuda" or (config.device == "auto" and has_cuda_driver()):
        return 0
    weights = sum(one.weights_bytes(config.dtype) for one in models)
    cache = _least_cache(config, models)
    needed = (REPLICA_BYTES + weights + cache) * config.replicas
    available = available_memory_bytes()
    if needed <= available:
        return available - needed
    blocks = f"{config.kv_blocks}" if config.kv_blocks else f"at least {_LEAST_BLOCKS}"
    parts = (
        f"{_mib(REPLICA_BYTES)} for processes + {_mib(weights)} for weights ({config.dtype})"
        f" + {_mib(cache)} for {blocks} KV blocks of {config.block_size} tokens"
    )
    hint = ""
    if config.replicas > 1:
        parts += f" in each of {config.replicas} replicas"
        fit = available // (REPLICA_BYTES + weights + cache)
        hint = f"; --replicas {fit} would fit" if fit else ""
    raise StartError(
        f"not enough memory: {_mib(needed)} needed ({parts}), {_mib(available)} available{hint}"
    )


def _least_cache(config: Config, models: Sequence[Checkpoint]) -> int:
    """Bytes of the smallest KV cache that a replica may have."""
    blocks = config.kv_blocks or _LEAST_BLOCKS
    return blocks * config.block_size * sum(one.kv_token_bytes(config.dtype) for one in models)


def share_memory(config: Config, left: int, *models: Checkpoint) -> Config:
    """`config` with an upper bound for the KV cache of each of several replicas, where its size is left to the workers:
    these start at once, and each of them sees all the memory that is free. `left`: what `check_memory` says."""
    if config.replicas == 1 or config.kv_blocks or not left:
        return config
    each = _least_cache(config, models) + int(left * KV_SHARE) // config.replicas
    bound = min(each, config.kv_memory_bytes) if config.kv_memory_bytes else each
    return msgspec.structs.replace(config, kv_memory_bytes=bound)


def check_swap(config: Config, checkpoint: Checkpoint, *others: Checkpoint) -> None:
    """Raises StartError (status 2) with the numbers if the host's memory does not have what `swap_gb` asks for, beside
    weights and a KV cache of fixed size (`kv_blocks`) where these lie there, too, or if that is less than one block."""
    if config.preemption != "swap":
        return
    block_bytes = config.block_size * checkpoint.kv_token_bytes(config.dtype)
    if config.swap_gb * 1e9 < block_bytes:
        raise StartError(
            f"--swap-gb: {config.swap_gb:g} GB hold no block: one of {config.block_size} tokens has"
            f" {block_bytes:,} bytes",
            status=2,
        )
    swap = int(config.swap_gb * 1e9) * config.replicas
    available = available_memory_bytes()
    beside = {}
    if config.device == "cpu" or (config.device == "auto" and not has_cuda_driver()):
        models = [checkpoint, *others]
        beside["weights"] = sum(one.weights_bytes(config.dtype) for one in models) * config.replicas
        beside["KV cache"] = config.kv_blocks * block_bytes * config.replicas
    needed = swap + sum(beside.values())
    if needed > available:
        parts = f"{config.swap_gb:g} GB of swap space"
        parts += f" in each of {config.replicas} replicas" if config.replicas > 1 else ""
        parts += "".join(f" + {_mib(size)} for {what}" for what, size in beside.items() if size)
        raise StartError(
            f"--swap-gb: {parts} need {_mib(needed)} of the host's memory,"
            f" {_mib(available)} are available",
            status=2,
        )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _check_key_files(config: Config) -> None:
    try:
        read_keys(config.api_key_file, config.admin_key_file)
    except KeyFileError as error:
        setting, _, cause = str(error).partition(":")
        raise StartError(f"--{setting.replace('_', '-')}:{cause}", status=2) from error


def _check_profile(name: str) -> None:
    if name and not os.access(Path(name).expanduser(), os.R_OK):
        raise StartError(f"--profile-file: {name} cannot be read", status=2)


def _check_device(device: str, dtype: str) -> None:
    """A driver that is there may still have no device that torch can use: that the worker says."""
    driver = has_cuda_driver()
    if dtype == "float16" and (device == "cpu" or not driver):
        raise StartError(
            "--dtype: float16 is far too slow on CPU; choose bfloat16 or float32", status=2
        )
    if device == "cuda" and not driver:
        raise StartError(
            "--device cuda: this machine has no CUDA driver; --device cpu, or auto, runs without",
            status=2,
        )
