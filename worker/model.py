"""Loading: from a name to a model that runs on packed rows, or one clear line why not."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from accelgen.proto.config import Config
from accelgen.worker.attention import NAME, register
from accelgen.worker.checkpoint import Checkpoint, find_model, inspect_checkpoint
from accelgen.worker.faults import LoadError, one_line
from accelgen.worker.kvcache import LayerShape
from accelgen.worker.memory import check_weights_fit, name_of
from accelgen.worker.probe import probe_layers

Progress = Callable[[float], None]  # share of the weights loaded, 0..1


@dataclass(frozen=True)
class Loaded:
    """A model in memory, and what its attention layers store."""

    model: Any
    checkpoint: Checkpoint
    device: torch.device
    dtype: torch.dtype
    shapes: tuple[LayerShape, ...]
    softcap: bool
    vocab_size: int
    weights_bytes: int

    @property
    def architecture(self) -> str:
        return str(self.checkpoint.model_class.__name__)

    def block_bytes(self, block_size: int) -> int:
        """Bytes of one KV block over all layers."""
        return block_size * sum(shape.token_bytes(self.dtype) for shape in self.shapes)


def load_model(config: Config, progress: Progress = lambda _: None) -> Loaded:
    """Loads `config.model`. Raises LoadError: no such model, unfit for serving, or not enough memory."""
    device = choose_device(config.device)
    path = find_model(config.model)
    checkpoint = inspect_checkpoint(path)
    dtype = choose_dtype(config.dtype, checkpoint.stored_dtype, device)
    check_weights_fit(checkpoint.parameters, dtype, device, str(path))
    model = _read_weights(checkpoint, dtype, device, progress)
    register()
    model.set_attn_implementation(NAME)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        raise LoadError(
            f"model {path}: {type(model).__name__} cannot limit its logits to chosen rows"
        )
    shapes, softcap = probe_layers(model, str(path))
    weights_bytes = sum(tensor.nbytes for tensor in model.parameters())
    weights_bytes += sum(tensor.nbytes for tensor in model.buffers())
    return Loaded(
        model,
        checkpoint,
        device,
        dtype,
        tuple(shapes),
        softcap,
        int(model.get_input_embeddings().weight.shape[0]),
        weights_bytes,
    )


def choose_device(wanted: str) -> torch.device:
    """cuda if there is one, unless told otherwise."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise LoadError("device: cuda was asked for, but torch finds no CUDA device")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.cuda.current_device())


def choose_dtype(wanted: str, stored: torch.dtype, device: torch.device) -> torch.dtype:
    """The stored type for "auto", except float16 on CPU, which becomes bfloat16."""
    if wanted == "float16" and device.type == "cpu":
        raise LoadError("dtype: float16 is far too slow on CPU; choose bfloat16 or float32")
    if wanted == "auto":
        return torch.bfloat16 if stored is torch.float16 and device.type == "cpu" else stored
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    return named[wanted]


def _read_weights(
    checkpoint: Checkpoint, dtype: torch.dtype, device: torch.device, progress: Progress
) -> Any:
    progress(0.0)
    _quiet_with_progress(progress)
    try:
        model, found = checkpoint.model_class.from_pretrained(
            checkpoint.path,
            config=checkpoint.config,
            dtype=dtype,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, with names
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # transformers raises many kinds for damaged weights
        raise LoadError(
            f"model {checkpoint.path}: weights cannot be loaded as {name_of(dtype)}: {one_line(error)}"
        ) from error
    missing = sorted(found.get("missing_keys") or ())
    wrong = sorted(str(key[0]) for key in found.get("mismatched_keys") or ())
    if missing or wrong:
        raise LoadError(
            f"model {checkpoint.path}: {len(missing)} weights are missing and {len(wrong)} have another shape"
            f" than the configuration says, first {(missing + wrong)[0]}"
        )
    progress(1.0)
    return model.eval().requires_grad_(False).to(device)


def _quiet_with_progress(progress: Progress) -> None:
    """Silences transformers, and turns its progress bar over the weights into calls of `progress`."""
    from transformers.utils import logging

    logging.set_verbosity_error()  # its load report: we say it in one line
    logging.disable_progress_bar()
    if not hasattr(logging, "set_tqdm_hook"):
        return

    def watched(items: Collection[Any]) -> Iterator[Any]:
        for at, item in enumerate(items):
            progress(at / len(items))
            yield item

    def hook(factory: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args and kwargs.get("desc") == "Loading weights":
            return watched(args[0])
        return factory(*args, **kwargs)

    logging.set_tqdm_hook(hook)
