"""Plotly figures from plain data: no session, no files, no gradio.

Backgrounds are transparent and the style sheet colours all text, so every figure follows the page's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go

from components.palette import NEUTRAL, SCALE, adapter_colour, cluster_colour

GRID = "rgba(140, 132, 124, .22)"
COLOURINGS = ("adapter", "cluster", "layer", "norm")
BELOW = {"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0, "traceorder": "normal"}
MIXED = ("#c9b8a8", "#a8917d", "#86705d", "#65523f")


@dataclass(frozen=True)
class Group:
    """An adapter as the figures show it: its name and its colour slot, None where it is not picked."""

    name: str
    slot: int | None

    @property
    def colour(self) -> str:
        """The adapter's colour."""
        return NEUTRAL if self.slot is None else adapter_colour(self.slot)


@dataclass(frozen=True)
class Points:
    """Units on the map; row i of every array is unit i. ``xy`` is [n, 2]; ``ids`` go to the browser and come back.

    ``blocks`` are names for the numbers of ``layer``, where layers have names.
    """

    xy: np.ndarray
    owner: np.ndarray
    module: Sequence[str]
    layer: np.ndarray
    rank_index: np.ndarray
    norm: np.ndarray
    cluster: np.ndarray
    ids: np.ndarray
    blocks: Sequence[str] = ()

    @property
    def along(self) -> str:
        """What ``layer`` counts."""
        return "block" if self.blocks else "layer"


def unit_map(points: Points, groups: Sequence[Group], colour: str, selected: Collection[int] = ()) -> go.Figure:
    """The map of units, coloured by adapter, cluster, layer or norm. Selected units grey the others out."""
    figure = go.Figure()
    shown = np.isin(points.ids, list(selected)) if len(selected) else None
    for rows, marker, name in _layers(points, groups, colour):
        figure.add_trace(_scatter(points, groups, rows, marker, name, shown))
    axis = {"showgrid": True, "gridcolor": GRID, "zeroline": False, "showticklabels": False, "title": None}
    style(figure, height=540)
    figure.update_layout(margin={"l": 8, "r": 8, "t": 36, "b": 8})
    figure.update_layout(
        xaxis=axis,
        yaxis={**axis, "scaleanchor": "x"},
        dragmode="lasso",
        hovermode="closest",
        uirevision="map",
        showlegend=colour == "adapter",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
    )
    return figure


