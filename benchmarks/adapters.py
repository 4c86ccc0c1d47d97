"""Adapters of the real sizes, random but seeded, for timings: Llama-2-7B in PEFT's layout, SDXL's UNet in diffusers'.

python -m benchmarks.adapters FOLDER [--count 4] [--rank 16]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

Shapes = dict[str, tuple[int, int]]  # (d_in, d_out) by module


def llama_2_7b() -> Shapes:
    """All seven linear kinds of 32 layers."""
    hidden, inner = 4096, 11008
    kinds = {f"self_attn.{kind}_proj": (hidden, hidden) for kind in "qkvo"}
    kinds |= {"mlp.gate_proj": (hidden, inner), "mlp.up_proj": (hidden, inner), "mlp.down_proj": (inner, hidden)}
    return {f"model.layers.{layer}.{kind}": shape for layer in range(32) for kind, shape in kinds.items()}


def sdxl() -> Shapes:
    """The attention layers of the UNet, as most SDXL LoRAs adapt them."""
    found: Shapes = {}
    for block, attentions, depth, width in sdxl_blocks():
        for i in range(attentions):
            for layer in range(depth):
                place = f"unet.{block}.attentions.{i}.transformer_blocks.{layer}"
                found |= {f"{place}.attn1.{part}": (width, width) for part in ("to_q", "to_k", "to_v", "to_out.0")}
                found |= {f"{place}.attn2.{part}": (width, width) for part in ("to_q", "to_out.0")}
                found |= {f"{place}.attn2.{part}": (2048, width) for part in ("to_k", "to_v")}
    return found


def sdxl_blocks() -> Iterator[tuple[str, int, int, int]]:
    """Block, its attentions, their depth and width."""
    yield "down_blocks.1", 2, 2, 640
    yield "down_blocks.2", 2, 10, 1280
    yield "mid_block", 1, 10, 1280
    yield "up_blocks.0", 3, 10, 1280
    yield "up_blocks.1", 3, 2, 640


def factors(shapes: Shapes, rank: int, seed: int, names: tuple[str, str], prefix: str) -> dict[str, torch.Tensor]:
    """fp16 factors of every module, as large as trained ones are."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module, (d_in, d_out) in shapes.items():
        down, up = (torch.randn(shape, generator=generator) for shape in ((rank, d_in), (d_out, rank)))
        tensors[f"{prefix}{module}.{names[0]}.weight"] = (down / d_in**0.5).half()
        tensors[f"{prefix}{module}.{names[1]}.weight"] = (0.02 * up).half()
    return tensors


def make_llama(folder: Path, count: int = 4, rank: int = 16) -> list[Path]:
    """PEFT folders, 80 MB each at rank 16; those that are there are kept."""
    made = []
    for seed in range(count):
        path = folder / f"llama-{rank}-{seed}"
        if not (path / "adapter_config.json").exists():
            path.mkdir(parents=True, exist_ok=True)
            tensors = factors(llama_2_7b(), rank, seed, ("lora_A", "lora_B"), "base_model.model.")
            save_file(tensors, path / "adapter_model.safetensors")
            targets = sorted({module.rsplit(".", 1)[1] for module in llama_2_7b()})
            config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "target_modules": targets}
            config |= {"base_model_name_or_path": "meta-llama/Llama-2-7b-hf", "task_type": "CAUSAL_LM"}
            (path / "adapter_config.json").write_text(json.dumps(config))
        made.append(path)
    return made


def make_sdxl(folder: Path, count: int = 4, rank: int = 16) -> list[Path]:
    """diffusers' single files; those that are there are kept."""
    made = []
    for seed in range(count):
        path = folder / f"sdxl-{rank}-{seed}" / "pytorch_lora_weights.safetensors"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".partial")
            save_file(factors(sdxl(), rank, seed, ("lora_A", "lora_B"), ""), scratch)
            scratch.rename(path)
        made.append(path)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--count", type=int, default=4)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    for path in make_llama(options.folder, options.count, options.rank) + make_sdxl(
        options.folder, options.count, options.rank
    ):
        print(path)
