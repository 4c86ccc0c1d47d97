"""The report: one page that needs nothing else, with recipe, map, fidelity, comparison, scores and votes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html import escape
from pathlib import Path

from PIL import Image

from components import fragments, kinds
from components.compare import blind, comparison, pictures, scoring
from components.compare.comparison import Comparison
from components.compare.gallery import Gallery
from components.compare.scoring import Scored
from components.compare.votes import Vote
from components.map import maps
from components.merge import making, reports
from components.plates import scatter
from components.session import opening
from components.session.remembered import Remembered
from components.session.state import Session
from lego import AdapterError

Tell = Callable[[str, float], None]
SIDES = (768, 512, 384, 256, 160)
"""Longest sides of the pictures in a report, tried until all fit."""
PICTURE_BYTES = 4 * 2**20
"""All pictures of a report together; as text they take a third more."""
STYLE = """
main { max-width: 1180px; margin: 0 auto; } section.part { margin: 34px 0; }
h2 { font-size: 17px; margin: 0 0 10px; } pre { overflow-x: auto; font-size: 12.5px; line-height: 1.5; padding: 12px 14px;
  border: 1px solid var(--border-color-primary); border-radius: 8px; max-height: 420px; } svg { max-width: 100%; height: auto; }
svg text { fill: currentColor; } .by-shot button { cursor: default; }
"""


def page(
    session: Session,
    recipe: Remembered,
    found: Comparison | Gallery | None,
    scores: tuple[Scored, ...],
    cast: tuple[Vote, ...],
    style: str,
    against: str = "Base",
    tell: Tell = lambda text, part: None,
) -> str:
    """The report as HTML.

    Args:
        session: whose picks the map shows, whose merges the fidelity.
        recipe: of the session, or of the comparison where there is one.
        found: the comparison; None before one is made.
        scores, cast: of the variants, as far as there are any.
        style: the page's style sheet.
        against: the column whose texts the others are marked against.
        tell: is told what is being made, and the fraction done.
    """
    parts: dict[str, Callable[[], str]] = {
        "Map": lambda: unit_map(session),
        "Fidelity": lambda: fidelity(session),
        "Comparison": lambda: compared(found, scores, against, tell),
        "Scores": lambda: scoring.table(scores) if scores else "",
        "Votes": lambda: blind.table(cast) if cast else "",
        "Recipe": lambda: f"<pre>{escape(recipe.to_yaml())}</pre>",
    }
    body = ""
    for number, (name, part) in enumerate(parts.items()):
        tell(name, number / len(parts))
        if made := part():
            body += f'<section class="part" aria-label="{name}"><h2>{name}</h2>{made}</section>'
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>Brickyard report</title><style>{comparison.PLAIN}{style}{STYLE}</style></head><body><main>"
        f"<h1>Brickyard report</h1>{fragments.subtle(f'{recipe.base.title}, Brickyard {recipe.version}')}{body}"
        f"{opening.embedded(recipe)}</main></body></html>"
    )


def unit_map(session: Session) -> str:
    """The map that the page opens with, as a drawing that needs no script."""
    if not session.picks:
        return ""
    kind = maps.kinds(session)[0]
    _, usual = maps.cluster_range(session, kind)
    seen = maps.view(session, kind, usual)
    about = f"{len(seen.units)} of {seen.total} units of {kind}, in the plane of most variance (PCA); area as the norm."
    return fragments.subtle(about) + scatter(maps.points(seen, seen.mapped.pca), seen.groups, f"Units of {kind}")


def fidelity(session: Session) -> str:
    """The report of every merge among the variants."""
    merges = kinds.own(session).merges
    return "".join(reports.table(making.report_of(made.key), made.name) for made in merges)


def compared(found: Comparison | Gallery | None, scores: tuple[Scored, ...], against: str, tell: Tell) -> str:
    """The comparison, its pictures inside the page."""
    if found is None:
        return ""
    if isinstance(found, Comparison):
        facts = ", ".join(f"{escape(str(key))} {escape(str(value))}" for key, value in found.settings)
        return (
            f'<p class="by-subtle">{facts}</p>{comparison.draw(found, bool(against), against=against, scores=scores)}'
        )
    return pictures.draw(found, source=inside(found, tell))


def inside(found: Gallery, tell: Tell) -> dict[str, str]:
    """Every picture's file as a data address, as large as all fit into the report.

    Raises:
        AdapterError: when they never fit, or are gone from the disk.
    """
    files = sorted({file for rows in found.files for row in rows for file in row})
    if missing := [file for file in files if not Path(file).is_file()]:
        raise AdapterError("is not on the disk any more", Path(missing[0]).name, "Compare again.")
    for side in SIDES:
        packed: dict[str, bytes] = {}
        for number, file in enumerate(files):
            tell(f"pictures of {side} pixels", number / len(files))
            packed[file] = shrunk(file, side)
        if sum(map(len, packed.values())) <= PICTURE_BYTES:
            return {file: f"data:image/webp;base64,{base64.b64encode(data).decode()}" for file, data in packed.items()}
    raise AdapterError(f"{len(files)} pictures do not fit into one report", None, "Compare fewer.")


def shrunk(file: str, side: int) -> bytes:
    """A picture of at most this many pixels a side; one that is smaller is kept without loss."""
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
    small = max(picture.size) <= 160
    picture.thumbnail((side, side))
    written = io.BytesIO()
    picture.save(written, "WEBP", lossless=small, quality=85)
    return written.getvalue()
