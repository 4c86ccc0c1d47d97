"""Figures of the views beside the map, from plain data: heat maps of adapters, lines over k or rank."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from components.figures import GRID, Group, every, named, styled
from components.palette import BRICK, NEUTRAL, SCALE

BELOW = {"orientation": "h", "y": -0.22, "yanchor": "top", "x": 0}


def heat(rows: Sequence[str], columns: Sequence[str], values: np.ndarray, title: str, shape: str = ".3f") -> go.Figure:
    """Values as colours, none below 0: rows from above, columns from the left; [rows, columns], nan where there is none.

    Rows and columns may be HTML, as adapters' names with their colours are; few cells show their numbers.
    """
    told = [[f"{row} · {column}" for column in columns] for row in rows]
    bar = {"title": {"text": title, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    few = values.size <= 64 and values.shape[1] <= 12
    heat = go.Heatmap(
        z=values,
        x=list(range(len(columns))),
        y=list(range(len(rows))),
        text=told,
        texttemplate=f"%{{z:{shape}}}" if few else None,
        textfont={"color": "#1c1917"},
        colorscale=SCALE,
        zmin=0,
        zmax=np.nanmax(values, initial=0) or 1,
        xgap=1,
        ygap=1,
        hovertemplate=f"%{{text}}<br>{title} %{{z:{shape}}}<extra></extra>",
        colorbar=bar,
    )
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    return styled(
        go.Figure(heat),
        height=130 + min(640, max(26 * len(rows), 120)),
        margin={"l": 8, "r": 8, "t": 12, "b": 8},
        xaxis={**plain, **every(columns, 10), **({"tickangle": -30} if max(map(len, columns)) > 12 else {})},
        yaxis={**plain, **every(rows), "autorange": "reversed", "ticksuffix": "\u00a0"},
    )


def names(groups: Sequence[Group]) -> list[str]:
    """Adapters as labels of an axis, each behind its colour."""
    return [named(group) for group in groups]


def spectrum(groups: Sequence[Group], values: Sequence[np.ndarray]) -> go.Figure:
    """Singular values by their rank, one line an adapter."""
    figure = go.Figure()
    for group, own in zip(groups, values, strict=True):
        hover = escape(group.name) + "<br>%{y:.3f} at rank %{x}<extra></extra>"
        places = list(range(1, len(own) + 1))
        line = go.Scatter(x=places, y=own, mode="lines+markers", name=group.name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": group.colour, "width": 2}, marker={"size": 6}))
    return _lines(figure, "rank", "singular value")


def silhouette(ks: Sequence[int], values: Sequence[float], paper: int) -> go.Figure:
    """The mean silhouette for each k, and where the paper's k is."""
    figure = go.Figure()
    hover = "silhouette %{y:.3f} at k = %{x}<extra></extra>"
    line = go.Scatter(x=list(ks), y=list(values), mode="lines+markers", name="silhouette", hovertemplate=hover)
    figure.add_trace(line.update(line={"color": BRICK, "width": 2}, marker={"size": 6}))
    dots = {"dash": "dot", "color": NEUTRAL, "width": 1.5}
    where = "bottom left" if paper > sum(ks) / len(ks) else "bottom right"
    figure.add_vline(paper, line=dots, annotation_text=f"the paper’s k = 2r = {paper}", annotation_position=where)
    return _lines(figure, "clusters (k)", "mean silhouette").update_layout(showlegend=False)


def _lines(figure: go.Figure, across: str, up: str) -> go.Figure:
    axis = {"gridcolor": GRID, "zeroline": False, "automargin": True}
    return styled(
        figure,
        height=360,
        xaxis={**axis, "title": across, "tickformat": "d"},
        yaxis={**axis, "title": up},
        legend=BELOW,
        margin={"l": 44, "r": 12, "t": 28, "b": 8},
    )
