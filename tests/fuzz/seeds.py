"""Sound adapters of every format and kind, as the bytes of their files; and what any such file says, by a reader of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file, save

PEFT, CONFIG, SINGLE = "adapter_model.safetensors", "adapter_config.json", "pytorch_lora_weights.safetensors"
LAYER = "base_model.model.model.layers.{}.self_attn.{}"
BLOCK = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{}"
TEXT = "text_encoder.text_model.encoder.layers.0.self_attn.{}_proj"
KOHYA = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_{}"

# How formats name a module's two halves.
HALVES = (
    (".lora_A.weight", ".lora_B.weight"), (".lora_embedding_A", ".lora_embedding_B"), (".lora.down.weight", ".lora.up.weight"),
    (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), (".lora_down.weight", ".lora_up.weight"),
    ("_lora.down.weight", "_lora.up.weight"), (".down.weight", ".up.weight"),
)  # fmt: skip


@dataclass
class Files:
    """A folder in the making.

    Attributes:
        content: bytes by file name.
        opened: what is given to the reader, a file's name; "" for the folder.
        actions: done to the folder after its files are written, for what is no plain file.
    """

    content: dict[str, bytes]
    opened: str = ""
    actions: list[Any] = field(default_factory=list)

    @property
    def weights(self) -> str:
        """Name of the weights file."""
        return next(name for name in self.content if name.endswith(".safetensors"))

    def write(self, folder: Path) -> Path:
        """Write it all.

        Returns:
            The path to give to the reader.
        """
        folder.mkdir(parents=True)
        for name, data in self.content.items():
            (folder / name).write_bytes(data)
        for action in self.actions:
            action(folder)
        return folder / self.opened if self.opened else folder


def random(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def halves(
    name: str, form: int, rank: int, d_in: int = 6, d_out: int = 8, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, torch.Tensor]:
    """The two tensors of a module, named in one of the manners of `HALVES`."""
    down, up = HALVES[form]
    return {name + down: random(seed, rank, d_in, dtype=dtype), name + up: random(seed + 1, d_out, rank, dtype=dtype)}


def peft(tensors: Mapping[str, torch.Tensor], **config: Any) -> Files:
    full = {
        "peft_type": "LORA", "base_model_name_or_path": "someone/base", "r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "k_proj"], "use_rslora": False, "use_dora": False, "init_lora_weights": True, **config,
    }  # fmt: skip
    return Files({PEFT: save(dict(tensors), {"format": "pt"}), CONFIG: json.dumps(full).encode()})


def single(tensors: Mapping[str, torch.Tensor], name: str = SINGLE, **metadata: str) -> Files:
    return Files({name: save(dict(tensors), {"format": "pt", **metadata})}, name)


@cache
def seeds() -> dict[str, Files]:
    """Sound adapters by name."""
    two = halves(LAYER.format(0, "q_proj"), 0, 4) | halves(LAYER.format(10, "k_proj"), 0, 4, seed=2)
    mixed = halves(LAYER.format(0, "q_proj"), 0, 4) | halves(LAYER.format(1, "k_proj"), 0, 2, seed=4)
    conv = {
        LAYER.format(0, "conv") + ".lora_A.weight": random(0, 2, 3, 3, 3),
        LAYER.format(0, "conv") + ".lora_B.weight": random(1, 5, 2, 1, 1),
    }
    biased = halves(LAYER.format(0, "q_proj"), 0, 4) | {LAYER.format(0, "q_proj") + ".lora_B.bias": random(3, 8)}
    embedded = halves("base_model.model.model.embed_tokens", 1, 4, 11, 6)
    unet = halves(BLOCK.format("q"), 0, 4) | halves(BLOCK.format("k"), 0, 2, dtype=torch.float16, seed=2)
    old = halves("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q", 5, 4)
    old |= halves(TEXT.format("q"), 3, 3, seed=5)
    kohya = halves(KOHYA.format("q"), 4, 4) | {KOHYA.format("q") + ".alpha": torch.tensor(2.0)}
    kohya |= halves("lora_te_text_model_encoder_layers_0_mlp_fc1", 4, 2, dtype=torch.bfloat16, seed=3)
    large = halves("lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v", 4, 4)
    large |= {"lora_unet_input_blocks_4_1_transformer_blocks_1_attn2_to_v.alpha": torch.tensor(3)}
    large |= halves("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", 4, 4, seed=2)
    large |= halves("lora_te2_text_model_encoder_layers_0_self_attn_q_proj", 4, 4, seed=4)
    resnet = "lora_unet_down_blocks_0_resnets_0_conv1"
    convolved = {resnet + ".lora_down.weight": random(0, 2, 3, 3, 3), resnet + ".lora_up.weight": random(1, 5, 2, 1, 1)}
    told = {"unet.r": 4, "unet.lora_alpha": 6, "unet.rank_pattern": {"to_k": 2}, "unet.alpha_pattern": {"to_k": 1}}
    return {
        "peft": peft(two),
        "peft half precision": peft({key: tensor.half() for key, tensor in two.items()}),
        "peft bfloat16": peft({key: tensor.bfloat16() for key, tensor in two.items()}, lora_alpha=3.5),
        "peft double": peft({key: tensor.double() for key, tensor in two.items()}),
        "peft rslora": peft(mixed, use_rslora=True, rank_pattern={"k_proj": 2}),
        "peft patterns": peft(
            mixed, rank_pattern={r".*\.k_proj": 2}, alpha_pattern={"layers.1.self_attn.k_proj": 6, "^model.*q_proj": 2}
        ),
        "peft convolution": peft(conv, r=2),
        "peft bias": peft(biased, lora_bias=True),
        "peft embedding": peft(embedded),
        "diffusers": single(unet),
        "diffusers metadata": single(unet, lora_adapter_metadata=json.dumps(told)),
        "diffusers old": single(old),
        "diffusers folder": Files(single(unet).content),
        "kohya": single(kohya, "style.safetensors"),
        "kohya large": single(large, "style.safetensors", ss_base_model_version="sdxl_base_v1-0"),
        "kohya convolution": single(convolved, "style.safetensors"),
    }


@dataclass(frozen=True)
class Truth:
    """One module by the file's own names: s·B·A, dense, and s·bias."""

    delta: np.ndarray
    bias: np.ndarray | None = None


