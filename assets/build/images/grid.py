"""Drawing captions with a finished pipeline, and sheets of pictures."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from assets.build.images.concepts import STYLE_WORD, caption
from assets.build.images.pictures import Pictures

STEPS, GUIDANCE, BATCH = 20, 2.0, 16


def sample_captions(pictures: Pictures, count: int = 48, seed: int = 0) -> list[tuple[str, str]]:
    """Concepts drawn from these pictures, each once, with a caption; as in training, one in four names its style."""
    rng = random.Random(seed)
    shuffled = rng.sample(pictures.pairs, len(pictures))
    chosen = list(dict(shuffled).items())[:count]
    return [(concept, caption(concept, style if rng.random() < STYLE_WORD else None)) for concept, style in chosen]


def draw(
    pipeline: StableDiffusionPipeline, captions: Sequence[str], seed: int, steps: int, guidance: float
) -> list[Image.Image]:  # fmt: skip
    """One picture a caption; picture i starts from noise of seed + i, whatever is drawn beside it."""
    pipeline.set_progress_bar_config(disable=True)
    pictures = []
    for first in range(0, len(captions), BATCH):
        part = list(captions[first : first + BATCH])
        noise = [torch.Generator().manual_seed(seed + first + at) for at in range(len(part))]
        drawn = pipeline(part, num_inference_steps=steps, guidance_scale=guidance, generator=noise)
        pictures += drawn.images
    return pictures


def sheet(pictures: Sequence[Image.Image], columns: int = 8, gap: int = 4) -> Image.Image:
    """The pictures in rows, white between them."""
    width, height = pictures[0].size
    rows = math.ceil(len(pictures) / columns)
    whole = Image.new("RGB", (columns * (width + gap) + gap, rows * (height + gap) + gap), "white")
    for at, picture in enumerate(pictures):
        whole.paste(picture, (gap + at % columns * (width + gap), gap + at // columns * (height + gap)))
    return whole
