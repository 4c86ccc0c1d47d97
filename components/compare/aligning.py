"""Alignment under the pictures: how well each fits its prompt, and how much of each LoRA is in it."""

from __future__ import annotations

from PIL import Image

from backends import alignment, bases
from backends.alignment import Alignment
from components.compare.gallery import Gallery, Score
from components.library.shelf import checked_base

NONE = ""


def choices() -> list[tuple[str, str]]:
    """The contrastive models on offer; any other by its hub id or folder."""
    return [("nothing", NONE), *([("the built-in model", alignment.BUILTIN)] if _ships() else [])]


def _ships() -> bool:
    return (alignment.ASSETS / alignment.CONFIG).is_file()


def usual(base: str) -> str:
    """What judges the pictures of a base unless someone chooses: the built-in model those of the base whose pictures it knows."""
    return alignment.BUILTIN if base == bases.IMAGE and _ships() else NONE


def scores(found: Gallery, judge: str) -> tuple[tuple[tuple[Score, ...], ...], ...]:
    """The scores of every finished picture, [variant][prompt][seed].

    Args:
        found: with its files.
        judge: the contrastive model's id.

    Raises:
        AdapterError: when it cannot be loaded, or a folder is named where visitors are not on this machine.
    """
    model = Alignment.load(judge if judge == alignment.BUILTIN else checked_base(judge))
    places = list(found.places())
    pictures = model.images([Image.open(found.files[v][p][s]).convert("RGB") for v, p, s in places])
    texts = model.texts(found.prompts)
    vectors = dict(zip(places, pictures, strict=True))
    sources = [v for v, alone in enumerate(found.alone) if alone]

    def score(v: int, p: int, s: int) -> Score:
        mine = vectors[v, p, s]
        near = ((other, float(mine @ vectors[other, p, s])) for other in sources if other != v)
        return Score(float(mine @ texts[p]), tuple(near))

    seeds = range(len(found.seeds))
    prompts = range(len(found.prompts))
    return tuple(tuple(tuple(score(v, p, s) for s in seeds) for p in prompts) for v in range(len(found.names)))
