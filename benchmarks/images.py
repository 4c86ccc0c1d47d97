"""``python -m benchmarks.images``: six variants of one prompt, 20 steps, in one batch, and one after another with diffusers alone.

The base, three LoRAs, their average and their sum, as in a comparison on the page. The peer is diffusers' own pipeline with the same
three LoRAs loaded, switched by `set_adapters` between six runs. Both give the same pictures, which is checked first. One claim: the
batch is at least twice as fast. On the built-in pipeline and its LoRAs where they are there, else on random ones of the same shape.
Processor time of one thread, so that neighbours on the machine count little.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL.Image import Image

from backends import library, pipelines
from backends.bases import IMAGE, ImageBase, load_base
from backends.image import Drawing, Variant, draw
from backends.library import Entry
from benchmarks.clock import seconds
from benchmarks.report import finish, machine, parser_for, table
from mole.live import Weighting

PROMPT, DRAWING = "a red apple", Drawing(steps=20, guidance=3.0, seeds=(7,))
LORAS = 3
FASTER = 2.0
ATTENTION = ["to_q", "to_k", "to_v", "to_out.0"]


def random_pipeline(folder: Path) -> str:
    """The built-in pipeline's shape, untrained."""
    from assets.build.images.concepts import DRAWN
    from assets.build.images.diffusion import SHAPE, Denoiser
    from assets.build.images.folder import new_pipeline
    from assets.build.images.text import new_tokenizer
    from assets.build.images.vae import LATENTS, PATCH, new_vae

    torch.manual_seed(0)
    tokenizer = new_tokenizer(DRAWN)
    vae = new_vae(torch.rand(64, 3, 8 * PATCH, 8 * PATCH) * 2 - 1)
    new_pipeline(vae, Denoiser(tokenizer, LATENTS, 8, SHAPE), tokenizer).save_pretrained(folder)
    return str(folder)


def random_loras(base: ImageBase, folder: Path) -> list[Entry]:
    """LoRAs of rank 8 on the attention, as the built-in style LoRAs are, of random numbers."""
    from peft import LoraConfig, get_peft_model_state_dict

    found = []
    for seed in range(LORAS):
        unet = StableDiffusionPipeline.from_pretrained(base.folder).unet
        torch.manual_seed(seed)
        unet.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=ATTENTION, init_lora_weights=False))
        StableDiffusionPipeline.save_lora_weights(folder / str(seed), unet_lora_layers=get_peft_model_state_dict(unet))
        found.append(library.add_folder(folder / str(seed)))
    return found


def six(loras: list[Entry]) -> list[Variant]:
    """The base, each LoRA, their average, their sum."""
    ones = [Variant(entry.title, Weighting(((entry.key, 1.0),))) for entry in loras]
    both = [Weighting(tuple((entry.key, weight) for entry in loras)) for weight in (1 / len(loras), 1.0)]
    return [Variant("base"), *ones, Variant("average", both[0]), Variant("sum", both[1])]


class Peer:
    """diffusers alone, the LoRAs loaded once."""

    def __init__(self, base: ImageBase, loras: list[Entry]) -> None:
        self.pipeline: Any = StableDiffusionPipeline.from_pretrained(
            base.folder, safety_checker=None, torch_dtype=base.dtype
        ).to(base.device)
        self.pipeline.set_progress_bar_config(disable=True)
        for entry in loras:
            file = library.get(entry.key).weights_file
            assert file is not None
            self.pipeline.load_lora_weights(str(file.parent), weight_name=file.name, adapter_name=f"lora_{entry.key}")

    def draw(self, variant: Variant) -> Image:
        """One run."""
        weights = {f"lora_{key}": weight for key, weight in variant.weighting.adapters}
        if weights:
            self.pipeline.enable_lora()
            self.pipeline.set_adapters(list(weights), list(weights.values()))
        else:
            self.pipeline.disable_lora()
        generator = torch.Generator().manual_seed(DRAWING.seeds[0])
        more = {"num_inference_steps": DRAWING.steps, "guidance_scale": DRAWING.guidance, "generator": generator}
        return self.pipeline(PROMPT, **more).images[0]


def together(base: ImageBase, variants: list[Variant]) -> list[Image]:
    """All in one batch."""
    *_, sheet = draw(base, variants, [PROMPT], DRAWING)
    return [column[0][0] for column in sheet.pictures]  # type: ignore[misc]  # the sheet is finished


def measure(base: ImageBase, loras: list[Entry], rounds: int) -> tuple[float, float]:
    """Median seconds of one batch of six and of six runs of diffusers, in turns, after both have given the same pictures."""
    variants, peer = six(loras), Peer(base, loras)
    for ours, theirs in zip(together(base, variants), map(peer.draw, variants), strict=True):
        difference = np.abs(np.asarray(ours).astype(int) - np.asarray(theirs))
        print(f"the pictures differ by {difference.max()} of 255 at most, {difference.mean():.2f} on average")
        assert difference.max() <= 2 or base.dtype != torch.float32, "the pictures must be those of diffusers"
    batch, alone = [], []
    for _ in range(rounds):
        batch.append(seconds(lambda: together(base, variants), time.process_time))
        alone.append(seconds(lambda: [peer.draw(variant) for variant in variants], time.process_time))
    return median(batch), median(alone)


def main() -> int:
    """Measures, prints, and returns 1 where the claim does not hold."""
    parser = parser_for("images", __doc__)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        shipped = (pipelines.ASSETS / pipelines.INDEX).is_file()
        base = load_base(IMAGE if shipped else random_pipeline(Path(folder) / "pipeline"))
        assert isinstance(base, ImageBase)
        loras = library.builtin("image")[:LORAS] if shipped else []
        which = "built-in" if len(loras) == LORAS else "random"
        batch, alone = measure(base, loras if len(loras) == LORAS else random_loras(base, Path(folder)), options.rounds)
    count = LORAS + 3
    rows = [
        [
            f"{count} variants, {DRAWING.steps} steps",
            f"{batch:.2f} s",
            f"{alone:.2f} s",
            f"{alone / batch:.2f} × faster",
        ],
        ["a picture", f"{batch / count:.2f} s", f"{alone / count:.2f} s", ""],
    ]
    head = ["64 × 64 pixels, guidance, medians", "one batch", "diffusers, one after another", "ratio"]
    text = f"{table(head, rows)}\n\n{'Built-in' if shipped else 'Untrained'} pipeline, {which} LoRAs; {machine()}"
    missed = [f"the batch is only {alone / batch:.2f} times faster, not {FASTER:g}"] if alone < FASTER * batch else []
    return finish("images", text, missed, options.write)


if __name__ == "__main__":
    sys.exit(main())
