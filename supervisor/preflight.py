"""What can be known before anything is started: every check here is fast, imports no torch, and ends in one line."""

from __future__ import annotations

import difflib
import os
from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from accelgen.proto.config import Config
from accelgen.supervisor.checkpoint import BUNDLED, Checkpoint, locate, open_checkpoint
from accelgen.supervisor.errors import StartError
from accelgen.supervisor.linux import available_memory_bytes

POLICY_GROUP = "accelgen.policies"


def check(config: Config) -> tuple[Config, Checkpoint]:
    """`config` with the model's folder and name filled in, and the checkpoint. Raises StartError."""
    check_policy(config.policy)
    _check_key_file(config.api_key_file)
    _check_profile(config.profile_file)
    folder = locate(config.model)
    checkpoint = open_checkpoint(folder)
    check_memory(config, checkpoint)
    hub_name = "" if folder.name == BUNDLED or Path(config.model).is_dir() else config.model
    name = config.served_model_name or Path(hub_name or folder).name
    return msgspec.structs.replace(config, model=str(folder), served_model_name=name), checkpoint


def check_policy(policy: str) -> None:
    """Raises StartError (status 2) with near matches if no installed package offers `policy`."""
    known = sorted({point.name for point in entry_points(group=POLICY_GROUP)})
    if policy in known:
        return
    near = difflib.get_close_matches(policy, known)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    raise StartError(f"--policy: there is no policy {policy!r}; {hint}", status=2)


def check_memory(config: Config, checkpoint: Checkpoint) -> None:
    """Raises StartError with the numbers if weights (and a KV cache of fixed size) cannot fit the memory of a
    CPU machine. On a GPU the worker itself knows better."""
    if config.device == "cuda" or (config.device == "auto" and Path("/dev/nvidiactl").exists()):
        return
    weights = checkpoint.weights_bytes(config.dtype) * config.replicas
    kv_tokens = config.kv_blocks * config.block_size * config.replicas
    cache = kv_tokens * checkpoint.kv_token_bytes(config.dtype)
    available = available_memory_bytes()
    if weights + cache <= available:
        return
    parts = f"{_mib(weights)} for weights ({config.dtype})"
    if cache:
        parts += f" + {_mib(cache)} for {config.kv_blocks} KV blocks of {config.block_size} tokens"
    if config.replicas > 1:
        parts += f" in {config.replicas} replicas"
    raise StartError(
        f"not enough memory: {_mib(weights + cache)} needed ({parts}), {_mib(available)} available"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.0f} MiB"


def _check_key_file(name: str) -> None:
    if not name:
        return
    try:
        keys = Path(name).expanduser().read_text().split()
    except (OSError, UnicodeDecodeError) as error:
        raise StartError(f"--api-key-file: {name} cannot be read: {error}") from error
    if not keys:
        raise StartError(f"--api-key-file: {name} holds no key (one per line)")


def _check_profile(name: str) -> None:
    if name and not os.access(Path(name).expanduser(), os.R_OK):
        raise StartError(f"--profile-file: {name} cannot be read")
