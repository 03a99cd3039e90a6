"""Whether a drafter speaks the model's language: token ids must mean the same to both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from accelgen.worker.faults import LoadError, one_line
from accelgen.worker.model import Loaded


def check_vocabulary(drafter: Loaded, model: Loaded) -> None:
    """Raises LoadError with the numbers unless their tokenizers have the same tokens. The tables of embeddings may be
    of different lengths if all tokens are in both: some are rounded up (Qwen2.5: 151,936 rows for its smaller models,
    152,064 for the others).

    Two folders without tokenizer.json are compared by size only: then nobody here can turn text into tokens, either."""
    names = (
        f"drafter {drafter.checkpoint.path}: another vocabulary than model {model.checkpoint.path}"
    )
    sizes = f"{names}: {drafter.vocab_size:,} token ids, not {model.vocab_size:,}"
    own, other = _tokens(drafter.checkpoint.path), _tokens(model.checkpoint.path)
    if own is None or other is None:
        if own is not other:
            lacking = drafter if own is None else model
            raise LoadError(
                f"drafter {drafter.checkpoint.path}: cannot be compared with the model's vocabulary:"
                f" {lacking.checkpoint.path} has no tokenizer.json"
            )
        if drafter.vocab_size != model.vocab_size:
            raise LoadError(sizes)
        return
    if drafter.vocab_size != model.vocab_size and (
        own != other or max(own, default=0) >= min(drafter.vocab_size, model.vocab_size)
    ):
        raise LoadError(sizes)
    differ = sorted(id for id in own.keys() | other.keys() if own.get(id) != other.get(id))
    if differ:
        first = differ[0]
        raise LoadError(
            f"{names}: {len(differ):,} of {max(len(own), len(other)):,} tokens differ, first id {first}:"
            f" {_shown(own, first)}, not {_shown(other, first)}"
        )


def _shown(tokens: dict[int, str], id: int) -> str:
    return repr(tokens[id][:40]) if id in tokens else "no token"


def _tokens(path: Path) -> dict[int, str] | None:
    """Token by id as tokenizer.json has it, the added ones included; None if the folder has none."""
    file = path / "tokenizer.json"
    if not file.is_file():
        return None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        found = dict(_entries(raw["model"]["vocab"]))
        found.update((int(one["id"]), str(one["content"])) for one in raw.get("added_tokens") or ())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{file}: cannot be read: {one_line(error)}") from error
    return found


def _entries(vocab: Any) -> list[tuple[int, str]]:
    """(id, token) of a table token -> id (BPE, WordPiece, WordLevel), or of a list of [token, score] (Unigram)."""
    if isinstance(vocab, dict):
        return [(int(id), str(token)) for token, id in vocab.items()]
    return [(id, str(token)) for id, (token, *_) in enumerate(vocab)]
