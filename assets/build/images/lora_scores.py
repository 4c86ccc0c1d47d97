"""What a LoRA does on held-out prompts, by the contrastive model: base and LoRA from the same noise."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from assets.build.images import grid
from assets.build.images.concepts import CONCEPTS, DRAWN, caption, noun
from assets.build.images.contrast import embed_captions, embed_images, ranked_first
from assets.build.images.pictures import Pictures, held_out, load_pictures
from assets.build.images.sets import STYLES, Style
from assets.build.images.specs import Spec

AMONG, LEAST, REFERENCES = 100, 48, 16


@dataclass(frozen=True)
class Prompt:
    """What is asked for, of which concept the picture should be, and in which style, where that is told or learnt."""

    text: str
    concept: str
    style: Style | None = None


def own_prompts(spec: Spec) -> list[Prompt]:
    """At least LEAST prompts about what it learns, whose pictures it has not seen.

    Of a style: its held-out pairs, without the style's word. Of concepts: without a style, and in their held-out styles.
    """
    if spec.style:
        asked = [Prompt(caption(concept), concept, spec.style) for concept in DRAWN if held_out(concept, spec.style)]
    else:
        pairs = [(concept, style) for concept in spec.concepts for style in (None, *STYLES)]
        wanted = [(concept, style) for concept, style in pairs if style is None or held_out(concept, style)]
        asked = [Prompt(_named(spec, caption(*pair)), *pair) for pair in wanted]
    return asked * -(-LEAST // len(asked))


def _named(spec: Spec, text: str) -> str:
    return text.replace(noun(spec.concepts[0]), spec.word) if spec.word else text


def other_prompts() -> list[Prompt]:
    """What the base draws, as many."""
    step = max(len(DRAWN) // LEAST, 1)
    return [Prompt(caption(concept), concept) for concept in DRAWN[::step]][:LEAST]


def references(own: Pictures) -> Image.Image:
    """Up to 16 of the pictures that it learns from, side by side without gaps."""
    chosen = range(0, len(own), max(len(own) // REFERENCES, 1))
    pictures = [Image.fromarray(own.pixels[at].numpy()) for at in list(chosen)[:REFERENCES]]
    return grid.sheet(pictures, gap=0)


def as_tensor(pictures: Sequence[Image.Image]) -> Float[Tensor, "n 3 size size"]:
    """As the contrastive model takes them: −1 black, 1 white."""
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures]))
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


class Judge:
    """The contrastive model, and the drawings it may compare with."""

    def __init__(self, clip: Path, work: Path) -> None:
        self.model = CLIPModel.from_pretrained(clip, dtype=torch.float32).eval()
        self.tokenizer, self.work = CLIPTokenizer.from_pretrained(clip), work

    def drawing(self, concept: str, style: Style) -> Image.Image:
        """A concept as one set has it."""
        found = load_pictures(DRAWN if concept in DRAWN else CONCEPTS, self.work, (style,))
        return Image.fromarray(found.pixels[found.pairs.index((concept, style))].numpy())

    def drawings(self, prompts: Sequence[Prompt]) -> list[Image.Image]:
        """What perfect pictures would be, on which the judge errs as well; a style that is not told is any of them."""
        return [
            self.drawing(prompt.concept, prompt.style or STYLES[at % len(STYLES)]) for at, prompt in enumerate(prompts)
        ]

    def concept(self, prompts: Sequence[Prompt], drawn: Sequence[Image.Image]) -> float:
        """How often the concept's caption fits its picture better than those of the others among AMONG."""
        own = [prompt.concept for prompt in prompts]
        return ranked_first(self.model, self.tokenizer, as_tensor(drawn), own, CONCEPTS, AMONG)

    def style(self, style: Style, prompts: Sequence[Prompt], drawn: Sequence[Image.Image]) -> float:
        """How often a picture fits the caption in its style better than in the others.

        A style that the model has no word for counts where the concept's drawing of that set is the one most like the picture.
        """
        styles = STYLES if style in STYLES else (*STYLES, style)
        right = 0
        for prompt, picture in zip(prompts, embed_images(self.model, as_tensor(drawn)), strict=True):
            if style in STYLES:
                targets = embed_captions(self.model, self.tokenizer, [caption(prompt.concept, s) for s in styles])
            else:
                targets = embed_images(self.model, as_tensor([self.drawing(prompt.concept, s) for s in styles]))
            right += int((targets @ picture).argmax()) == styles.index(style)
        return right / len(prompts)


def _draw(pipeline: StableDiffusionPipeline, prompts: Sequence[Prompt]) -> list[Image.Image]:
    return grid.draw(pipeline, [prompt.text for prompt in prompts], 0, grid.STEPS, grid.GUIDANCE)


def score(
    spec: Spec, pipeline: StableDiffusionPipeline, load: Callable[[StableDiffusionPipeline], None], judge: Judge
) -> tuple[dict, Image.Image]:
    """Measures of the base, of it with the LoRA and of the drawings themselves; a sheet of the base's pictures above the LoRA's.

    Args:
        pipeline: the base.
        load: adds the LoRA to it.
    """
    own, others = own_prompts(spec), other_prompts()
    drawn = {"base": (_draw(pipeline, own), _draw(pipeline, others))}
    load(pipeline)
    drawn["lora"] = (_draw(pipeline, own), _draw(pipeline, others))
    perfect = [replace(prompt, style=spec.style) for prompt in others]
    drawn["drawings"] = (judge.drawings(own), judge.drawings(perfect))
    found: dict[str, Any] = {}
    for name, (mine, rest) in drawn.items():
        found[name] = {}
        if spec.style:
            found[name] = {
                "style": judge.style(spec.style, own, mine),
                "style_of_others": judge.style(spec.style, others, rest),
            }
        found[name] |= {"concept": judge.concept(own, mine), "others": judge.concept(others, rest)}
    step = max(len(set(own)) // 8, 1)  # prompts are asked several times, from other noise, where there are few
    shown = range(0, 8 * step, step)
    sheet = grid.sheet([drawn[name][0][at] for name in ("base", "lora") for at in shown])
    record = {"prompts": len(own), "scores": found, "shown": [own[at].text for at in shown]}
    return record, sheet
