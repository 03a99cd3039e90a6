"""Which tokens end a thinking, and whether a prompt has ended it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizers import AddedToken, Tokenizer

from accelgen.frontend.model_files import ModelError, read_model
from accelgen.frontend.think_tokens import KNOWN_ENDS, is_closed, think_end_ids
from accelgen.frontend.tokenizer import TextCodec


@pytest.fixture
def thinker(tokenizer: Tokenizer) -> Tokenizer:
    """With the tokens of DeepSeek-R1 (not special there) and of Magistral (special)."""
    made = Tokenizer.from_str(tokenizer.to_str())
    made.add_tokens([AddedToken("<think>", special=False), AddedToken("</think>", special=False)])
    made.add_special_tokens([AddedToken("[/THINK]", special=True)])
    return made


def test_they_are_found_among_the_added_tokens(tokenizer: Tokenizer, thinker: Tokenizer) -> None:
    assert think_end_ids(tokenizer) == ()
    ids = [thinker.token_to_id("</think>"), thinker.token_to_id("[/THINK]")]
    assert think_end_ids(thinker) == tuple(sorted(ids))
    assert len(set(KNOWN_ENDS)) == len(KNOWN_ENDS)


def test_others_are_named(thinker: Tokenizer) -> None:
    end, begin = thinker.token_to_id("</think>"), thinker.token_to_id("<think>")
    assert think_end_ids(thinker, "</think>") == (end,)
    assert think_end_ids(thinker, "</think>, <think>") == tuple(sorted((end, begin)))
    assert think_end_ids(thinker, "t") == (thinker.token_to_id("t"),)
    assert think_end_ids(thinker, "none") == ()


@pytest.mark.parametrize("stated", ["</thunk>", "</think>,", ",", "</think>,no such words at all"])
def test_what_is_no_token_is_said(thinker: Tokenizer, stated: str) -> None:
    with pytest.raises(ModelError, match="^think_tokens: .* is not one token of this model's"):
        think_end_ids(thinker, stated)


def test_the_codec_has_them(thinker: Tokenizer, tmp_path: Path) -> None:
    thinker.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({}))
    model = read_model(str(tmp_path), "")
    assert TextCodec(model).think_end_ids == think_end_ids(thinker)
    assert TextCodec(model, "none").think_end_ids == ()
    with pytest.raises(ModelError, match="'nothing like it' is not one token"):
        TextCodec(model, "nothing like it")


def test_a_prompt_that_ends_in_a_closed_thinking() -> None:
    """Qwen3 writes `<think>`, two line breaks, `</think>`, two line breaks when thinking is switched off."""
    assert is_closed([1, 2, 90, 5, 91, 5], {91})
    assert not is_closed([1, 2, 90, 5, 91, 5, 6, 7, 8], {91})  # that was an earlier turn
    assert not is_closed([1, 2, 90], {91}) and not is_closed([], {91}) and not is_closed([91], ())
