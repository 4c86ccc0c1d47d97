"""Figures of units from plain data: the map, and what its clusters are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from zlib import crc32

import numpy as np
import plotly.graph_objects as go

from components.figures import GRID, Group, counted, every, styled
from components.palette import BRICK, NEUTRAL, SCALE, cluster_colour

COLOURINGS = ("adapter", "cluster", "layer", "norm")
BELOW = {"orientation": "h", "y": -0.28, "yanchor": "top", "x": 0, "traceorder": "normal"}
MIXED = ("#c9b8a8", "#a8917d", "#86705d", "#65523f")
MANY = 1500
"""More units are drawn by WebGL, and hovered with their layer in place of their module's name, half of the figure's bytes."""


@dataclass(frozen=True)
class Points:
    """Units on the map; row i of every array is unit i, and i is what the browser sends back. ``xy`` is [n, 2].

    ``module`` is a place in ``modules``; ``blocks`` are names for the numbers of ``layer``, where layers have names.
    """

    xy: np.ndarray
    owner: np.ndarray
    module: np.ndarray
    modules: Sequence[str]
    layer: np.ndarray
    rank_index: np.ndarray
    norm: np.ndarray
    cluster: np.ndarray
    blocks: Sequence[str] = ()

    @property
    def along(self) -> str:
        """What ``layer`` counts."""
        return "block" if self.blocks else "layer"

    def label(self, layer: int) -> str:
        """A layer's name: its number, or its block's."""
        return self.blocks[layer] if self.blocks else str(layer)


@dataclass(frozen=True)
class Marks:
    """What the map shows of a selection, by rows of its points.

    Attributes:
        rows: the selected units; None where nothing is selected, so that nothing is greyed out.
        rings: units with a ring, the primary and the pinned one.
        links: pairs of units joined by a line: the primary one and its nearest.
    """

    rows: np.ndarray | None = None
    rings: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] = ()

    def data(self, xy: np.ndarray) -> dict:
        """The same for the browser, with coordinates."""
        ends = [point for a, b in self.links for point in (xy[a].tolist(), xy[b].tolist(), [None, None])]
        return {
            "rows": None if self.rows is None else self.rows.tolist(),
            "links": [[x for x, _ in ends], [y for _, y in ends]],
            "rings": [xy[list(self.rings), 0].tolist(), xy[list(self.rings), 1].tolist()],
        }


def unit_map(points: Points, groups: Sequence[Group], colour: str, marks: Marks | None = None) -> go.Figure:
    """The map of units, coloured by adapter, cluster, layer or norm. Selected units grey the others out.

    Its last two traces are the marks: lines to the nearest units, and rings.
    """
    marks = marks or Marks()
    shown = None if marks.rows is None else np.isin(np.arange(len(points.xy)), marks.rows)
    layers = _layers(points, groups, colour)
    traces = [_scatter(points, rows, marker, name, shown, colour) for rows, marker, name in layers]
    axis = {"showgrid": True, "gridcolor": GRID, "zeroline": False, "showticklabels": False, "title": None}
    return styled(
        go.Figure([*traces, *_overlay(marks.data(points.xy))]),
        height=540,
        margin={"l": 8, "r": 8, "t": 36, "b": 8},
        xaxis=axis,
        yaxis={**axis, "scaleanchor": "x"},
        dragmode="lasso",
        hovermode="closest",
        uirevision=crc32(points.xy.tobytes()),  # a zoom stays as long as the points do
        # What the page selected last wins over what a lasso did before.
        selectionrevision=0 if marks.rows is None else hash(marks.rows.tobytes()),
        showlegend=colour == "adapter",
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 0, "itemsizing": "constant"},
    )


def _layers(points: Points, groups: Sequence[Group], colour: str) -> list[tuple[np.ndarray, dict, str]]:
    """The traces of a map: which rows, with which marker, under which name."""
    everything = np.arange(len(points.xy))
    if colour == "adapter":
        rows = [np.flatnonzero(points.owner == j) for j in range(len(groups))]
        return [(r, {"color": group.colour}, group.name) for r, group in zip(rows, groups, strict=True)]
    if colour == "cluster":
        count = int(points.cluster.max()) + 1
        steps = [[edge / count, cluster_colour(c)] for c in range(count) for edge in (c, c + 1)]
        scale = {"colorscale": steps, "cmin": -0.5, "cmax": count - 0.5}
        return [(everything, {"color": points.cluster.astype(np.int32), **scale}, "units")]
    values = points.layer.astype(np.int32) if colour == "layer" else points.norm
    bar: dict = {"title": {"text": colour, "side": "right"}, "thickness": 10, "outlinewidth": 0, "len": 0.8}
    if colour == "layer" and points.blocks:
        bar |= {"title": {"text": points.along, "side": "right"}, **every(points.blocks)}
    return [(everything, {"color": values, "colorscale": SCALE, "showscale": True, "colorbar": bar}, "units")]


def _scatter(
    points: Points, rows: np.ndarray, marker: dict, name: str, shown: np.ndarray | None, colour: str
) -> go.Scatter | go.Scattergl:
    count = len(points.xy)
    size = 9 if count < 250 else 7 if count < MANY else 5 if count < 6000 else 4
    line = {"line": {"width": 0.5, "color": "rgba(255,255,255,.35)"}} if count <= MANY else {}
    facts = np.column_stack([rows, points.rank_index[rows], points.norm[rows], points.cluster[rows] + 1])
    where = "%{text}" if count <= MANY else f"{points.along} %{{customdata[4]}}"
    told = f"{where}<br>rank index %{{customdata[1]}} · norm %{{customdata[2]:.3f}}"
    told = f"{escape(name)}<br>{told}" if colour == "adapter" else told
    told += " · cluster %{customdata[3]}" if colour == "cluster" else ""
    return (go.Scattergl if count > MANY else go.Scatter)(
        x=points.xy[rows, 0],
        y=points.xy[rows, 1],
        mode="markers",
        name=name,
        marker={"size": size, "opacity": 0.85, **line, **_of_rows(marker, rows)},
        text=np.array(points.modules)[points.module[rows]] if count <= MANY else None,
        hovertemplate=f"{told}<extra></extra>",
        hoverlabel={"bgcolor": "#292524", "bordercolor": "#292524", "font": {"color": "#fff", "size": 13}},
        customdata=np.column_stack([facts, points.layer[rows]]).astype(np.float32),
        selectedpoints=None if shown is None else np.flatnonzero(shown[rows]).tolist(),
        unselected={"marker": {"opacity": 0.12}},
    )


def _of_rows(marker: dict, rows: np.ndarray) -> dict:
    values = marker["color"]
    return {**marker, "color": values[rows]} if isinstance(values, np.ndarray) else marker


def _overlay(data: dict) -> list[go.Scatter]:
    plain = {"showlegend": False, "hoverinfo": "skip"}
    (link_x, link_y), (ring_x, ring_y) = data["links"], data["rings"]
    links = go.Scatter(x=link_x, y=link_y, mode="lines+markers", line={"color": NEUTRAL, "width": 1.5}, **plain)
    links.update(marker={"size": 9, "symbol": "circle-open", "color": NEUTRAL, "line": {"width": 1.5}})
    links.update(unselected={"marker": {"opacity": 1}})
    ring = {"size": 16, "symbol": "circle-open", "color": BRICK, "line": {"width": 2.5}, "opacity": 1}
    rings = go.Scatter(x=ring_x, y=ring_y, mode="markers", marker=ring, **plain)
    return [links, rings.update(unselected={"marker": {"opacity": 1}})]


def clusters_of_module(owner: np.ndarray, cluster: np.ndarray, groups: Sequence[Group]) -> go.Figure:
    """One module: which adapters each cluster is made of, as stacked bars; largest cluster first."""
    order = by_size(cluster)
    names = [str(c + 1) for c in order]
    figure = go.Figure()
    for j, group in enumerate(groups):
        counts = np.bincount(cluster[owner == j], minlength=cluster.max() + 1)[order]
        hover = f"cluster %{{x}}: %{{y}} bricks of {group.name}<extra></extra>"
        figure.add_bar(x=names, y=counts, name=group.name, marker_color=group.colour, hovertemplate=hover)
    return _bars(figure, {"title": "cluster", "type": "category"}, "units")


def by_size(cluster: np.ndarray) -> np.ndarray:
    """The clusters that have units, largest first."""
    counts = np.bincount(cluster)
    order = np.argsort(-counts, kind="stable")
    return order[counts[order] > 0]


def clusters_by_layer(points: Points, groups: Sequence[Group]) -> go.Figure:
    """Many modules: for each layer, how many clusters hold one adapter only and how many mix two, three, ... of them."""
    layers, mixture, _ = mixtures(points, len(groups))
    shown = [points.label(layer) for layer in layers]
    figure = go.Figure()
    for j, group in enumerate(groups):
        hover = f"{points.along} %{{x}}: %{{y}} clusters of {group.name} alone<extra></extra>"
        name = f"{group.name} only"
        figure.add_bar(x=shown, y=mixture[j], name=name, marker_color=group.colour, hovertemplate=hover)
    for count, row in enumerate(mixture[len(groups) :], 2):
        if row.any():
            hover = f"{points.along} %{{x}}: %{{y}} clusters mix {count} adapters<extra></extra>"
            colour = MIXED[min(count - 2, len(MIXED) - 1)]
            figure.add_bar(x=shown, y=row, name=f"{count} mixed", marker_color=colour, hovertemplate=hover)
    return _bars(figure, {"title": points.along, "automargin": True, "type": "category"}, "clusters")


def mixtures(points: Points, adapters: int) -> tuple[list[int], np.ndarray, np.ndarray]:
    """How clusters are mixed, layer by layer.

    Returns:
        The layers; how many clusters hold one adapter alone, by adapter, then how many mix two, three, … of them, as
        (kinds of mixture, layers); and for each unit the kind of mixture that its cluster is.
    """
    group = points.module * (int(points.cluster.max()) + 1) + points.cluster
    _, first, own = np.unique(group, return_index=True, return_inverse=True)
    present = np.zeros((len(first), adapters), dtype=bool)
    present[own, points.owner] = True
    count = present.sum(1)
    kind = np.where(count == 1, present.argmax(1), adapters + count - 2)
    layers, at = np.unique(points.layer[first], return_inverse=True)
    table = np.zeros((2 * adapters - 1, len(layers)), dtype=int)
    np.add.at(table, (kind, at), 1)
    return layers.tolist(), table, kind[own]


def _bars(figure: go.Figure, across: dict, what: str) -> go.Figure:
    most = int(sum(np.asarray(bar.y) for bar in figure.data).max(initial=1))
    return styled(
        figure,
        height=360,
        barmode="stack",
        bargap=0.22,
        xaxis=across,
        yaxis=counted(what, most),
        legend=BELOW,
        margin={"l": 44, "r": 8, "t": 12, "b": 8},
    )
