"""The grid of pictures as HTML: a picture in every cell, its caption, its scores; made large by the viewer's script."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from components import fragments
from components.compare.gallery import Gallery, Place, Score
from components.compare.layout import PROMPT, SEED, VARIANT, Layout

PREVIEW = 160
"""Pixels of a preview's longer side: pictures on their way are sent again after every step."""
SCRIPT = Path(__file__).with_name("viewer.js")
MEASURES = (
    "Alignment, as the cosine of a contrastive model's vectors: “text” of the picture with its prompt, a colour of the picture "
    "with the one that this LoRA alone draws from the same prompt and noise."
)
VIEWER = """
<dialog class="by-viewer" aria-label="Picture">
  <div class="by-viewer-bar">
    <fieldset class="by-views"><legend>View</legend>
      <label><input type="radio" name="view" value="one" checked> Picture</label>
      <label><input type="radio" name="view" value="slider"> Slider</label>
      <label><input type="radio" name="view" value="difference"> Difference</label>
    </fieldset>
    <label class="by-with">with <select aria-label="Compare with"></select></label>
    <label class="by-gain">× <input type="number" aria-label="Amplify" min="1" max="64" value="4"></label>
    <button type="button" class="by-tool" aria-label="Close">✕</button>
  </div>
  <div class="by-stage"><canvas></canvas><img class="one" alt=""><img class="other" alt="">
    <input type="range" aria-label="Slide between the two" min="0" max="100" value="50"></div>
  <p class="by-viewer-text" role="status"></p>
</dialog>
"""


@cache
def script() -> str:
    """What makes pictures large, slides between two, and shows their difference."""
    return SCRIPT.read_text(encoding="utf-8")


def preview(picture: Image.Image) -> str:
    """A small picture as a data address: good enough to watch, a few kilobytes."""
    small = picture.convert("RGB")
    small.thumbnail((PREVIEW, PREVIEW))
    file = io.BytesIO()
    small.save(file, "WEBP", quality=70, method=2)
    return f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"


def address(file: str) -> str:
    """Where the browser finds a file that the server gives out."""
    return f"gradio_api/file={quote(file)}"


def draw(found: Gallery, running: bool = False, source: Mapping[str, str] | None = None) -> str:
    """All pictures: a row for every prompt and seed, one cell a variant; on narrow screens a row wraps.

    Args:
        found: the pictures.
        running: whether more is to come.
        source: the data address of every file, for a page that stands alone; otherwise the server gives the files.
    """
    if source is not None:
        shots = tuple(tuple(tuple(source[file] for file in row) for row in rows) for rows in found.files)
        found = replace(found, shots=shots)
    if found.layout is None:
        rows: dict[tuple[int, int], list[Place]] = {}
        for at in found.places():
            rows.setdefault((at.prompt, at.seed), []).append(at)
        body = "".join(_row(found, places, running) for places in rows.values())
    else:
        body = "".join(_line(found, found.layout, j, running) for j in range(found.layout.height))
    legend = fragments.subtle(MEASURES) if found.scores else ""
    return f'<div class="by-gallery" role="group" aria-label="Pictures">{body}{legend}</div>'


def _row(found: Gallery, places: Sequence[Place], running: bool) -> str:
    cells = "".join(_cell(found, at, running) for at in places)
    return f'<div class="by-shots" style="--n:{len(places)}">{cells}</div>'


def _line(found: Gallery, layout: Layout, j: int, running: bool) -> str:
    """The pictures of one row of a grid of axes under its heading, a line for every prompt and seed that no axis is."""
    cells = [layout.place(i, j) for i in range(len(layout.x.values))]
    prompts = range(1 if PROMPT in cells[0] else len(found.prompts))
    seeds = range(1 if SEED in cells[0] else len(found.seeds))
    rows = [
        _row(found, [Place(at[VARIANT], at.get(PROMPT, p), at.get(SEED, s)) for at in cells], running)
        for p in prompts
        for s in seeds
    ]
    heading = f'<h3 class="by-axis">{escape(layout.y.values[j])}</h3>' if layout.y else ""
    return heading + "".join(rows)


def _cell(found: Gallery, at: Place, running: bool) -> str:
    shot, caption = found.shots[at.variant][at.prompt][at.seed], escape(found.caption(at))
    name, prompt, seed = escape(found.names[at.variant]), escape(found.prompts[at.prompt]), found.seeds[at.seed]
    if shot:
        source = shot if shot.startswith("data:") else address(shot)
        look = ' class="blurred"' if running else ""
        image = f'<img{look} src="{escape(source)}" alt="{caption}">'
    else:
        image = f'<span class="by-blank{" waiting" if running else ""}"></span>'
    place = ".".join(map(str, at))
    button = f'<button type="button" data-place="{place}" aria-label="Enlarge {caption}"{"" if shot else " disabled"}>{image}</button>'
    line = f'<i class="by-edge" style="background:{fragments.edge(found.slots[at.variant])}"></i>'
    scores = _scores(found, found.scores[at.variant][at.prompt][at.seed]) if found.scores else ""
    return (
        f'<figure class="by-shot">{line}{button}<figcaption><b title="{name}">{name}</b>'
        f'<span title="{prompt}">{prompt}</span><small class="by-num">seed {seed}</small>{scores}</figcaption></figure>'
    )


def _scores(found: Gallery, score: Score) -> str:
    parts = [f'<span title="Text alignment">text <b>{score.text:.2f}</b></span>']
    for v, value in score.sources:
        title = escape(f"Image alignment with {found.names[v]}")
        parts.append(f'<span title="{title}">{fragments.swatch(found.slots[v])}<b>{value:.2f}</b></span>')
    return f'<div class="by-aligned by-num">{"".join(parts)}</div>'
