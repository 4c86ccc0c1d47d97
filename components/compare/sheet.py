"""Pictures for download: one sheet with captions, and PNG files that may carry the recipe of their comparison. No page needed."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from lego import AdapterError

CHUNK = "brickyard"
"""Keyword of the PNG's tEXt chunk that holds the recipe as JSON."""

GAP, MARGIN, TEXT, SMALLEST = 10, 24, 15, 128
"""Pixels between cells, around the sheet, of the captions' font; a cell is at least the last wide."""
INK, QUIET, PAPER = "#292524", "#6f6862", "#ffffff"


def png(picture: Image.Image, recipe: dict[str, Any] | None = None) -> bytes:
    """A picture as a PNG file, its pixels unchanged; with the recipe in its metadata where one is given."""
    info = PngInfo()
    if recipe is not None:
        info.add_text(CHUNK, json.dumps(recipe, separators=(",", ":")))
    file = io.BytesIO()
    picture.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def recipe_in(file: str | Path) -> Any:
    """The recipe that a PNG carries, not yet checked. Its pixels are not read.

    Raises:
        AdapterError: when the file is no PNG or carries none.
    """
    name = Path(file).name
    try:
        with Image.open(file, formats=("PNG",)) as picture:
            text = picture.info.get(CHUNK)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise AdapterError("is not a PNG picture", name, "Drop one that was downloaded here.") from error
    if not isinstance(text, str):
        raise AdapterError(
            "carries no recipe of a comparison",
            name,
            "Recipes are written where “Recipe in the files” is ticked; many sites strip them from uploads.",
        )
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AdapterError("carries a recipe that is not JSON", name) from error


Pictures = Sequence[Sequence[Sequence[Image.Image]]]
"""[variant][prompt][seed]."""


def contact_sheet(
    pictures: Pictures, variants: Sequence[str], prompts: Sequence[str], seeds: Sequence[int]
) -> Image.Image:
    """All pictures on one: variants as columns, prompts × seeds as rows, each with its caption; small ones are enlarged.

    Args:
        pictures: [variant][prompt][seed], of one size.
        variants, prompts, seeds: what the captions say.
    """
    width, height = pictures[0][0][0].size
    zoom = max(1, -(-SMALLEST // width))
    cell = width * zoom, height * zoom
    font = ImageFont.load_default(TEXT)
    head = 2 * TEXT + GAP
    rows = [(p, s) for p in range(len(prompts)) for s in range(len(seeds))]
    full = (
        2 * MARGIN + len(variants) * (cell[0] + GAP) - GAP,
        2 * MARGIN + head + len(rows) * (cell[1] + head) - GAP,
    )
    sheet = Image.new("RGB", full, PAPER)
    pen = ImageDraw.Draw(sheet)
    for v, name in enumerate(variants):
        x = MARGIN + v * (cell[0] + GAP)
        for line, text in enumerate(wrapped(name, font, cell[0])):
            pen.text((x, MARGIN + line * (TEXT + 3)), text, INK, font)
    for row, (p, s) in enumerate(rows):
        y = MARGIN + head + row * (cell[1] + head)
        caption = f"{prompts[p]}, seed {seeds[s]}"
        pen.text((MARGIN, y), shortened(caption, font, full[0] - 2 * MARGIN), QUIET, font)
        for v in range(len(variants)):
            enlarged = pictures[v][p][s].convert("RGB").resize(cell, Image.Resampling.BICUBIC if zoom > 1 else None)
            sheet.paste(enlarged, (MARGIN + v * (cell[0] + GAP), y + TEXT + GAP))
    return sheet


def wrapped(text: str, font: Any, width: float) -> list[str]:
    """The text in at most two lines."""
    words, first = text.split(), ""
    while words and font.getlength(f"{first} {words[0]}".strip()) <= width:
        first = f"{first} {words.pop(0)}".strip()
    if not first or not words:
        return [shortened(text, font, width)]
    return [first, shortened(" ".join(words), font, width)]


def shortened(text: str, font: Any, width: float) -> str:
    """The text, or as much of it as is not wider than this, and an ellipsis."""
    text = " ".join(text.split())
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"{text}…") > width:
        text = text[:-1]
    return f"{text}…"
