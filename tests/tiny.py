"""A language model of a few thousand random weights with a tokenizer of single characters, and adapters for it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from backends import library
from backends.bases import BaseInfo, TextBase
from backends.library import Entry
from lego import Adapter, Factors
from tests.conftest import write_peft

ALPHABET = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:?\n"
END = "<end>"
CHAT = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}a: "
SHAPES = {
    "self_attn.q_proj": (24, 24),
    "self_attn.k_proj": (24, 12),
    "self_attn.v_proj": (24, 12),
    "self_attn.o_proj": (24, 24),
    "mlp.gate_proj": (24, 40),
    "mlp.up_proj": (24, 40),
    "mlp.down_proj": (40, 24),
}


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token a character."""
    vocabulary = {character: number for number, character in enumerate([*ALPHABET, END])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="."))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("[\\s\\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=CHAT)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    """A Llama with random weights large enough that texts vary."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(ALPHABET) + 1,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.35,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=len(ALPHABET),
        pad_token_id=len(ALPHABET),
    )
    return LlamaForCausalLM(config).eval().requires_grad_(False)


def tiny_gpt2() -> GPT2LMHeadModel:
    """A model that learns a vector for every position."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(ALPHABET) + 1,
        n_embd=24,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.35,
        bos_token_id=len(ALPHABET),
        eos_token_id=len(ALPHABET),
        pad_token_id=len(ALPHABET),
    )
    return GPT2LMHeadModel(config).eval().requires_grad_(False)


def tiny_base(seed: int = 0, model: Any = None) -> TextBase:
    """The model as the backends take it."""
    return TextBase(
        model=model or tiny_model(seed),
        tokenizer=tiny_tokenizer(),
        info=BaseInfo("tiny", "tiny", "folder", ready=True),
        device=torch.device("cpu"),
        dtype=torch.float32,
        folder=Path(),
    )


def tiny_tensors(
    seed: int, rank: int = 4, size: float = 0.5, kinds: tuple[str, ...] = tuple(SHAPES)
) -> dict[str, torch.Tensor]:
    """Random factors under PEFT's keys."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for kind in kinds:
            d_in, d_out = SHAPES[kind]
            key = f"base_model.model.model.layers.{layer}.{kind}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, d_in, generator=generator) * size
            tensors[f"{key}.lora_B.weight"] = torch.randn(d_out, rank, generator=generator) * size
    return tensors


def tiny_entry(folder: Path, seed: int, rank: int = 4, alpha: float = 2, **more: Any) -> Entry:
    """A random adapter in a folder, added to the library."""
    return library.add_folder(write_peft(folder, tiny_tensors(seed, rank, **more), r=rank, lora_alpha=alpha))


def tiny_adapter(name: str, seed: int, rank: int = 4, scale: float = 0.5) -> Adapter:
    """A random adapter in memory."""
    tensors = tiny_tensors(seed, rank)
    modules = {key[len("base_model.model.") : -len(".lora_A.weight")] for key in tensors if "lora_A" in key}
    half = "base_model.model.{}.lora_{}.weight"
    factors = {m: Factors(tensors[half.format(m, "A")], tensors[half.format(m, "B")], scale) for m in modules}
    return Adapter.from_factors(name, factors)


def merged(model: Any, adapters: Mapping[str, float]) -> Any:
    """A copy of the model with Σ w s B A added to its weights: what a variant must compute, densely."""
    model = copy.deepcopy(model)
    for key, weight in adapters.items():
        adapter = library.get(key)
        for module in adapter.modules:
            model.get_submodule(module).weight += weight * adapter[module].delta()
    return model
