"""Train the bundled demo model: `python -m accelgen.scripts.train_demo_model OUT_DIR`.

Everything comes from this repository and the running Python; nothing is downloaded. The model
is usable from the first checkpoint on, so an interrupted run leaves something behind.
"""

import copy
import datetime
import math
import platform
import random
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
import transformers
from tokenizers import Tokenizer
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

from accelgen.scripts.demo_card import Training, card
from accelgen.scripts.demo_data import conversation
from accelgen.scripts.demo_text import documentation, paragraph
from accelgen.scripts.demo_tokenizer import (
    CONTEXT_TOKENS,
    END,
    END_OF_TEXT,
    PAD,
    VOCAB_SIZE,
    render,
    save_tokenizer,
    train_tokenizer,
)

ROW_TOKENS = 512
BATCH_ROWS = 2  # small batches learn far more from each token at this size
PEAK_LR, LAST_LR, WARMUP_STEPS = 1.5e-3, 5e-5, 100
TEXT_SHARE, LAST_TEXT_SHARE = 0.25, 0.1  # of the rows; the last fifth of the steps is mostly chat
PARAGRAPH_SHARE = 0.15  # of the plain texts; the others are documentation strings
TOKENIZER_CONVERSATIONS = 4000
LOSS_WINDOW = 200  # steps
SAMPLE_QUESTIONS = ("What is AccelGen?", "what does the scheduler do", "Who are you?", "7 + 5")


class Corpus:
    """An endless, seeded stream of training rows."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.documents = documentation()
        self.tokenizer = self._tokenizer()
        self.end: int = self.tokenizer.get_vocab()[END_OF_TEXT]
        self.unread: list[str] = []

    def batch(self, progress: float) -> torch.Tensor:
        """Token ids, (BATCH_ROWS, ROW_TOKENS), for `progress` in [0, 1) of the training."""
        share = TEXT_SHARE if progress < 0.8 else LAST_TEXT_SHARE
        return torch.tensor([self._row(self.rng.random() < share) for _ in range(BATCH_ROWS)])

    def _row(self, plain: bool) -> list[int]:
        """Whole texts, the last one cut. A row starts with a text, as a prompt does."""
        row: list[int] = []
        while len(row) < ROW_TOKENS:
            row += self.tokenizer.encode(self._plain() if plain else self._chat()).ids
            row.append(self.end)
        return row[:ROW_TOKENS]

    def _chat(self) -> str:
        return render(conversation(self.rng))

    def _plain(self) -> str:
        if self.rng.random() < PARAGRAPH_SHARE:
            return paragraph(self.rng)
        if not self.unread:
            self.unread = self.rng.sample(self.documents, len(self.documents))
        return self.unread.pop()

    def _tokenizer(self) -> Tokenizer:
        rng = random.Random(self.rng.random())
        chats = (render(conversation(rng)) for _ in range(TOKENIZER_CONVERSATIONS))
        return train_tokenizer([*chats, *self.documents])


def new_model() -> LlamaForCausalLM:
    """An untrained Llama of about five million parameters, float32."""
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
    )
    return LlamaForCausalLM(config)


def train(model: LlamaForCausalLM, corpus: Corpus, steps: int) -> Iterator[tuple[int, float]]:
    """Train in place; yields (steps done, loss of that step in nats per token)."""
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        ids = corpus.batch(step / steps)
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield step + 1, loss.item()


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine from PEAK_LR down to LAST_LR."""
    if step < WARMUP_STEPS:
        return PEAK_LR * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LAST_LR + (PEAK_LR - LAST_LR) * 0.5 * (1 + math.cos(math.pi * done))


def save(model: LlamaForCausalLM, tokenizer: Tokenizer, training: Training, folder: Path) -> None:
    """Write the model folder: bfloat16 safetensors, configuration, tokenizer, model card."""
    stops = [tokenizer.token_to_id(token) for token in (END, END_OF_TEXT)]
    stored = copy.deepcopy(model).to(torch.bfloat16)
    stored.config.eos_token_id = stops
    stored.config.pad_token_id = tokenizer.token_to_id(PAD)
    stored.generation_config = GenerationConfig(
        eos_token_id=stops, pad_token_id=stored.config.pad_token_id
    )
    stored.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # the library leaves it private to its owner
    save_tokenizer(tokenizer, folder)
    (folder / "README.md").write_text(card(training), encoding="utf-8")


def answer(model: LlamaForCausalLM, tokenizer: Tokenizer, question: str) -> str:
    """The greedy answer to one question, at most 80 tokens."""
    prompt = render([("user", question)]) + "<|im_start|>assistant\n"
    ids = torch.tensor([tokenizer.encode(prompt).ids])
    model.eval()
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=80,
        do_sample=False,
        eos_token_id=tokenizer.token_to_id(END),
        pad_token_id=tokenizer.token_to_id(PAD),
    )
    model.train()
    return str(tokenizer.decode(output[0, ids.shape[1] :].tolist(), skip_special_tokens=False))


@click.command()
@click.argument("out_dir", type=click.Path(file_okay=False, path_type=Path))
@click.option("--seed", default=1, show_default=True)
@click.option("--steps", default=3000, show_default=True, help="Steps of 1,024 tokens.")
@click.option("--threads", default=2, show_default=True, help="Processor threads.")
@click.option("--save-every", default=600, show_default=True, help="Steps between checkpoints.")
def main(out_dir: Path, seed: int, steps: int, threads: int, save_every: int) -> None:
    """Train the demo model and write it to OUT_DIR."""
    started_s = time.monotonic()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    out_dir.mkdir(parents=True, exist_ok=True)
    corpus = Corpus(seed)
    model = new_model()
    parameters = sum(p.numel() for p in model.parameters())
    click.echo(f"{parameters:,} parameters, {len(corpus.documents):,} documentation strings")
    losses: list[float] = []
    for done, loss in train(model, corpus, steps):
        losses = [*losses[-LOSS_WINDOW + 1 :], loss]
        minutes = (time.monotonic() - started_s) / 60
        if done % 100 == 0 or done == steps:
            mean = sum(losses) / len(losses)
            click.echo(f"step {done}/{steps}  loss {mean:.3f}  {minutes:.1f} min")
        if done % save_every == 0 or done == steps:
            tokens = done * BATCH_ROWS * ROW_TOKENS
            mean = sum(losses) / len(losses)
            today = datetime.date.today().isoformat()
            training = Training(
                parameters, done, tokens, seed, threads, mean, minutes, today, _versions()
            )
            save(model, corpus.tokenizer, training, out_dir)
            for question in SAMPLE_QUESTIONS:
                click.echo(f"  {question} -> {answer(model, corpus.tokenizer, question)}")


def _versions() -> str:
    torch_version = torch.__version__.partition("+")[0]
    return (
        f"Python {platform.python_version()}, torch {torch_version} and "
        f"transformers {transformers.__version__}"
    )


if __name__ == "__main__":
    main()
