"""Figures as static drawings (SVG): they need no script, and open anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from components.figures import Group
from components.map.unit_figures import Points

WIDTH, HEIGHT, MARGIN, LINE = 760, 460, 24, 22
SMALLEST, LARGEST = 2.0, 6.0
"""Radii of the points."""


def scatter(points: Points, groups: Sequence[Group], title: str) -> str:
    """Units in the plane, coloured by adapter, with a legend; a point's area grows with its norm, its tooltip says what it is."""
    low, high = points.xy.min(0), points.xy.max(0)
    span = np.where(high > low, high - low, 1)
    place = MARGIN + (points.xy - low) / span * (np.array([WIDTH, HEIGHT]) - 2 * MARGIN)
    share = np.sqrt(points.norm / max(float(points.norm.max()), 1e-12))
    radius = SMALLEST + (LARGEST - SMALLEST) * share
    marks = "".join(
        f'<g fill="{group.colour}">{"".join(_mark(points, place, radius, int(i)) for i in np.flatnonzero(points.owner == g))}</g>'
        for g, group in enumerate(groups)
    )
    legend = "".join(
        f'<circle cx="{MARGIN + 6}" cy="{HEIGHT + g * LINE + 12}" r="6" fill="{group.colour}"/>'
        f'<text x="{MARGIN + 20}" y="{HEIGHT + g * LINE + 17}" font-size="14">{escape(group.name)}</text>'
        for g, group in enumerate(groups)
    )
    tall = HEIGHT + len(groups) * LINE + 8
    return (
        f'<svg role="img" aria-label="{escape(title)}" viewBox="0 0 {WIDTH} {tall}" width="{WIDTH}" height="{tall}" '
        f'xmlns="http://www.w3.org/2000/svg"><title>{escape(title)}</title><g opacity=".8">{marks}</g>{legend}</svg>'
    )


def _mark(points: Points, place: np.ndarray, radius: np.ndarray, i: int) -> str:
    told = escape(f"{points.module[i]}, rank index {points.rank_index[i]}, norm {points.norm[i]:.3g}")
    x, y = place[i]
    return f'<circle cx="{x:.1f}" cy="{HEIGHT - y:.1f}" r="{radius[i]:.1f}"><title>{told}</title></circle>'
