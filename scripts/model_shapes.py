"""Published dimensions of well-known models, for random weights of real size.

Each entry is what the model's own `config.json` says about its size; the parameter counts that
follow are checked by a test.
"""

from typing import Any


def _rope(theta: float, **scaling: Any) -> dict[str, Any]:
    return {"rope_type": "default", "rope_theta": theta, **scaling}


_LLAMA32_ROPE = _rope(
    500_000.0,
    rope_type="llama3",
    factor=32.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=8192,
)


def _gated(
    model_type: str,
    width: int,
    inner: int,
    layers: int,
    heads: tuple[int, int],
    vocab: int,
    positions: int,
    **others: Any,
) -> dict[str, Any]:
    """A pre-norm decoder with rotary positions and a gated MLP; heads are (query, key-value)."""
    return {
        "model_type": model_type,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        **others,
    }


def _smollm2(
    width: int, inner: int, layers: int, heads: tuple[int, int], theta: float
) -> dict[str, Any]:
    return _gated(
        "llama", width, inner, layers, heads, 49152, 8192,
        rope_parameters=_rope(theta), rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip


def _qwen2(
    width: int, inner: int, layers: int, heads: tuple[int, int], vocab: int, positions: int
) -> dict[str, Any]:
    return _gated(
        "qwen2", width, inner, layers, heads, vocab, positions,
        rope_parameters=_rope(1_000_000.0), rms_norm_eps=1e-6,
        tie_word_embeddings=width < 3584,
    )  # fmt: skip


def _llama32(width: int, layers: int, heads: tuple[int, int]) -> dict[str, Any]:
    return _gated(
        "llama", width, 8192, layers, heads, 128256, 131072,
        rope_parameters=_LLAMA32_ROPE, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip


def _opt(width: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "model_type": "opt",
        "hidden_size": width,
        "word_embed_proj_dim": width,
        "ffn_dim": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "vocab_size": 50272,
        "max_position_embeddings": 2048,
        "do_layer_norm_before": True,
        "tie_word_embeddings": True,
    }


SHAPES: dict[str, dict[str, Any]] = {
    "smollm2-135m": _smollm2(576, 1536, 30, (9, 3), 100_000.0),
    "smollm2-360m": _smollm2(960, 2560, 32, (15, 5), 100_000.0),
    "smollm2-1.7b": _smollm2(2048, 8192, 24, (32, 32), 130_000.0),
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, (14, 2), 151936, 32768),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, (12, 2), 151936, 131072),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, (28, 4), 152064, 131072),
    "qwen3-0.6b": _gated(
        "qwen3", 1024, 3072, 28, (16, 8), 151936, 40960,
        head_dim=128, rope_parameters=_rope(1_000_000.0), rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "llama-3.2-1b": _llama32(2048, 16, (32, 8)),
    "llama-3.2-3b": _llama32(3072, 28, (24, 8)),
    "llama-3-8b": _gated(
        "llama", 4096, 14336, 32, (32, 8), 128256, 8192,
        rope_parameters=_rope(500_000.0), rms_norm_eps=1e-5,
    ),
    "mistral-7b": _gated(  # version 0.3, which has no sliding window
        "mistral", 4096, 14336, 32, (32, 8), 32768, 32768,
        rope_parameters=_rope(1_000_000.0), rms_norm_eps=1e-5, sliding_window=None,
    ),
    "gemma-2b": _gated(
        "gemma", 2048, 16384, 18, (8, 1), 256000, 8192,
        head_dim=256, rope_parameters=_rope(10_000.0), rms_norm_eps=1e-6,
        hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
    ),
    "opt-125m": _opt(768, 12, 12),
    "opt-1.3b": _opt(2048, 24, 32),
    "opt-13b": _opt(5120, 40, 40),
}  # fmt: skip
