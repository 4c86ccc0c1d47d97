"""Plotly figures from plain data: no session, no files, no gradio.

Backgrounds are transparent and the style sheet colours all text, so every figure follows the page's light or dark theme.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from components.palette import BRICK, DIVERGING, NEUTRAL, SCALE, adapter_colour

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
    figure = go.Figure(heat)
    styled(figure, height=110 + 30 * max(3, len(kinds)))
    across = {"title": along, "automargin": True}
    figure.update_layout(xaxis=across, yaxis={"autorange": "reversed", "automargin": True, "ticks": ""})
    return figure


def gate_map(rows: Sequence[str], groups: Sequence[Group], shares: np.ndarray, title: str = "") -> go.Figure:
    """What every gate chose: gates as rows in the model's order, LoRAs as columns; ``shares`` is [gates, LoRAs], 0 to 1."""
    return _gate_map(rows, groups, shares, title, {"zmin": 0, "zmax": 1, "colorscale": SCALE}, "%{z:.1%}")


def gate_changes(rows: Sequence[str], groups: Sequence[Group], change: np.ndarray, title: str = "") -> go.Figure:
    """How choices differ between two prompts, in the same layout; ``change`` is [gates, LoRAs], -1 to 1."""
    return _gate_map(rows, groups, change, title, {"zmin": -1, "zmax": 1, "colorscale": DIVERGING}, "%{z:+.1%}")


def _gate_map(
    rows: Sequence[str], groups: Sequence[Group], values: np.ndarray, title: str, scale: dict, shown: str
) -> go.Figure:
    bar = {
        "orientation": "h",
        "thickness": 8,
        "outlinewidth": 0,
        "tickformat": ".0%",
        "y": 0,
        "yanchor": "top",
        "nticks": 5,
    }
    columns, places = list(range(len(groups))), list(range(len(rows)))
    told = [[f"{row}: {escape(group.name)}" for group in groups] for row in rows]
    hover = f"%{{text}} {shown}<extra></extra>"
    heat = go.Heatmap(
        z=values,
        x=columns,
        y=places,
        text=told,
        xgap=1,
        ygap=int(len(rows) <= 60),
        hovertemplate=hover,
        colorbar=bar,
        **scale,
    )
    figure = go.Figure(heat)
    styled(figure, height=160 + min(800, 16 * max(6, len(rows))))
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    top = {
        "side": "top",
        "tickangle": -30,
        "ticklabeloverflow": "allow",
        "title": {"text": title, "standoff": 6, "font": {"size": 13}},
    }
    names = [named(group) for group in groups]
    figure.update_layout(
        margin={"l": 8, "r": 84, "t": 8, "b": 40},  # the last name leans to the right
        xaxis={**plain, **top, "tickvals": columns, "ticktext": names},
        yaxis={**plain, "autorange": "reversed", "ticksuffix": "\u00a0", **every(rows)},
    )
    return figure


def named(group: Group) -> str:
    """A LoRA's name behind a brick of its colour."""
    name = group.name if len(group.name) <= 18 else f"{group.name[:17]}…"
    return f'<span style="color:{group.colour};fill:{group.colour}">■</span> {escape(name)}'


def every(rows: Sequence[str]) -> dict:
    """Labels of rows, as many as there is room for."""
    step = -(-len(rows) // 50)
    places = range(0, len(rows), max(1, step))
    return {"tickvals": list(places), "ticktext": [rows[place] for place in places]}


def curves(steps: Sequence[int], lines: dict[str, tuple[Sequence[float], float | None]], most: int) -> go.Figure:
    """Measures over training steps, one below the other, each with a dotted line where gates that trust all alike are.

    Args:
        steps: the steps done.
        lines: for each measure its value at every step, and where the dotted line is, if it has one.
        most: steps in all.
    """
    figure = make_subplots(
        rows=len(lines), cols=1, shared_xaxes=True, vertical_spacing=0.13, subplot_titles=list(lines)
    )
    for row, (name, (values, level)) in enumerate(lines.items(), 1):
        hover = f"step %{{x}}: {name} %{{y:.3f}}<extra></extra>"
        line = go.Scatter(x=steps, y=values, mode="lines+markers", name=name, hovertemplate=hover)
        figure.add_trace(line.update(line={"color": BRICK, "width": 2}, marker={"size": 5}), row=row, col=1)
        if level is not None:
            figure.add_hline(level, row=row, col=1, line={"dash": "dot", "color": NEUTRAL, "width": 1})
    styled(figure, height=420)
    figure.update_layout(showlegend=False, margin={"l": 48, "r": 12, "t": 28, "b": 40})
    figure.update_annotations(font={"size": 13}, x=0, xanchor="left")
    figure.update_yaxes(gridcolor=GRID, zeroline=False, nticks=4, automargin=True)
    figure.update_xaxes(gridcolor=GRID, zeroline=False, range=[0, most + 0.5], dtick=max(1, -(-most // 8)))
    figure.update_xaxes(title="step", row=len(lines))
    return figure


def empty(text: str) -> go.Figure:
    """A figure that says why there is nothing to see."""
    figure = go.Figure()
    styled(figure, height=300)
    note = {"text": text, "showarrow": False, "font": {"size": 15, "color": NEUTRAL}, "xref": "paper", "yref": "paper"}
    figure.update_layout(xaxis={"visible": False}, yaxis={"visible": False}, annotations=[{**note, "x": 0.5, "y": 0.5}])
    return figure


def counted(title: str) -> dict:
    """An axis of whole numbers from 0 on."""
    return {
        "title": title,
        "gridcolor": GRID,
        "zeroline": False,
        "tickformat": "d",
        "rangemode": "tozero",
        "automargin": True,
    }


def styled(figure: go.Figure, height: int) -> None:
    """The look of every figure."""
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
