"""Adapters for the tests: random, seeded, of any ranks, scales and targets."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lego import Adapter, Factors

# The same kernels on every machine; `make gpu` says otherwise. The apps and commands that tests start inherit it.
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

SHAPES = {"q_proj": (24, 24), "k_proj": (24, 12), "up_proj": (24, 40)}


def make_adapter(
    name: str,
    seed: int,
    rank: int = 4,
    alpha: float = 8,
    layers: int = 2,
    kinds: tuple[str, ...] = ("q_proj", "k_proj"),
) -> Adapter:
    """A random adapter in memory."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for layer in range(layers):
        for kind in kinds:
            d_in, d_out = SHAPES[kind]
            down = torch.randn(rank, d_in, generator=generator) * 0.2
            up = torch.randn(d_out, rank, generator=generator) * 0.1
            factors[f"model.layers.{layer}.self_attn.{kind}"] = Factors(down, up, alpha / rank)
    return Adapter.from_factors(name, factors)


def mixed_adapters() -> list[Adapter]:
    """Three adapters of ranks 4, 2 and 6, different scales and different targets."""
    return [
        make_adapter("first", 1, rank=4, alpha=8),
        make_adapter("second", 2, rank=2, alpha=2, kinds=("q_proj",)),
        make_adapter("third", 3, rank=6, alpha=3, kinds=("q_proj", "k_proj", "up_proj")),
    ]


def equal_adapters(count: int = 3) -> list[Adapter]:
    """Adapters of one rank, scale and target set."""
    return [make_adapter(f"adapter{i}", 10 + i) for i in range(count)]


def write_peft(folder: Path, tensors: dict[str, torch.Tensor], **config: object) -> Path:
    """A PEFT folder written by hand: raw tensors and a raw config."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    full = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(full))
    return folder


def half_pair(module: str, rank: int = 4, d_in: int = 24, d_out: int = 24, seed: int = 0) -> dict[str, torch.Tensor]:
    """The two tensors of one module under PEFT's keys."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"base_model.model.{module}.lora_A.weight": torch.randn(rank, d_in, generator=generator),
        f"base_model.model.{module}.lora_B.weight": torch.randn(d_out, rank, generator=generator),
    }


@pytest.fixture
def peft_folder(tmp_path: Path) -> Callable[..., Path]:
    """Writes a PEFT folder with one module, config fields as given."""

    def write(name: str = "adapter", **config: object) -> Path:
        return write_peft(tmp_path / name, half_pair("model.layers.0.self_attn.q_proj"), **config)

    return write
