"""The model card of the bundled demo model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Training:
    """What the card says about a training run; `loss` is in nats per token."""

    parameters: int
    steps: int
    tokens: int
    seed: int
    threads: int
    loss: float
    minutes: float
    date: str
    versions: str


CARD = """\
---
language: en
library_name: transformers
pipeline_tag: text-generation
---

# accelgen-demo

A very small chat model ({parameters:,} parameters, Llama architecture, bfloat16 weights) for
trying AccelGen out without downloading anything. It answers simple questions about AccelGen,
greets, counts to twenty, names some capitals and tells short stories made of fixed sentences.

**It is not for use.** It repeats what it was shown, invents the rest, and knows nothing else.
Do not measure answers with it, and do not measure speed with it either:
`python -m accelgen.scripts.make_random_model` writes models of real size for that.

## Data

All text is made by the training script, nothing is downloaded:

- conversations from templates written for this model (questions and answers about AccelGen,
  greetings, small sums, everyday facts), with varied spelling, one to seven turns;
- Python's own documentation strings (the standard library's sources and the language topics of
  `pydoc`), which are under the licence of Python.

The tokenizer is a byte-level BPE with 4,096 entries, trained on the same text. The chat format
is ChatML: `<|im_start|>role`, a line break, the text, `<|im_end|>`.

## Training

{steps:,} steps of AdamW in float32, {tokens:,} tokens in rows of 512, loss on all tokens. Final
training loss (mean of the last 200 steps): {loss:.3f} nats per token. It took {minutes:.0f}
minutes with {threads} thread(s) of a shared two-core machine, on {date}, with
{versions}.

To make it again:

    python -m accelgen.scripts.train_demo_model OUT_DIR --seed {seed} --steps {steps} --threads {threads}

The seed fixes the data and the start. Another version of Python (other documentation strings),
of torch or of the processor, and another number of threads, give a different but equally small
model.

## Limits

- English only. It was trained on at most 512 tokens at once; prompts up to the 8,192 tokens of
  the configuration run, but what it says after a long prompt means little.
- Sums are mostly wrong, whatever it says about itself. It copies badly: it will not tell
  a story about the animal that was asked for, or remember a name.
- What it says about AccelGen was true of the version it was trained for; the documentation has
  the last word.
"""


def card(training: Training) -> str:
    """The README.md of the model folder."""
    return CARD.format(**vars(training))