def _layers(points: Points, groups: Sequence[Group], colour: str) -> list[tuple[np.ndarray, dict, str]]:
    """The traces of a map: which rows, with which marker, under which name."""
    everything = np.arange(len(points.ids))
    if colour == "adapter":
        rows = [np.flatnonzero(points.owner == j) for j in range(len(groups))]
        return [(r, {"color": group.colour}, group.name) for r, group in zip(rows, groups, strict=True)]
    if colour == "cluster":
        return [(everything, {"color": [cluster_colour(int(c)) for c in points.cluster]}, "units")]
    values = points.layer if colour == "layer" else points.norm
    bar: dict = {"title": {"text": colour, "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 0.8}
    if colour == "layer" and points.blocks:
        bar |= {"title": {"text": points.along, "side": "right"}, **every(points.blocks)}
    return [(everything, {"color": values, "colorscale": SCALE, "showscale": True, "colorbar": bar}, "units")]


def _scatter(
    points: Points, groups: Sequence[Group], rows: np.ndarray, marker: dict, name: str, shown: np.ndarray | None
) -> go.Scatter:
    size = 9 if len(points.ids) < 250 else 7 if len(points.ids) < 1500 else 5
    hover = [
        f"<b>{groups[points.owner[i]].name}</b><br>{points.module[i]}<br>rank index {points.rank_index[i]}"
        f" · norm {points.norm[i]:.3f} · cluster {points.cluster[i] + 1}"
        for i in rows
    ]
    return go.Scatter(
        x=points.xy[rows, 0],
        y=points.xy[rows, 1],
        mode="markers",
        name=name,
        marker={"size": size, "opacity": 0.85, "line": {"width": 0.5, "color": "rgba(255,255,255,.35)"}, **marker},
        text=hover,
        hovertemplate="%{text}<extra></extra>",
        hoverlabel={"bgcolor": "#292524", "bordercolor": "#292524", "font": {"color": "#fff", "size": 13}},
        customdata=points.ids[rows],
        selectedpoints=None if shown is None else np.flatnonzero(shown[rows]),
        unselected={"marker": {"opacity": 0.15}},
    )


def clusters_of_module(owner: np.ndarray, cluster: np.ndarray, groups: Sequence[Group]) -> go.Figure:
    """One module: which adapters each cluster is made of, as stacked bars; largest cluster first."""
    order = np.argsort(-np.bincount(cluster), kind="stable")
    order = order[np.bincount(cluster)[order] > 0]
    names = [str(c + 1) for c in order]
    figure = go.Figure()
    for j, group in enumerate(groups):
        counts = np.bincount(cluster[owner == j], minlength=cluster.max() + 1)[order]
        hover = f"cluster %{{x}}: %{{y}} units of {group.name}<extra></extra>"
        figure.add_bar(x=names, y=counts, name=group.name, marker_color=group.colour, hovertemplate=hover)
    style(figure, height=360)
    figure.update_layout(
        barmode="stack",
        bargap=0.25,
        xaxis={"title": "cluster", "type": "category"},
        yaxis=_count("units"),
        legend=BELOW,
        margin={"l": 44, "r": 8, "t": 12, "b": 8},
    )
    return figure


def clusters_by_layer(points: Points, groups: Sequence[Group]) -> go.Figure:
    """Many modules: for each layer, how many clusters hold one adapter only and how many mix two, three, ... of them."""
    owners: dict[tuple[int, str, int], set[int]] = {}
    for place in zip(points.layer, points.module, points.cluster, points.owner, strict=True):
        owners.setdefault(place[:3], set()).add(place[3])
    layers = sorted(set(points.layer))
    shown = [points.blocks[layer] for layer in layers] if points.blocks else layers
    pure = np.zeros((len(groups), len(layers)), dtype=int)
    mixed = np.zeros((len(groups) + 1, len(layers)), dtype=int)
    for (layer, _, _), present in owners.items():
        counts, row = (pure, min(present)) if len(present) == 1 else (mixed, len(present))
        counts[row, layers.index(layer)] += 1
    figure = go.Figure()
    for j, group in enumerate(groups):
        hover = f"{points.along} %{{x}}: %{{y}} clusters of {group.name} alone<extra></extra>"
        name = f"{group.name} only"
        figure.add_bar(x=shown, y=pure[j], name=name, marker_color=group.colour, hovertemplate=hover)
    for count in (count for count in range(2, len(groups) + 1) if mixed[count].any()):
        hover = f"{points.along} %{{x}}: %{{y}} clusters mix {count} adapters<extra></extra>"
        colour = MIXED[min(count - 2, len(MIXED) - 1)]
        figure.add_bar(x=shown, y=mixed[count], name=f"{count} mixed", marker_color=colour, hovertemplate=hover)
    style(figure, height=360)
    figure.update_layout(
        barmode="stack",
        bargap=0.2,
        xaxis={"title": points.along, "automargin": True},
        yaxis=_count("clusters"),
        legend=BELOW,
        margin={"l": 44, "r": 8, "t": 12, "b": 8},
    )
    return figure


def per_module(
    kinds: Sequence[str], layers: Sequence[int] | Sequence[str], values: np.ndarray, title: str, along: str = "layer"
) -> go.Figure:
    """A measure of every merged module: kinds as rows, layers as columns; ``values`` is [kinds, layers], nan = none."""
    hover = "%{y}, " + along + " %{x}<br>" + title + " %{z:.3f}<extra></extra>"
    bar = {"title": {"text": title, "side": "right"}, "thickness": 10, "outlinewidth": 0}
    heat = go.Heatmap(
        z=values, x=list(layers), y=list(kinds), colorscale=SCALE, xgap=1, ygap=1, hovertemplate=hover, colorbar=bar
    )
    figure = go.Figure(heat)
    style(figure, height=110 + 30 * max(3, len(kinds)))
    across = {"title": along, "automargin": True}
    figure.update_layout(xaxis=across, yaxis={"autorange": "reversed", "automargin": True, "ticks": ""})
    return figure


def every(rows: Sequence[str]) -> dict:
    """Labels of rows, as many as there is room for."""
    step = -(-len(rows) // 50)
    places = range(0, len(rows), max(1, step))
    return {"tickvals": list(places), "ticktext": [rows[place] for place in places]}


def empty(text: str) -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure()
    style(figure, height=300)
    note = {"text": text, "showarrow": False, "font": {"size": 15, "color": NEUTRAL}, "xref": "paper", "yref": "paper"}
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False}, annotations=[{**note, "x": 0.5, "y": 0.5}])
    return figure


def _count(title: str) -> dict:
    return {
        "title": title,
        "gridcolor": GRID,
        "zeroline": False,
        "tickformat": "d",
        "rangemode": "tozero",
        "automargin": True,
    }


def style(figure: go.Figure, height: int) -> None:
    """What all figures share: no background, the page's own font, a quiet mode bar."""
    figure.update_layout(
        template="none",
        height=height,
        margin={"l": 52, "r": 12, "t": 40, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "ui-sans-serif, system-ui, sans-serif", "size": 13, "color": NEUTRAL},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "traceorder": "normal"},
        modebar={"remove": ["autoScale2d", "zoomIn2d", "zoomOut2d", "toImage"], "bgcolor": "rgba(0,0,0,0)"},
        hoverlabel={"bgcolor": "#292524", "bordercolor": "#292524", "font": {"color": "#fff"}},
    )
