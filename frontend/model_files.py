"""What the frontend reads of a model folder: tokenizer, chat template, end-of-sequence ids, sampling defaults."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

BUNDLED = "accelgen-demo"
_HUB_PATTERNS = ["*.json", "*.jinja", "*.txt", "*.model"]
_SPECIAL_NAMES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_SAMPLING_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class ModelError(ValueError):
    """A model that cannot be served; the text names the file and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """`special` has the texts that templates know as bos_token, eos_token, ...; `defaults` are sampling parameters
    that the model's makers recommend (generation_config.json with do_sample)."""

    name: str
    folder: Path
    tokenizer: Path
    chat_template: str | None
    special: dict[str, str]
    eos_texts: tuple[str, ...]
    eos_ids: tuple[int, ...]
    context_tokens: int  # 0: not stated
    defaults: dict[str, float]


def find_folder(model: str) -> Path:
    """The folder of a model given as path or hub name; "" is the bundled one. A hub name is looked up in the local
    cache first and fetched (tokenizer and configuration only) if it is not there. Raises ModelError."""
    if not model:
        return Path(str(files("accelgen.models"))) / BUNDLED
    if (folder := Path(model).expanduser()).is_dir():
        return folder
    if model.count("/") != 1 or model.startswith(("/", ".", "~")):
        raise ModelError(f"model: {model} is neither a folder nor a hub name")
    from huggingface_hub import snapshot_download  # slow to import, and most servers use a folder
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_PATTERNS, local_files_only=True))
    except LocalEntryNotFoundError:
        pass
    try:
        return Path(snapshot_download(model, allow_patterns=_HUB_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        first_line = str(error).strip().partition("\n")[0]
        raise ModelError(f"model: {model} could not be fetched: {first_line}") from error


def read_model(model: str, served_name: str) -> ModelFiles:
    """Raises ModelError naming the file that is missing or broken."""
    folder = find_folder(model)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise ModelError(f"model: {folder} has no tokenizer.json")
    config = _read_json(folder / "config.json")
    config = {**config, **config.get("text_config", {})}
    generation = _read_json(folder / "generation_config.json")
    settings = {
        **_read_json(folder / "special_tokens_map.json"),
        **_read_json(folder / "tokenizer_config.json"),
    }
    special = _special_texts(settings)
    eos = generation.get("eos_token_id", config.get("eos_token_id"))
    return ModelFiles(
        name=served_name or (Path(model).name if model else BUNDLED),
        folder=folder,
        tokenizer=tokenizer,
        chat_template=_chat_template(folder, settings),
        special=special,
        eos_texts=tuple(special[name] for name in ("eos_token",) if name in special),
        eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
        context_tokens=int(config.get("max_position_embeddings") or 0),
        defaults=_sampling_defaults(generation),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is no such file."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model: {path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise ModelError(f"model: {path} is not a JSON object")
    return value


def _special_texts(settings: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for name in (f"{short}_token" for short in _SPECIAL_NAMES):
        token = settings.get(name)
        if isinstance(token, Mapping):
            token = token.get("content")
        if isinstance(token, str):
            found[name] = token
    return found


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja wins over the entry in tokenizer_config.json, which may be a list of named ones."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    template = settings.get("chat_template")
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template}
        template = named.get("default")
    return template if isinstance(template, str) else None


def _sampling_defaults(generation: Mapping[str, Any]) -> dict[str, float]:
    names = _SAMPLING_NAMES if generation.get("do_sample") else ("repetition_penalty",)
    return {name: generation[name] for name in names if generation.get(name) is not None}
