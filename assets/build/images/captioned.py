"""Pictures with captions from which gates over the image LoRAs learn: for each some of what it was trained on, and held-out ones."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from assets.build.images.concepts import DRAWN, caption, noun
from assets.build.images.folder import replace_folder
from assets.build.images.pictures import Pictures, load_pictures
from assets.build.images.sets import STRANGE, STYLES, Style
from assets.build.images.specs import Spec
from backends.captions import METADATA

MOST = {"train": 24, "held_out": 12}
_SEED = "brickyard captions"


def own_caption(spec: Spec, concept: str, style: Style) -> str:
    """What one writes to have this LoRA at work: with its style's word, with its rare word, or plainly what there is to see."""
    words = caption(concept, style if spec.style else None)
    return words.replace(noun(concept), spec.word) if spec.word else words


def chosen(spec: Spec, pictures: Pictures, split: str) -> Pictures:
    """A LoRA's pictures of a split, at most `MOST`, drawn with a seed of its own, sorted by name."""
    found = pictures.select(held=split == "held_out")
    draw = random.Random(f"{_SEED}/{spec.name}/{split}")
    kept = sorted(draw.sample(range(len(found)), min(MOST[split], len(found))))
    return Pictures(found.pixels[kept], tuple(found.pairs[index] for index in kept))


def write_set(spec: Spec, work: Path, folder: Path) -> dict[str, int]:
    """Write a LoRA's pictures and their ``metadata.jsonl``; gives the number of pictures by split."""
    every = load_pictures(spec.concepts or DRAWN, work, (spec.style,) if spec.style else STYLES)
    splits = {split: chosen(spec, every, split) for split in MOST}

    def fill(scratch: Path) -> None:
        lines = []
        for split, pictures in splits.items():
            for pixels, (concept, style) in zip(pictures.pixels, pictures.pairs, strict=True):
                name = f"{concept}-{style.word}.png"
                Image.fromarray(pixels.numpy()).save(scratch / name, optimize=True)
                row = {"file_name": name, "text": own_caption(spec, concept, style), "split": split}
                lines.append(json.dumps(row) + "\n")
        (scratch / METADATA).write_text("".join(lines), encoding="utf-8")

    replace_folder(folder, fill)
    return {split: len(pictures) for split, pictures in splits.items()}


def overview(counts: Iterable[tuple[Spec, dict[str, int]]]) -> str:
    """The card of all sets: how many pictures, of what, and whose drawings they are."""
    rows = "\n".join(
        f"| {spec.name} | {spec.title} | {found['train']} | {found['held_out']} |" for spec, found in counts
    )
    return f"""# Pictures with captions

From these the gates over the image LoRAs learn, and the held-out ones, which no training has seen, tell how well. Each folder holds
64 × 64 pictures and a `metadata.jsonl` with `file_name`, `text` and `split`, as the `datasets` library reads it.
`python -m assets.build image-captions` makes them again.

| set | LoRA | train | held out |
|---|---|---|---|
{rows}

The drawings, rendered to pixels:

{credits((*STYLES, STRANGE))}
"""


def credits(styles: Sequence[Style]) -> str:
    """Whose drawings, and under which licence."""
    return "\n".join(f"- {style.word}: {style.package.credit}" for style in styles)
