"""A UNet with every part of Stable Diffusion's, of a few thousand random weights, and adapters for its linears and convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from lego import Adapter, Factors

SIDE, CHANNELS, TOKENS, WIDTH = 16, 4, 5, 12
"""Of the latents (sides, channels) and the text (tokens, features)."""

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
FEED = ("ff.net.0.proj", "ff.net.2")
SQUARE = ("proj_in", "proj_out", "conv_shortcut")
"""Convolutions of 1 × 1."""
CONVS = ("conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv", "conv_in", "conv_out")
"""Convolutions of 3 × 3; down samplers have a stride of 2."""
TIME = ("time_emb_proj", "linear_1", "linear_2")
"""Linears of inputs (rows, features)."""
EVERY = (*ATTENTION, *FEED, *SQUARE, *CONVS, *TIME)

KINDS = {
    "first": (1, 4, (*ATTENTION, "conv1")),
    "second": (2, 2, ("to_k", "to_out.0", *FEED, *SQUARE, "upsamplers.0.conv", "linear_1")),
    "third": (3, 3, ("to_q", "to_v", "conv1", "conv2", "conv_in", "downsamplers.0.conv", "proj_in", "time_emb_proj")),
}
"""Seed, rank and targets of the adapters: no two alike."""


def tiny_unet(seed: int = 0) -> UNet2DConditionModel:
    """The blocks of Stable Diffusion 1.5: three down with attention and one without, the middle, four up."""
    torch.manual_seed(seed)
    return (
        UNet2DConditionModel(
            sample_size=SIDE,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(8, 8, 16, 16),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        .eval()
        .requires_grad_(False)
    )


def small_unet(seed: int = 0) -> UNet2DConditionModel:
    """Two down blocks, the outer one with attention, of one resnet each, for tests that run it often."""
    torch.manual_seed(seed)
    return (
        UNet2DConditionModel(
            sample_size=SIDE // 2,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            layers_per_block=1,
            block_out_channels=(8, 12),
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            cross_attention_dim=WIDTH,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        .eval()
        .requires_grad_(False)
    )


def noisy(rows: int, seed: int = 0, side: int = SIDE) -> dict[str, Any]:
    """Arguments of a UNet's forward pass: latents, one step of time for each sample, text."""
    draw = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(rows, CHANNELS, side, side, generator=draw),
        "timestep": torch.randint(0, 1000, (rows,), generator=draw),
        "encoder_hidden_states": torch.randn(rows, TOKENS, WIDTH, generator=draw),
    }


def rows_of(inputs: dict[str, Any], rows: Sequence[int] | Tensor) -> dict[str, Any]:
    """Some of the samples."""
    return {name: value[torch.as_tensor(rows)] for name, value in inputs.items()}


def modules_of(model: nn.Module, kinds: Sequence[str] = EVERY) -> list[str]:
    """The names of a model's modules of some kinds."""
    endings = tuple(f".{kind}" for kind in kinds)
    return [name for name, _ in model.named_modules() if f".{name}".endswith(endings)]


def unet_adapter(
    model: nn.Module, name: str, seed: int, rank: int, kinds: Sequence[str], size: float = 0.3, prefix: str = ""
) -> Adapter:
    """A random adapter in memory."""
    draw = torch.Generator().manual_seed(seed)
    factors = {}
    for module in modules_of(model, kinds):
        weight = model.get_submodule(module).get_parameter("weight")
        down = torch.randn(rank, weight[0].numel(), generator=draw) * size / weight[0].numel() ** 0.5
        up = torch.randn(weight.shape[0], rank, generator=draw) * size
        factors[prefix + module] = Factors(down, up, 2 / rank, kernel=tuple(weight.shape[2:]))
    return Adapter.from_factors(name, factors)


def unet_adapters(model: nn.Module, names: Sequence[str] = tuple(KINDS), **more: Any) -> dict[str, Adapter]:
    """Random adapters of different ranks, scales and targets."""
    return {name: unet_adapter(model, name, *KINDS[name], **more) for name in names}
