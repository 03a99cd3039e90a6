"""What transformers' own model says, and the rule by which a server's greedy text is compared with it:
where the two first differ, the reference must be undecided (its two best logits within MARGIN)."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

MARGIN = 1e-4


class Reference:
    """The bundled model in float32, run by transformers."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def generate(self, prompt: list[int], max_tokens: int) -> list[int]:
        """Greedy tokens, without regard to end-of-text."""
        given = torch.tensor([prompt])
        with torch.inference_mode():
            output = self.model.generate(
                given, attention_mask=torch.ones_like(given), max_new_tokens=max_tokens,
                do_sample=False, eos_token_id=None, pad_token_id=0,
            )  # fmt: skip
        return output[0, len(prompt) :].tolist()

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens, skip_special_tokens=True)

    def agrees(self, prompt: list[int], text: str, max_tokens: int) -> bool:
        """Whether `text` is a greedy answer of `max_tokens` tokens to `prompt`, ties of MARGIN allowed."""
        tokens = self.generate(prompt, max_tokens)
        if self.text(tokens) == text:
            return True
        return any(self.text(path) == text for path in self._ties(prompt, tokens, max_tokens))

    def _ties(self, prompt: list[int], tokens: list[int], max_tokens: int) -> list[list[int]]:
        """Greedy paths that leave `tokens` at a position where the reference is undecided."""
        with torch.inference_mode():
            logits = self.model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        best = logits.topk(2)
        paths = []
        for at in torch.nonzero(best.values[:, 0] - best.values[:, 1] < MARGIN).flatten().tolist():
            other = next(t for t in best.indices[at].tolist() if t != tokens[at])
            start = [*tokens[:at], other]
            paths.append(start + self.generate(prompt + start, max_tokens - len(start)))
        return paths
