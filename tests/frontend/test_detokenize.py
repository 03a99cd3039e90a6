"""Token by token the same text as at once; characters that span tokens come out whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from accelgen.frontend.detokenize import Detokenizer


def push_all(detokenizer: Detokenizer, ids: list[int]) -> str:
    return "".join(detokenizer.push(token) for token in ids) + detokenizer.flush()


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert push_all(Detokenizer(tokenizer), ids) == tokenizer.decode(ids)


@given(st.lists(st.integers(0, 399), max_size=80))
def test_any_tokens(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Random tokens make broken characters: never an exception, and the whole characters are the same."""
    ids = [token for token in ids if token < tokenizer.get_vocab_size()]
    streamed = push_all(Detokenizer(tokenizer), ids)
    assert streamed.replace("\ufffd", "") == tokenizer.decode(ids).replace("\ufffd", "")


def test_no_half_character_is_shown(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("🙂", add_special_tokens=False).ids
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.push(token) for token in ids] == [""] * (len(ids) - 1) + ["🙂"]


def test_garbage_is_not_held_for_ever(tokenizer: Tokenizer) -> None:
    byte = tokenizer.token_to_id("Ģ")  # a continuation byte
    assert byte is not None
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.push(byte) for _ in range(1000)]
    assert max(len(text) for text in texts) <= 32
    assert len("".join(texts)) > 900


def test_special_tokens_are_not_text(tokenizer: Tokenizer) -> None:
    ids = [tokenizer.token_to_id("<|im_start|>"), *tokenizer.encode("fox").ids]
    assert push_all(Detokenizer(tokenizer), ids) == "fox"


@pytest.fixture(scope="module")
def metaspace() -> Tokenizer:
    """A tokenizer in the manner of SentencePiece: a leading blank belongs to the word, bytes as fallback."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    special = [AddedToken("<unk>", special=True), *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in map(str, special[1:])])
    return tokenizer


def test_blank_at_the_border_of_a_completion(metaspace: Tokenizer) -> None:
    prompt = metaspace.encode("the quick").ids
    answer = metaspace.encode("brown fox").ids
    assert push_all(Detokenizer(metaspace, prompt), answer) == " brown fox"
    assert push_all(Detokenizer(metaspace), answer) == "brown fox"


def test_blank_survives_a_flush_in_the_middle(metaspace: Tokenizer) -> None:
    detokenizer = Detokenizer(metaspace)
    ids = metaspace.encode("brown fox").ids
    broken = [metaspace.token_to_id("<0xE6>")]
    text = "".join(detokenizer.push(token) for token in [*ids, *broken])
    text += detokenizer.flush()
    assert text.startswith("brown fox") and text.endswith("\ufffd")
    assert push_all(detokenizer, ids).lstrip() == "brown fox"


@given(st.lists(st.integers(0, 399), max_size=20), st.text(min_size=1, max_size=20))
def test_nothing_of_the_prompt_comes_back(
    tokenizer: Tokenizer, prompt: list[int], text: str
) -> None:
    """Also when the prompt ends within a character."""
    prompt = [token for token in prompt if token < tokenizer.get_vocab_size()]
    ids = tokenizer.encode("a" + text.replace("\ufffd", ""), add_special_tokens=False).ids
    streamed = push_all(Detokenizer(tokenizer, prompt), ids)
    assert streamed == tokenizer.decode(ids)
