"""Streaming text from tokens that end in the middle of characters."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from backends.detokenise import BROKEN, Detokeniser


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte: every character beyond ASCII is spread over several tokens."""
    vocabulary = {character: number for number, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """Words that carry their leading space, which is dropped at the start of a text, as SentencePiece does."""
    vocabulary = {word: number for number, word in enumerate(["▁The", "▁sea", "s", "▁", "▁rises", "."])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


TEXTS = ["plain", "naïve façade", "日本語のテキスト", "👍🏽 family 👨‍👩‍👧", "a\n\tb  c", "mixed 語 and 👍 end", "é"]


@pytest.mark.parametrize("text", TEXTS)
def test_characters_appear_whole_and_in_order(text: str) -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    stream, seen = Detokeniser(tokenizer), [""]
    for token in ids:
        stream.add(token)
        seen.append(stream.text)
    assert not any(BROKEN in shown for shown in seen)
    assert all(later.startswith(earlier) for earlier, later in pairwise(seen))
    assert set(seen) == {text[:i] for i in range(len(text) + 1)}
    assert stream.text == text
    stream.finish()
    assert stream.text == text


def test_spaces_between_words_survive() -> None:
    tokenizer, stream = word_tokenizer(), Detokeniser(word_tokenizer())
    seen = []
    for token in (0, 1, 2, 4, 5):
        stream.add(token)
        seen.append(stream.text)
    assert seen == ["The", "The sea", "The seas", "The seas rises", "The seas rises."]
    stream.finish()
    assert stream.text == tokenizer.decode([0, 1, 2, 4, 5]) == seen[-1]


def test_a_text_cut_inside_a_character_is_what_decoding_gives() -> None:
    tokenizer = byte_tokenizer()
    ids = tokenizer("ab語")["input_ids"][:-1]
    stream = Detokeniser(tokenizer)
    for token in ids:
        stream.add(token)
    assert stream.text == "ab"
    stream.finish()
    assert stream.text == tokenizer.decode(ids)
