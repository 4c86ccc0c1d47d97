"""Plotly figures from plain data: no session, no files, no gradio.

Backgrounds are transparent and the style sheet colours all text, so every figure follows the page's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from components.palette import NEUTRAL, SCALE, adapter_colour

SAME = 1e-3
"""Values of one measure that differ by less have one colour."""
GRID = "rgba(140, 132, 124, .22)"


@dataclass(frozen=True)
class Group:
    """An adapter as the figures show it: its name and its colour slot, None where it is not picked."""

    name: str
    slot: int | None

    @property
    def colour(self) -> str:
        """The adapter's colour."""
        return NEUTRAL if self.slot is None else adapter_colour(self.slot)


def per_module(
    kinds: Sequence[str], layers: Sequence[int] | Sequence[str], values: np.ndarray, title: str, along: str = "layer"
) -> go.Figure:
    """A measure of every merged module: kinds as rows, layers as columns; ``values`` is [kinds, layers], nan = none."""
    hover = "%{y}, " + along + " %{x}<br>" + title + " %{z:.3f}<extra></extra>"
    bar = {"title": {"text": title, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    heat = go.Heatmap(
        z=values, x=list(layers), y=list(kinds), colorscale=SCALE, xgap=1, ygap=1, hovertemplate=hover, colorbar=bar
    )
    low, high = np.nanmin(values), np.nanmax(values)
    if high - low < SAME:  # rounding is no difference
        heat.update(zmin=low - SAME, zmax=high + SAME)
    plain = {"showgrid": False, "zeroline": False, "automargin": True}
    across = {**plain, "title": along}
    down = {**plain, "autorange": "reversed", "ticks": ""}
    return styled(go.Figure(heat), height=110 + 30 * max(3, len(kinds)), xaxis=across, yaxis=down)


def named(group: Group) -> str:
    """A LoRA's name behind a brick of its colour."""
    name = group.name if len(group.name) <= 18 else f"{group.name[:17]}…"
    return f'<span style="color:{group.colour};fill:{group.colour}">■</span> {escape(name)}'


def every(rows: Sequence[str], most: int = 50) -> dict:
    """Labels of rows or columns, as many as there is room for."""
    step = -(-len(rows) // most)
    places = range(0, len(rows), max(1, step))
    return {"tickvals": list(places), "ticktext": [rows[place] for place in places]}


def empty(text: str) -> go.Figure:
    """A figure that says why there is nothing to see."""
    note = {"text": text, "showarrow": False, "font": {"size": 15, "color": NEUTRAL}, "xref": "paper", "yref": "paper"}
    unseen: dict[str, Any] = {"xaxis": {"visible": False}, "yaxis": {"visible": False}}
    return styled(go.Figure(), height=300, **unseen, annotations=[{**note, "x": 0.5, "y": 0.5}])


def counted(title: str, most: int) -> dict:
    """An axis of whole numbers from 0 on; few ``most`` have a tick each, as between them there is nothing."""
    return {
        "title": title,
        "gridcolor": GRID,
        "zeroline": False,
        "tickformat": "d",
        "rangemode": "tozero",
        "automargin": True,
        **({"dtick": 1} if most <= 6 else {}),
    }


def styled(figure: go.Figure, height: int, **layout: Any) -> go.Figure:
    """The look of every figure, and what is its own. At once: what is changed in a figure one by one is checked one by one."""
    look = {
        "template": "none",
        "height": height,
        "margin": {"l": 52, "r": 12, "t": 40, "b": 44},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "ui-sans-serif, system-ui, sans-serif", "size": 13, "color": NEUTRAL},
        "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        "modebar": {"remove": ["autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"], "bgcolor": "rgba(0,0,0,0)"},
        "hoverlabel": {"bgcolor": "#292524", "bordercolor": "#292524", "font": {"color": "#fff"}},
    }
    figure.layout = {**figure.layout.to_plotly_json(), **look, **layout}
    return figure
