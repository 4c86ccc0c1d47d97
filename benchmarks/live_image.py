"""``python -m benchmarks.live_image``: what running LoRAs live costs in a UNet.

A small one on one thread of a CPU, on a GPU one of Stable Diffusion 1.5's size.

Four LoRAs of rank 8 on the UNet's attention, then on its convolutions as well; a batch of twelve: six variants (the base, each LoRA,
their sum) with classifier-free guidance. Peers in the same run: the bare UNet, and PEFT with the four adapters active, which runs
their sum in every row. One claim: beside the bare UNet, LoRAs on the attention cost at most 15 %.
"""

from __future__ import annotations

import copy
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from backends.device import pick
from benchmarks.clock import seconds
from benchmarks.report import finish, machine, parser_for, table
from lego import read_adapter
from mole.live import Live, LivePool, Weighting

OVERHEAD = 1.15
LORAS, RANK = ("a", "b", "c", "d"), 8
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]
CONVOLUTIONS = [*ATTENTION, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv"]
SAMPLES, WORDS = 12, 16


SMALL = {
    "sample_size": 8, "in_channels": 32, "out_channels": 32, "block_out_channels": (128, 192), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 128, "attention_head_dim": 4, "norm_num_groups": 16,
}  # fmt: skip
"""Of the built-in model's kind: latents of 8 × 8, 128 and 192 channels, attention in the inner blocks."""

LARGE = {"sample_size": 64, "cross_attention_dim": 768}
"""Stable Diffusion 1.5's, with what diffusers' class has without being told: latents of 64 × 64, 320 to 1280 channels."""


def unet_of(device: torch.device, dtype: torch.dtype) -> UNet2DConditionModel:
    """The UNet that suits the device, of random weights."""
    torch.manual_seed(0)
    with device:
        unet = UNet2DConditionModel(**SMALL if device.type == "cpu" else LARGE)  # type: ignore[arg-type]
    return unet.eval().requires_grad_(False).to(dtype=dtype, memory_format=torch.channels_last)


def write_loras(unet: nn.Module, targets: list[str], folder: Path) -> dict[str, Path]:
    """Four PEFT adapters of random numbers."""
    paths = {}
    for seed, name in enumerate(LORAS):
        torch.manual_seed(seed)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=targets, init_lora_weights=False)
        get_peft_model(copy.deepcopy(unet), config).save_pretrained(folder / name)  # type: ignore[arg-type]
        paths[name] = folder / name
    return paths


def with_peft(unet: nn.Module, paths: dict[str, Path]) -> Any:
    """A copy of the UNet under PEFT, all adapters active."""
    first, *others = paths.items()
    peft: Any = PeftModel.from_pretrained(
        copy.deepcopy(unet), first[1], adapter_name=first[0], autocast_adapter_dtype=False
    )
    for name, path in others:
        peft.load_adapter(path, adapter_name=name, autocast_adapter_dtype=False)
    peft.base_model.set_adapter(list(paths))
    return peft.eval()


def live_runs(unet: UNet2DConditionModel, paths: dict[str, Path]) -> dict[str, Live]:
    """The live layer with six variants over and over, and with the sum in every row."""
    pool = LivePool({name: read_adapter(path) for name, path in paths.items()}, unet.device, unet.dtype)
    total = Weighting(tuple((name, 1.0) for name in paths))
    runs = {}
    for name, rows in (
        ("six variants", [Weighting(), *(Weighting(((name, 1.0),)) for name in paths), total]),
        ("the sum in all rows", [total]),
    ):
        runs[name] = Live(unet, pool)
        runs[name].set_rows(pool.row_weights(rows))
    return runs


def measure(unet: UNet2DConditionModel, targets: list[str], rounds: int) -> dict[str, float]:
    """Median seconds of a pass of each, in turns: of the only thread that works, so that neighbours on the machine count little."""
    draw, shape, kind = torch.Generator().manual_seed(1), unet.config, {"device": unet.device, "dtype": unet.dtype}
    latents = torch.randn(SAMPLES, shape.in_channels, shape.sample_size, shape.sample_size, generator=draw)
    text = torch.randn(SAMPLES, WORDS, shape.cross_attention_dim, generator=draw)
    inputs = (latents.to(**kind, memory_format=torch.channels_last), torch.tensor(500), text.to(**kind))
    with tempfile.TemporaryDirectory() as folder:
        paths = write_loras(unet, targets, Path(folder))
        peft, lives = with_peft(unet, paths), live_runs(unet, paths)

    def attached(live: Live) -> None:
        with live:
            unet(*inputs)

    runs: dict[str, Callable[[], object]] = {"bare": lambda: unet(*inputs), "PEFT": lambda: peft(*inputs)}
    for name, live in lives.items():
        runs[name] = lambda live=live: attached(live)  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        for turn in range(rounds + 2):
            for name in list(runs) if turn % 2 else list(runs)[::-1]:
                took = seconds(runs[name], time.thread_time)
                times[name] += [took] if turn > 1 else []
    return {name: median(found) for name, found in times.items()}


def main() -> int:
    """Measures, prints, and returns 1 where the claim does not hold."""
    parser = parser_for("live_image", __doc__)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    unet, rows, missed = unet_of(*pick()), [], []
    for where, targets in (("attention", ATTENTION), ("attention and convolutions", CONVOLUTIONS)):
        found = measure(unet, targets, options.rounds)
        for name in ("six variants", "the sum in all rows"):
            ours, bare, peft = found[name], found["bare"], found["PEFT"]
            times = [f"{1000 * took:.0f} ms" for took in (ours, bare, peft)]
            rows.append([f"{where}: {name}", *times, f"{ours / bare:.2f}", f"{ours / peft:.2f}"])
            if where == "attention" and ours > OVERHEAD * bare:
                missed.append(f"{name}: {ours / bare:.2f} of the bare UNet's time, not {OVERHEAD}")
    head = ["four LoRAs, rank 8, on", "Brickyard", "bare UNet", "PEFT", "of the bare UNet's time", "of PEFT's"]
    return finish(
        "live_image", table(head, rows) + f"\n\nA pass of {SAMPLES} samples; {machine()}", missed, options.write
    )


if __name__ == "__main__":
    sys.exit(main())
