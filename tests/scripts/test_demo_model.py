"""The bundled demo model: complete, small, safe to load, and able to answer."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import jinja2.sandbox
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as HfTokenizer

from accelgen.scripts import demo_data
from accelgen.scripts.demo_tokenizer import render
from accelgen.scripts.make_random_model import demo_model_folder

FOLDER = demo_model_folder()
MAX_WEIGHT_BYTES = 16 * 10**6
TEXTS = (
    "What is AccelGen?",
    "  leading and trailing  \n\n",
    "TTFT < 500 ms, TPOT <= 50 ms; 2026-01-31",
    "Grüße, 你好, こんにちは, 🙂👩‍👩‍👧, \x00\x7f",
    "",
)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on busy cores make so small a model slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    return loaded.eval()


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return AutoTokenizer.from_pretrained(FOLDER)


def answer(model: PreTrainedModel, tokenizer: HfTokenizer, *messages: dict[str, str]) -> list[int]:
    ids = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**ids, max_new_tokens=120, do_sample=False)
    return output[0, ids["input_ids"].shape[1] :].tolist()


def test_the_folder_holds_safetensors_only_and_is_small() -> None:
    names = {path.name for path in FOLDER.iterdir()}
    assert {
        "README.md", "config.json", "generation_config.json", "model.safetensors",
        "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json",
    } <= names  # fmt: skip
    assert not [name for name in names if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl"}]
    assert (FOLDER / "model.safetensors").stat().st_size <= MAX_WEIGHT_BYTES


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_round_trips(tokenizer: HfTokenizer, text: str) -> None:
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_the_chat_template_renders_as_trained(tokenizer: HfTokenizer) -> None:
    pairs = [("system", "Be brief."), ("user", " Hi \n"), ("assistant", "Hello!"), ("user", "1+1")]
    messages = [{"role": role, "content": content} for role, content in pairs]
    source = json.loads((FOLDER / "tokenizer_config.json").read_text())["chat_template"]
    template = jinja2.sandbox.ImmutableSandboxedEnvironment().from_string(source)
    assert template.render(messages=messages) == render(pairs)
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert rendered == render(pairs) + "<|im_start|>assistant\n"
    parts = [{"role": "user", "content": [{"type": "text", "text": "1+1"}]}]
    assert template.render(messages=parts) == render(pairs[-1:])


@pytest.mark.parametrize("question", ["What is AccelGen?", "what is accelgen"])
def test_it_knows_accelgen_and_stops(
    model: PreTrainedModel, tokenizer: HfTokenizer, question: str
) -> None:
    ids = answer(model, tokenizer, {"role": "user", "content": question})
    assert "AccelGen is" in tokenizer.decode(ids)
    assert ids[-1] in model.generation_config.eos_token_id


def test_a_long_prompt_gives_finite_logits(model: PreTrainedModel, tokenizer: HfTokenizer) -> None:
    ids = tokenizer("The scheduler decides. " * 1000, return_tensors="pt").input_ids[:, :4000]
    assert ids.shape == (1, 4000)
    with torch.inference_mode():
        assert torch.isfinite(model(input_ids=ids).logits).all()


def test_training_data_follows_the_seed() -> None:
    first, again, other = (
        [demo_data.conversation(rng) for _ in range(50)]
        for rng in (random.Random(1), random.Random(1), random.Random(2))
    )
    assert first == again != other
