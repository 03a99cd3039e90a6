"""Write a model of real size with random weights, for measuring speed without a download.

`python -m accelgen.scripts.make_random_model --shape qwen2.5-0.5b DIR`. The folder can be served
like any other: it holds safetensors shards, a configuration and a tokenizer. The vocabulary size
stays the published one, so a random model may well emit ids that the tokenizer does not have.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import accelgen.models
from accelgen.scripts.model_shapes import SHAPES

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
WEIGHT_STD = 0.02
SHARD_BYTES = 1 << 30  # the most memory in use at once, unless one tensor alone is larger
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja",
)  # fmt: skip
ZERO_CENTRED_NORMS = {"gemma"}  # these multiply by 1 + weight

Shard = dict[str, torch.Tensor]  # on the meta device: names and shapes only


def demo_model_folder() -> Path:
    """The bundled demo model, whose tokenizer the random models borrow."""
    return Path(accelgen.models.__file__).parent / "accelgen-demo"


def model_config(shape: str, dtype: str, layers: int | None) -> Any:
    """The transformers configuration of a published `shape`, its depth replaced by `layers`."""
    fields = dict(SHAPES[shape])
    if layers is not None:
        fields["num_hidden_layers"] = layers
    return AutoConfig.for_model(
        fields.pop("model_type"), **fields, dtype=DTYPES[dtype], bos_token_id=None
    )


def empty_model(config: Any) -> torch.nn.Module:
    """The model without content. Its parameters are what is stored: a tied matrix counts once."""
    with torch.device("meta"):
        model: torch.nn.Module = AutoModelForCausalLM.from_config(config)
    return model


def shards(tensors: Shard, dtype: torch.dtype) -> Iterator[Shard]:
    """`tensors` in order, cut before SHARD_BYTES are exceeded."""
    part: Shard = {}
    size = 0
    for name, tensor in tensors.items():
        if part and size + tensor.numel() * dtype.itemsize > SHARD_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.numel() * dtype.itemsize
    yield part


def random_tensor(
    name: str, shape: torch.Size, dtype: torch.dtype, seed: int, norm_weight: float
) -> torch.Tensor:
    """The content of one tensor; it depends on the seed and its name alone, not on the shards."""
    if name.endswith("bias"):
        return torch.zeros(shape, dtype=dtype)
    if "norm" in name:
        return torch.full(shape, norm_weight, dtype=dtype)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape, dtype=dtype).normal_(0.0, WEIGHT_STD, generator=generator)


def write_weights(
    tensors: Shard, dtype: torch.dtype, seed: int, norm_weight: float, folder: Path
) -> int:
    """Write the shards and, where there are several, their index. Returns the parameter count."""
    parts = list(shards(tensors, dtype))
    names = [f"model-{k:05}-of-{len(parts):05}.safetensors" for k in range(1, len(parts) + 1)]
    if len(parts) == 1:
        names = ["model.safetensors"]
    for file_name, part in zip(names, parts, strict=True):
        filled = {
            name: random_tensor(name, tensor.shape, dtype, seed, norm_weight)
            for name, tensor in part.items()
        }
        save_file(filled, folder / file_name, metadata={"format": "pt"})
        (folder / file_name).chmod(0o644)  # the library leaves it private to its owner
        click.echo(f"wrote {file_name}: {len(part)} tensors")
        del filled  # before the next shard is made, so that only one is in memory
    count = sum(tensor.numel() for tensor in tensors.values())
    if len(parts) > 1:
        places = {name: file for file, part in zip(names, parts, strict=True) for name in part}
        index = {"metadata": {"total_size": count * dtype.itemsize}, "weight_map": places}
        path = folder / "model.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    return count


def copy_tokenizer(source: Path, folder: Path) -> Any:
    """Copy the tokenizer's files; returns its model's stop token ids, None where unknown."""
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)
    generation = source / "generation_config.json"
    if not generation.exists():
        return None
    return json.loads(generation.read_text(encoding="utf-8")).get("eos_token_id")


@click.command()
@click.argument("folder", metavar="DIR", type=click.Path(file_okay=False, path_type=Path))
@click.option("--shape", type=click.Choice(sorted(SHAPES)), required=True)
@click.option("--dtype", type=click.Choice(sorted(DTYPES)), default="bfloat16", show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--layers", type=click.IntRange(min=1), help="Depth, instead of the published one.")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Folder whose tokenizer is copied [default: the bundled demo model].",
)
def main(
    folder: Path, shape: str, dtype: str, seed: int, layers: int | None, tokenizer: Path | None
) -> None:
    """Write a model with random weights and the published dimensions of SHAPE to DIR."""
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise click.UsageError(f"{folder} is not empty")
    config = model_config(shape, dtype, layers)
    config.eos_token_id = copy_tokenizer(tokenizer or demo_model_folder(), folder)
    model = empty_model(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    norm_weight = 0.0 if config.model_type in ZERO_CENTRED_NORMS else 1.0
    tensors: Shard = dict(model.named_parameters())
    count = write_weights(tensors, DTYPES[dtype], seed, norm_weight, folder)
    click.echo(f"{shape}: {count:,} parameters in {dtype}")


if __name__ == "__main__":
    main()
