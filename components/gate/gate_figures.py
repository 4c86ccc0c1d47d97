"""Figures of gates from plain data: what they choose, block by block and step by step, and how their training goes."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from components.figures import GRID, Group, every, named, styled
from components.palette import BRICK, DIVERGING, NEUTRAL, SCALE

ACROSS = 4
"""LoRAs side by side."""
LEANING = 76
"""Pixels above a panel for the name that leans over it."""


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
    plain = {"showgrid": False, "zeroline": False, "ticks": "", "automargin": True}
    top = {
        "side": "top",
        "tickangle": -30,
        "ticklabeloverflow": "allow",
        "title": {"text": title, "standoff": 6, "font": {"size": 13}},
    }
    names = [named(group) for group in groups]
    return styled(
        go.Figure(heat),
        height=160 + min(800, 16 * max(6, len(rows))),
        margin={"l": 8, "r": 84, "t": 8, "b": 40},  # the last name leans to the right
        xaxis={**plain, **top, "tickvals": columns, "ticktext": names},
        yaxis={**plain, "autorange": "reversed", "ticksuffix": "\u00a0", **every(rows)},
    )


def gate_course(rows: Sequence[str], groups: Sequence[Group], shares: np.ndarray, title: str = "") -> go.Figure:
    """How much every gate trusted each LoRA step by step: one panel a LoRA; ``shares`` is [steps, gates, LoRAs], 0 to 1."""
    return _gate_course(rows, groups, shares, title, {"cmin": 0, "cmax": 1, "colorscale": SCALE}, "%{z:.1%}")


def gate_course_changes(rows: Sequence[str], groups: Sequence[Group], change: np.ndarray, title: str = "") -> go.Figure:
    """How that differs between two prompts, in the same layout; ``change`` is [steps, gates, LoRAs], -1 to 1."""
    return _gate_course(rows, groups, change, title, {"cmin": -1, "cmax": 1, "colorscale": DIVERGING}, "%{z:+.1%}")


def _gate_course(
    rows: Sequence[str], groups: Sequence[Group], values: np.ndarray, title: str, scale: dict, shown: str
) -> go.Figure:
    across, steps = min(ACROSS, len(groups)), list(range(1, len(values) + 1))
    down, tall = -(-len(groups) // across), min(500, 16 * max(6, len(rows)))
    inside = down * tall + (down - 1) * LEANING
    figure = make_subplots(
        rows=down,
        cols=across,
        shared_xaxes=True,
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=LEANING / inside,
        subplot_titles=[named(group) for group in groups],
    )
    for number, group in enumerate(groups):
        hover = f"step %{{x}}, %{{customdata}}: {escape(group.name)} {shown}<extra></extra>"
        told = [[row] * len(steps) for row in rows]
        heat = go.Heatmap(
            z=values[:, :, number].T, x=steps, customdata=told, hovertemplate=hover, coloraxis="coloraxis"
        )
        figure.add_trace(heat, row=number // across + 1, col=number % across + 1)
    styled(figure, height=34 + LEANING + inside + 70)
    plain = {"showgrid": False, "zeroline": False, "ticks": ""}
    figure.update_xaxes(**plain, nticks=5, tickformat="d")
    figure.update_yaxes(**plain, autorange="reversed", ticksuffix="\u00a0", automargin=True, **every(rows))
    figure.update_xaxes(
        title={"text": "denoising step", "standoff": 4, "font": {"size": 13}},
        row=down,
        col=min((across + 1) // 2, len(groups) - across * (down - 1)),
    )
    bar = {"orientation": "h", "thickness": 8, "outlinewidth": 0, "tickformat": ".0%", "nticks": 5, "y": -0.12}
    figure.update_layout(
        coloraxis={**scale, "colorbar": {**bar, "yanchor": "top"}},
        margin={"l": 8, "r": 72, "t": 34 + LEANING, "b": 70},
        title={"text": title, "font": {"size": 13}, "x": 0.5, "y": 0.99, "yanchor": "top"},
    )
    for number, name in enumerate(figure.layout.annotations):  # names lean to the right, so that long ones find room
        panel = figure.get_subplot(number // across + 1, number % across + 1)
        left = panel.xaxis.domain[0]
        name.update(font={"size": 13}, textangle=-30, x=left, xanchor="left")
    return figure


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