def truth(path: Path) -> dict[str, Truth]:
    """What an adapter says, by safetensors' reader, json and PEFT's rule for patterns; keys without ``base_model.model.``.

    Raises:
        AssertionError: when a tensor belongs to no module.
    """
    folder = path if path.is_dir() else path.parent
    weights = path if path.is_file() else next(folder.glob("*.safetensors"))
    tensors, config = load_file(weights), {}
    if weights.name == PEFT:
        config = json.loads((folder / CONFIG).read_bytes())
    elif not any(key.startswith("lora_") for key in tensors):
        config = metadata_config(weights)
    if weights.name != PEFT:  # old and new names of one module, with or without its model's
        plain = {key.removeprefix("unet.").replace(".processor.", "."): tensor for key, tensor in tensors.items()}
        assert len(plain) == len(tensors), "read a module that is there twice"
        tensors = plain
    found, used = {}, set()
    for key, down in tensors.items():
        suffix = next((pair for pair in HALVES if key.endswith(pair[0])), None)
        if suffix is None or (name := key.removesuffix(suffix[0])) + suffix[1] not in tensors:
            continue
        up, alpha, bias = tensors[name + suffix[1]], tensors.get(f"{name}.alpha"), tensors.get(f"{name}.lora_B.bias")
        rank, module = down.shape[0], name.removeprefix("base_model.model.")
        if alpha is not None:
            scale = float(alpha) / rank
        else:
            told = {} if module.startswith("text_encoder") else config
            patterns = told.get("alpha_pattern") or {}
            alpha = patterns.get(
                get_pattern_key(patterns, module),
                told.get("lora_alpha", LoraConfig().lora_alpha if weights.name == PEFT else rank),
            )
            scale = alpha / (rank**0.5 if told.get("use_rslora") else rank)
        a, b = down.double().reshape(rank, -1).numpy(), up.double().reshape(-1, rank).numpy()
        found[module] = Truth(scale * (b @ a), None if bias is None else scale * bias.double().numpy())
        used |= {key, name + suffix[1], f"{name}.alpha", f"{name}.lora_B.bias"}
    assert set(tensors) <= used, f"read without a word about {sorted(set(tensors) - used)}"
    return found


def metadata_config(weights: Path) -> dict[str, Any]:
    """The UNet's LoRA config in a file's header, where diffusers wrote one."""
    data = weights.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    told = json.loads(header.get("__metadata__", {}).get("lora_adapter_metadata") or "{}")
    return {name.removeprefix("unet."): value for name, value in told.items()}
