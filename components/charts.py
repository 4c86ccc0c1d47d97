"""Figures on the page, which the next figure changes in place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from components import figures

SCRIPT = Path(__file__).with_name("charts.js").read_text(encoding="utf-8")


class Chart(gr.HTML):
    """A Plotly figure. ``gr.Plot`` builds each one anew: its zoom is lost and a WebGL canvas takes a third of a second."""

    is_template = True  # drawn as the class it is made of

    def postprocess(self, value: go.Figure | str | None) -> str | None:
        """The figure as JSON."""
        return value.to_json() if isinstance(value, go.Figure) else value


def create(label: str, **more: Any) -> Chart:
    """A chart without a figure yet, and so without room.

    The style sheet hides it, not ``visible``: what comes for a component while that shows it is lost now and then.
    """
    look: dict[str, Any] = {"html_template": "<div></div>", "apply_default_css": False, "elem_classes": "by-chart"}
    return Chart(js_on_load=SCRIPT, label=label, **look, **more)


def bring() -> None:
    """Let the page load Plotly, as Gradio brings it: with a plot that nobody sees."""
    gr.Plot(figures.empty(""), visible="hidden")
