"""A model folder seen from outside: is it one, and how large is it? Reads file headers, needs no torch."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import accelgen.models
from accelgen.supervisor.errors import StartError

BUNDLED = "accelgen-demo"
_HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
_DOWNLOADED = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_MAX_HEADER_BYTES = 100_000_000  # the format's own limit


@dataclass(frozen=True)
class Checkpoint:
    """A model folder that passed the checks. `stored` maps a safetensors dtype to its number of elements."""

    folder: Path
    config: dict[str, Any]
    stored: dict[str, int]

    @property
    def _text_config(self) -> dict[str, Any]:
        """Of the language model, where the configuration has others beside it."""
        found = self.config.get("text_config")
        return found if isinstance(found, dict) else self.config

    @property
    def context_tokens(self) -> int:
        """The longest sequence according to the configuration, 0 if it does not say."""
        config = self._text_config
        stated = config.get("max_position_embeddings")
        return stated if isinstance(stated, int) else 0

    @property
    def vocab_size(self) -> int:
        """The number of token ids according to the configuration, 0 if it does not say."""
        stated = self._text_config.get("vocab_size")
        return stated if isinstance(stated, int) else 0

    def weights_bytes(self, dtype: str) -> int:
        """Bytes of the weights in memory when loaded as `dtype` ("auto": as stored)."""
        return sum(
            count * _DTYPE_BYTES.get(dtype, _BYTES.get(stored, 1))
            for stored, count in self.stored.items()
        )

    def kv_token_bytes(self, dtype: str) -> int:
        """Bytes of KV cache per token, 0 if the configuration does not say. ("auto": as the weights)"""
        config = self._text_config
        heads = config.get("num_attention_heads", 0)
        kv_heads = config.get("num_key_value_heads") or heads
        head_dim = config.get("head_dim") or (config.get("hidden_size", 0) // heads if heads else 0)
        largest = max(self.stored, key=lambda name: self.stored[name], default="F32")
        width = _DTYPE_BYTES.get(dtype, _BYTES.get(largest, 2))
        return int(2 * config.get("num_hidden_layers", 0) * kv_heads * head_dim * width)


def locate(model: str) -> Path:
    """The folder of `model`: "" is the bundled demo model, else a folder, else a hub name (local cache first,
    then download). Raises StartError."""
    if not model:
        return Path(next(iter(accelgen.models.__path__))) / BUNDLED
    folder = Path(model).expanduser()
    if folder.is_dir():
        return folder.absolute()
    if folder.exists():
        raise StartError(f"model not found: {model} is a file, not a folder")
    if not _HUB_NAME.fullmatch(model) or model.startswith("."):
        raise StartError(f"model not found: there is no folder {model}")
    return _from_hub(model)


def open_checkpoint(folder: Path) -> Checkpoint:
    """Checks that `folder` holds a model that can be served. Raises StartError naming what is missing."""
    config = _read_json(folder, "config.json")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        weight_map = _read_json(folder, index.name).get("weight_map")
        shards = sorted(set(map(str, weight_map.values()))) if isinstance(weight_map, dict) else []
    else:
        shards = ["model.safetensors"]
    if not shards:
        raise StartError(f"model {folder}: {index.name} names no weights")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise StartError(
            f"model {folder} has no {', '.join(missing)} (only safetensors weights are loaded)"
        )
    if not (folder / "tokenizer.json").is_file():
        raise StartError(f"model {folder} has no tokenizer.json")
    stored: dict[str, int] = {}
    for name in shards:
        for dtype, count in _tensor_sizes(folder / name):
            stored[dtype] = stored.get(dtype, 0) + count
    return Checkpoint(folder, config, stored)


def _from_hub(name: str) -> Path:
    from huggingface_hub import snapshot_download  # lazy: a local model needs none of it

    try:
        cached = Path(snapshot_download(name, allow_patterns=_DOWNLOADED, local_files_only=True))
        return open_checkpoint(cached).folder
    except (OSError, StartError):  # not in the cache (LocalEntryNotFoundError), or not whole
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=_DOWNLOADED))
    except Exception as error:  # whatever network and hub can come up with ends here, in one line
        raise StartError(
            f"model not found: {name} is no folder and not in the local hub cache, and {_hub_cause(error)}"
        ) from error


def _hub_cause(error: Exception) -> str:
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids downloading it"
    match error:
        case errors.GatedRepoError():
            return "the hub wants a token of somebody who accepted its terms (HF_TOKEN)"
        case errors.RepositoryNotFoundError() | errors.HFValidationError():
            return "the hub has no such model (or a private one: HF_TOKEN)"
        case errors.HfHubHTTPError(response=response) if response is not None:
            return f"the hub answered with status {response.status_code}"
        case errors.LocalEntryNotFoundError() | ConnectionError() | TimeoutError():
            return "the hub cannot be reached"
        case OSError(strerror=str(cause)):
            return f"downloading it failed: {' '.join(cause.split())}"
    return f"downloading it failed ({type(error).__name__})"


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads((folder / name).read_bytes())
    except FileNotFoundError as error:
        raise StartError(f"model {folder} has no {name}") from error
    except (OSError, ValueError) as error:
        raise StartError(f"model {folder}: {name} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise StartError(f"model {folder}: {name} is not a JSON object")
    return content


def _tensor_sizes(path: Path) -> list[tuple[str, int]]:
    """(dtype, elements) of each tensor, from the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
        end = max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        if path.stat().st_size < 8 + length + end:
            raise ValueError(f"{path.stat().st_size} bytes of {8 + length + end}")
        return [(tensor["dtype"], _product(tensor["shape"])) for tensor in tensors]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StartError(f"model file {path} is damaged: {error}") from error


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
