"""A model folder before its weights are loaded: found, read, and judged fit or unfit for serving.

Everything here costs milliseconds, so that a model that cannot work is refused before gigabytes are read.
"""

from __future__ import annotations

import json
import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from accelgen.worker.faults import LoadError, one_line

DEMO_MODEL = "accelgen-demo"
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
CAUSAL_ENDINGS = ("ForCausalLM", "LMHeadModel")
KNOWN_LAYER_TYPES = {"full_attention", "sliding_attention", "attention"}
ROPE_BY_LENGTH = {"dynamic", "longrope"}
MAX_HEADER_BYTES = 100 * 1024 * 1024  # the limit of the safetensors library itself


@dataclass(frozen=True)
class Checkpoint:
    """A folder that passed every check that needs no weights.

    `config` is the transformers configuration, `model_class` its causal-LM class, `parameters` the number of stored
    numbers, `max_positions` the longest sequence the model is exact for."""

    path: Path
    config: Any
    model_class: Any
    parameters: int
    stored_dtype: torch.dtype
    max_positions: int


def find_model(name: str) -> Path:
    """The local folder of a model: `name` itself, the bundled one for "", or the hub's, downloaded if need be.

    A local folder never touches the network. Raises LoadError."""
    if not name:
        import accelgen.models as bundled

        name = str(Path(bundled.__path__[0]) / DEMO_MODEL)
    path = Path(name).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise LoadError(f"model {name}: no such folder")
    return _download(name)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub's errors share no base class
        raise LoadError(
            f"model {name}: no such folder, and the hub has not given it: {one_line(error)}"
        ) from error


def inspect_checkpoint(path: Path) -> Checkpoint:
    """Reads configuration and weight headers of a local folder. Raises LoadError naming what does not fit."""
    raw = _read_json(path / "config.json", path)
    _refuse_by_config(path, raw)
    config = _load_config(path)
    model_class = _causal_class(path, config)
    _refuse_by_class(path, config, model_class)
    parameters, stored = _weight_headers(path)
    return Checkpoint(path, config, model_class, parameters, stored, _exact_positions(config))


def _read_json(file: Path, path: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text())
    except FileNotFoundError:
        raise LoadError(f"model {path}: has no {file.name}") from None
    except (OSError, ValueError) as error:
        raise LoadError(f"model {path}: {file.name} cannot be read: {one_line(error)}") from error
    if not isinstance(found, dict):
        raise LoadError(f"model {path}: {file.name} is not a JSON object")
    return found


def _refuse_by_config(path: Path, raw: dict[str, Any]) -> None:
    if (quantization := raw.get("quantization_config")) is not None:
        method = quantization.get("quant_method", "unknown method")
        raise LoadError(
            f"model {path}: quantised weights ({method}) are not supported; use the unquantised checkpoint"
        )
    names = raw.get("architectures") or []
    parts = [key for key in raw if key.endswith(("vision_config", "audio_config", "speech_config"))]
    if parts or any(name.endswith("ForConditionalGeneration") for name in names):
        raise LoadError(
            f"model {path}: {', '.join(names) or 'it'} is multimodal or an encoder-decoder"
            f" ({', '.join(parts) or 'ForConditionalGeneration'}); only text-only causal models are served"
        )
    if raw.get("is_encoder_decoder"):
        raise LoadError(f"model {path}: encoder-decoder models are not served, only causal ones")
    if names and not any(name.endswith(CAUSAL_ENDINGS) for name in names):
        raise LoadError(
            f"model {path}: {', '.join(names)} is not a causal language model (…ForCausalLM)"
        )
    if "auto_map" in raw and "model_type" not in raw:
        raise LoadError(f"model {path}: needs code of its own, and remote code is never run")


def _load_config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (
        Exception
    ) as error:  # whatever a broken or foreign configuration makes transformers raise
        raise LoadError(
            f"model {path}: transformers refuses its configuration: {one_line(error)}"
        ) from error


def _causal_class(path: Path, config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise LoadError(
            f"model {path}: model_type {config.model_type} has no causal-LM class in transformers"
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _refuse_by_class(path: Path, config: Any, model_class: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYER_TYPES
    if getattr(model_class, "_is_stateful", False) or kinds:
        raise LoadError(
            f"model {path}: {model_class.__name__} keeps recurrent or special per-layer state"
            f" ({', '.join(sorted(kinds)) or 'recurrent'}); only plain and sliding-window attention is served"
        )
    if not model_class._can_set_attn_implementation():
        raise LoadError(
            f"model {path}: {model_class.__name__} does not use transformers' attention interface"
        )


def _weight_headers(path: Path) -> tuple[int, torch.dtype]:
    files = _weight_files(path)
    counts: dict[str, int] = {}
    for file in files:
        for name, entry in _header(file, path).items():
            if name != "__metadata__":
                kind = entry["dtype"]
                counts[kind] = counts.get(kind, 0) + math.prod(entry["shape"])
    if not counts:
        raise LoadError(f"model {path}: its safetensors files hold no tensors")
    main = max(counts, key=lambda kind: counts[kind])
    known = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
    if main not in known:
        raise LoadError(
            f"model {path}: weights of type {main} are not supported (F32, BF16, F16 are)"
        )
    return sum(counts.values()), known[main]


def _weight_files(path: Path) -> list[Path]:
    index = path / "model.safetensors.index.json"
    if index.exists():
        names = set(_read_json(index, path).get("weight_map", {}).values())
        files = [path / name for name in sorted(names)]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise LoadError(
                f"model {path}: {len(missing)} weight files are missing, first {missing[0]}"
            )
        return files
    if (single := path / "model.safetensors").is_file():
        return [single]
    others = sorted(
        file.name for file in path.iterdir() if file.suffix in (".bin", ".pt", ".pth", ".gguf")
    )
    found = f"; found {', '.join(others[:3])}" if others else ""
    raise LoadError(f"model {path}: has no model.safetensors (only safetensors are loaded){found}")


def _header(file: Path, path: Path) -> dict[str, Any]:
    """The JSON header of a safetensors file: 8 bytes little-endian length, then the object."""
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > min(MAX_HEADER_BYTES, os.fstat(stream.fileno()).st_size):
                raise ValueError(f"header of {length} bytes")
            header = json.loads(stream.read(length))
        ends = [
            entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"
        ]
    except (OSError, ValueError, struct.error, KeyError, TypeError, AttributeError) as error:
        raise LoadError(
            f"model {path}: {file.name} is not a whole safetensors file: {one_line(error)}"
        ) from error
    needed, size = 8 + length + max(ends, default=0), file.stat().st_size
    if size < needed:
        raise LoadError(
            f"model {path}: {file.name} is cut off: {size} bytes, its header says {needed}"
        )
    return dict(header)


def _exact_positions(config: Any) -> int:
    """The longest sequence for which results do not depend on what else is in the batch: rotary embeddings that
    switch or stretch frequencies by the longest sequence seen end at their original length."""
    limit = int(getattr(config, "max_position_embeddings", 0) or 0) or 2**20
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    for part in (rope, *(value for value in rope.values() if isinstance(value, dict))):
        if part.get("rope_type", part.get("type")) in ROPE_BY_LENGTH:
            original = part.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            limit = min(limit, int(original or limit))
    return limit
