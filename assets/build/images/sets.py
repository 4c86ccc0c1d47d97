"""The emoji sets: their packages, the word each style goes by, and a concept's drawing as SVG."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from assets.build.packages import FLUENT, FLUENT_FLAT, FLUENT_INK, NOTO, NOTO_V1, TWEMOJI, Package, fetch


@dataclass(frozen=True)
class Style:
    """One set of drawings and the word that asks for its look."""

    word: str
    package: Package


STYLES = (
    Style("detailed", NOTO),
    Style("blob", NOTO_V1),
    Style("glossy", FLUENT),
    Style("flat", FLUENT_FLAT),
    Style("ink", FLUENT_INK),
)
STRANGE = Style("twemoji", TWEMOJI)
"""A set that neither the base nor the contrastive model ever saw; one LoRA tries to teach it."""

_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{size}" height="{size}" '
    'color="black" viewBox="{left} {top} {width} {height}">{body}</svg>'
)


@cache
def _read(file: Path) -> dict:
    return json.loads(file.read_text(encoding="utf-8"))


def drawings(style: Style, size: int, packages: Path) -> dict[str, str]:
    """Concept → SVG of all drawings of one set; aliases that turn or mirror another drawing are left out.

    Args:
        size: of the picture, in pixels; what is not square stands in the middle of it.
        packages: cache folder of the packages; the set is fetched into it if it is not there.
    """
    icons = _read(fetch(style.package, packages) / "package/icons.json")
    box = {key: icons.get(key, default) for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))}
    return {name: _SVG.format(**{**box, **icon, "size": size}) for name, icon in icons["icons"].items()}


def shared_concepts(packages: Path) -> list[str]:
    """What every set has drawn (about 1,170 concepts), sorted."""
    return sorted(set.intersection(*(set(drawings(style, 1, packages)) for style in STYLES)))
