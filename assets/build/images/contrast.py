"""The contrastive image–text model: transformers' CLIPModel, tiny, on the same pictures and captions.

It measures how well a picture fits a caption (text alignment) and another picture (image alignment).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from assets.build.images.concepts import caption, noun, phrase
from assets.build.images.pictures import SIZE, Pictures
from assets.build.images.run import Deadline, Plan, Run
from assets.build.images.text import WIDTH, new_text_encoder, token_ids

PLAN = Plan(steps=2500, batch=64, rate=1e-3, seed=303, average=0.998, decay=0.05)
STYLED, ARTICLE = 0.5, 0.8


def new_contrastive(tokenizer: CLIPTokenizer, size: int = SIZE) -> CLIPModel:
    """Text tower as the base's text encoder; image tower of four layers on 8 × 8 patches; untrained."""
    vision = {
        "hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_hidden_layers": 4, "num_attention_heads": 4,
        "image_size": size, "patch_size": 8, "projection_dim": WIDTH, "hidden_act": "gelu",
    }  # fmt: skip
    text = new_text_encoder(tokenizer).config.to_dict()
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def disturbed(images: Float[Tensor, "n 3 size size"], generator: torch.Generator) -> Float[Tensor, "n 3 size size"]:
    """Each picture moved, turned, scaled, brightened and blurred a little, so that drawn pictures need not be as clean as these."""
    n = len(images)
    draws = torch.rand((8, n), generator=generator).to(images.device)
    angle, scale = (draws[0] - 0.5) * 0.5, 1 + (draws[1] - 0.4) * 0.4
    turn = torch.stack([angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale], 1).view(
        n, 2, 2
    )
    place = torch.cat([turn, (draws[2:4].T - 0.5)[:, :, None] * 0.3], 2)
    grid = F.affine_grid(place, list(images.shape), align_corners=False)
    ink = F.grid_sample(1 - images, grid, align_corners=False)  # outside of the picture there is no ink: white
    ink = ink * (0.8 + 0.4 * draws[4])[:, None, None, None]
    blur, share = F.avg_pool2d(ink, 3, 1, 1), (draws[5] * (draws[6] < 0.3))[:, None, None, None]
    return 1 - torch.lerp(ink, blur, share)


def _matches(pairs: Sequence[tuple], styled: Sequence[bool]) -> Bool[Tensor, "picture caption"]:
    """Which picture a caption is true of: the same concept, and the same style where the caption names one."""
    return torch.tensor(
        [
            [
                mine[0] == theirs[0] and (not named or mine[1] == theirs[1])
                for theirs, named in zip(pairs, styled, strict=True)
            ]
            for mine in pairs
        ]
    )


def train_contrastive(
    pictures: Pictures, tokenizer: CLIPTokenizer, folder: Path, device: str, deadline: Deadline, plan: Plan
) -> tuple[CLIPModel | None, Run]:
    """Train on these pictures; None instead of the model while the time was up before the end."""
    torch.manual_seed(plan.seed)
    model = new_contrastive(tokenizer, pictures.pixels.shape[1]).to(device)
    images = pictures.images().to(device)

    def loss(generator: torch.Generator) -> Tensor:
        rows = torch.randint(len(pictures), (plan.batch,), generator=generator)
        rng = random.Random(int(torch.randint(2**62, (), generator=generator)))
        pairs = [pictures.pairs[row] for row in rows.tolist()]
        styled = [rng.random() < STYLED for _ in pairs]
        captions = []
        for (concept, style), named in zip(pairs, styled, strict=True):
            words = phrase(concept) if rng.random() < ARTICLE else noun(concept)
            captions.append(f"{words}, {style.word} style" if named else words)
        seen = disturbed(images[rows.to(device)], generator)
        logits = model(input_ids=token_ids(tokenizer, captions).to(device), pixel_values=seen).logits_per_image
        true = _matches(pairs, styled).float().to(device)
        by_picture = F.cross_entropy(logits, true / true.sum(1, keepdim=True))
        by_caption = F.cross_entropy(logits.T, (true / true.sum(0)).T)
        return (by_picture + by_caption) / 2

    run = Run("contrastive", model, plan, loss, folder)
    return (run.averaged() if run.train(deadline) else None), run


@torch.no_grad()
def embed_images(model: CLIPModel, images: Float[Tensor, "n 3 size size"]) -> Float[Tensor, "n d"]:
    """Unit vectors of pictures whose values run from −1 to 1."""
    vision = [model.vision_model(part.to(model.device)).pooler_output for part in images.split(256)]
    return F.normalize(model.visual_projection(torch.cat(vision)), dim=-1)


@torch.no_grad()
def embed_captions(model: CLIPModel, tokenizer: CLIPTokenizer, captions: Sequence[str]) -> Float[Tensor, "n d"]:
    """Unit vectors of captions."""
    pooled = model.text_model(token_ids(tokenizer, captions).to(model.device)).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


def ranked_first(
    model: CLIPModel, tokenizer: CLIPTokenizer, images: Float[Tensor, "n 3 size size"], own: Sequence[str],
    concepts: Sequence[str], among: int = 100, seed: int = 0,
) -> float:  # fmt: skip
    """How often the caption of a picture's own concept fits it better than those of others.

    Args:
        own: concept of each picture.
        among: how many captions there are to choose from, the right one included; the others are drawn for each picture.
    """
    rng = random.Random(seed)
    names = {concept: at for at, concept in enumerate(concepts)}
    scores = (embed_images(model, images) @ embed_captions(model, tokenizer, [caption(c) for c in concepts]).T).cpu()
    right = 0
    for row, concept in zip(scores, own, strict=True):
        others = rng.sample([at for name, at in names.items() if name != concept], min(among, len(names)) - 1)
        right += bool(row[names[concept]] > row[others].max())
    return right / len(own) if own else math.nan
