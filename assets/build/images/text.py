"""The text side: a vocabulary of byte pairs made from the captions, and a small CLIP text encoder."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Int
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from assets.build.images.concepts import caption, training_caption
from assets.build.images.sets import STYLES, Style

WIDTH, LENGTH, VOCABULARY = 128, 24, 2048
START, END = "<|startoftext|>", "<|endoftext|>"


def new_tokenizer(concepts: Iterable[str]) -> CLIPTokenizer:
    """CLIP's tokenizer with a vocabulary made from these concepts' captions; any other text is spelt in bytes."""
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation(),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Named ahead, all single letters have their numbers; the learner would number the final ones in an order of chance.
    letters = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[START, END, *letters], end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator([caption(concept, style) for concept in concepts for style in (None, *STYLES)], trainer)
    model = json.loads(learner.to_str())["model"]
    return CLIPTokenizer(model["vocab"], [tuple(pair) for pair in model["merges"]], model_max_length=LENGTH)


def token_ids(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Int[Tensor, "n length"]:
    """Token numbers as a Stable Diffusion pipeline makes them: padded and cut to the encoder's length."""
    return tokenizer(
        list(captions),
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Two layers of width 128, untrained."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=2,
            num_attention_heads=4, max_position_embeddings=LENGTH, projection_dim=WIDTH, hidden_act="gelu",
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
        )
    )  # fmt: skip


def drawn_captions(pairs: Sequence[tuple[str, Style]], rows: Tensor, generator: torch.Generator) -> list[str]:
    """A training caption for each of these rows, drawn with the step's generator."""
    rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
    return [training_caption(*pairs[row], rng) for row in rows.tolist()]
