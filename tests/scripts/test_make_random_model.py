"""Random models: true dimensions, reproducible content, loadable by transformers."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from accelgen.scripts import make_random_model as script
from accelgen.scripts.model_shapes import SHAPES

PUBLISHED_PARAMETERS = {
    "smollm2-135m": 134_515_008,
    "qwen2.5-0.5b": 494_032_768,
    "qwen3-0.6b": 596_049_920,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3-8b": 8_030_261_248,
    "mistral-7b": 7_248_023_552,
    "gemma-2b": 2_506_172_416,
    "opt-125m": 125_239_296,
}


@pytest.fixture
def small_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keeps the files of tests that need no true dimensions at some 20 MB."""
    monkeypatch.setitem(SHAPES["opt-125m"], "vocab_size", 4096)


def make(folder: Path, *options: str) -> Result:
    return CliRunner().invoke(script.main, [str(folder), *options], catch_exceptions=False)


@pytest.mark.parametrize("shape", PUBLISHED_PARAMETERS)
def test_dimensions_give_the_published_parameter_count(shape: str) -> None:
    model = script.empty_model(script.model_config(shape, "bfloat16", None))
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED_PARAMETERS[shape]


@pytest.mark.parametrize("shape", ["smollm2-135m", "opt-125m"])
def test_the_folder_loads_and_runs(shape: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert make(folder, "--shape", shape, "--layers", "1").exit_code == 0
    model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"]
    assert model.config.vocab_size == SHAPES[shape]["vocab_size"]
    assert model.config.num_hidden_layers == 1
    assert model.dtype == torch.bfloat16
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Hello, world", return_tensors="pt").input_ids
    assert torch.isfinite(model(input_ids=ids).logits).all()
    assert tokenizer.eos_token_id in model.config.eos_token_id


@pytest.mark.usefixtures("small_vocabulary")
def test_content_follows_the_seed(tmp_path: Path) -> None:
    weights = []
    for name, seed in (("a", "5"), ("b", "5"), ("c", "6")):
        make(tmp_path / name, "--shape", "opt-125m", "--layers", "1", "--seed", seed)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    name = "model.decoder.layers.0.self_attn.q_proj.weight"
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert not torch.equal(weights[0][name], weights[2][name])
    assert weights[0][name].float().std().item() == pytest.approx(0.02, rel=0.05)
    assert (weights[0]["model.decoder.final_layer_norm.weight"] == 1).all()


@pytest.mark.usefixtures("small_vocabulary")
def test_shards_hold_the_same_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--shape", "opt-125m", "--layers", "1")
    make(tmp_path / "whole", *options)
    monkeypatch.setattr(script, "SHARD_BYTES", 5 << 20)
    make(tmp_path / "cut", *options)
    index = json.loads((tmp_path / "cut" / "model.safetensors.index.json").read_text())
    whole = load_file(tmp_path / "whole" / "model.safetensors")
    assert set(index["weight_map"]) == set(whole)
    files = set(index["weight_map"].values())
    assert len(files) > 1
    for file_name in files:
        for key, tensor in load_file(tmp_path / "cut" / file_name).items():
            assert torch.equal(tensor, whole[key])
    AutoModelForCausalLM.from_pretrained(tmp_path / "cut")


def test_a_folder_with_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"precious")
    result = make(tmp_path, "--shape", "opt-125m")
    assert result.exit_code != 0 and "not empty" in result.output
