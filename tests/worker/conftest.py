"""Tiny models with random weights, one per architecture that the worker promises, and a worker around each."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

import pytest
import torch

VOCAB = 97
ARCHITECTURES = ("llama", "qwen2", "qwen3", "mistral", "opt", "gemma2")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
    "initializer_range": 0.25,  # large weights: logits that differ clearly, attention that matters
}


def tiny_config(architecture: str) -> Any:
    import transformers as tf

    if architecture == "opt":
        sizes = {
            k: v for k, v in SIZES.items() if k not in ("num_key_value_heads", "intermediate_size")
        }
        sizes["init_std"] = sizes.pop("initializer_range")
        return tf.OPTConfig(**sizes, ffn_dim=64, word_embed_proj_dim=32)
    kind = {
        "llama": tf.LlamaConfig,
        "qwen2": tf.Qwen2Config,
        "qwen3": tf.Qwen3Config,
        "mistral": tf.MistralConfig,
        "gemma2": tf.Gemma2Config,
    }[architecture]
    extra: dict[str, Any] = {
        "qwen3": {"head_dim": 16},
        "mistral": {"sliding_window": 16},
        "gemma2": {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16},
    }.get(architecture, {})
    return kind(**SIZES, **extra)


def save_tiny(folder: Path, architecture: str, dtype: torch.dtype = torch.float32) -> Path:
    """Writes a tiny random model; returns its folder."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture)).to(dtype)
    model.save_pretrained(folder, safe_serialization=True)
    return folder


@dataclass
class Bench:
    """A worker core on a tiny model, and the model as transformers loads it (the reference)."""

    folder: Path
    core: Any
    reference: Any


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny(architecture, dtype) -> folder of a saved model."""

    @cache
    def make(architecture: str, dtype: torch.dtype = torch.float32) -> Path:
        return save_tiny(tmp_path_factory.mktemp(architecture), architecture, dtype)

    return make


@pytest.fixture(scope="session")
def bench(tiny: Callable[..., Path]) -> Callable[..., Bench]:
    """bench(architecture, dtype, block_size, blocks) -> Bench, made once."""
    from accelgen.proto.config import Config
    from accelgen.worker.engine import start_engine

    torch.set_num_threads(1)

    @cache
    def make(
        architecture: str, dtype: torch.dtype = torch.float32, block_size: int = 4, blocks: int = 96
    ) -> Bench:
        from transformers import AutoModelForCausalLM

        folder = tiny(architecture, dtype)
        config = Config(
            model=str(folder),
            block_size=block_size,
            kv_blocks=blocks,
            max_model_len=128,
            profile_file="none",
        )
        engine = start_engine(config)
        reference = AutoModelForCausalLM.from_pretrained(
            folder, attn_implementation="eager", dtype=dtype
        ).eval()
        return Bench(folder, engine.core, reference)

    return make
