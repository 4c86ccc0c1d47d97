"""Concepts × styles as pixels, rendered once and cached, and which of them no training may see."""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from assets.build.images.sets import STYLES, Style, drawings

SIZE = 64
HELD_OUT = 0.1
_SEED = "brickyard pictures"


def held_out(concept: str, style: Style) -> bool:
    """Whether this pair is kept from every training: base, LoRAs and the contrastive model; decided by a hash of its names."""
    digest = hashlib.sha256(f"{_SEED}/{concept}/{style.word}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < HELD_OUT * 2**64


@dataclass(frozen=True)
class Pictures:
    """Pictures with their names.

    Attributes:
        pixels: RGB on white, (picture, 64, 64, 3).
        pairs: concept and style of each.
    """

    pixels: UInt8[Tensor, "n height width 3"]
    pairs: tuple[tuple[str, Style], ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def select(self, concepts: Sequence[str] | None = None, *, held: bool) -> Pictures:
        """The held-out pictures, or the others; of these concepts only, where they are named."""
        wanted = None if concepts is None else set(concepts)
        kept = [
            index
            for index, (concept, style) in enumerate(self.pairs)
            if held_out(concept, style) == held and (wanted is None or concept in wanted)
        ]
        return Pictures(self.pixels[kept], tuple(self.pairs[index] for index in kept))

    def images(self) -> Float[Tensor, "n 3 height width"]:
        """The pixels as the models take them: −1 black, 1 white."""
        return self.pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


def render(svg: str) -> UInt8[np.ndarray, "height width 3"]:
    """One drawing on white, in the size that it asks for."""
    import resvg_py

    png = resvg_py.svg_to_bytes(svg_string=svg, background="white", skip_system_fonts=True)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGB"))


def _draw(concepts: Sequence[str], styles: Sequence[Style], packages: Path) -> UInt8[Tensor, "n height width 3"]:
    sets = [drawings(style, SIZE, packages) for style in styles]
    return torch.from_numpy(np.stack([render(drawn[concept]) for concept in concepts for drawn in sets]))


def load_pictures(concepts: Sequence[str], work: Path, styles: Sequence[Style] = STYLES) -> Pictures:
    """Every concept in every style, from the cache in ``work`` where it has been drawn before.

    Args:
        concepts: names that every one of the styles has.
        work: folder of packages and of the cache.
    """
    pairs = tuple((concept, style) for concept in concepts for style in styles)
    sources = {style.package.name: style.package.sha256 for style in styles}
    key = hashlib.sha256(json.dumps([SIZE, sources, list(concepts)]).encode()).hexdigest()[:16]
    file = work / f"pictures-{key}.safetensors"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        scratch = file.with_suffix(".part")
        save_file({"pixels": _draw(concepts, styles, work / "packages")}, scratch)
        os.replace(scratch, file)
    with safe_open(file, "pt") as opened:
        return Pictures(opened.get_tensor("pixels"), pairs)
