"""The two axes of a comparison on the page: what columns and rows show, their values, and the variant that is varied."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import kinds
from components.compare.axes import NONE, Axis, Cost, offered
from components.following import Choice
from components.library.shelf import shelf
from components.session.remembered import AxesOf
from components.session.state import MERGE, Session, columns

FIRST, START = "weight", "0..1 | 0.25"
COSTS = {Cost.ROW: "", Cost.RUN: "", Cost.MERGE: " (merges first)"}
HOW = "1, 2, 4 or 4..16 | 4: from..to | step, both ends included."
CHOSEN = {"variant": "The variants ticked above.", "prompt": "The prompts below."}


@dataclass(frozen=True)
class AxesBox:
    """The components of the section that events need."""

    panel: gr.Column
    x: gr.Dropdown
    x_values: gr.Textbox
    y: gr.Dropdown
    y_values: gr.Textbox
    subject: gr.Dropdown

    @property
    def settings(self) -> list[Any]:
        """What tells the axes, in order."""
        return [self.x, self.x_values, self.y, self.y_values, self.subject]

    @property
    def offered(self) -> list[Any]:
        """What ``refresh`` takes and fills."""
        return [self.x, self.y, self.subject]


def create() -> AxesBox:
    """Lay the section out; nothing is wired yet."""
    with gr.Column(visible=False, elem_classes="plain") as panel:
        with gr.Row():
            x = Choice([], label="Columns show", filterable=False, min_width=180, scale=2)
            x_values = gr.Textbox(
                START, label="Values of the columns", info=HOW, max_length=400, min_width=220, scale=3
            )
        with gr.Row():
            y = Choice([], label="Rows show", filterable=False, min_width=180, scale=2)
            y_values = gr.Textbox(
                label="Values of the rows", info=HOW, max_length=400, visible=False, min_width=220, scale=3
            )
        subject = Choice([], label="Variant that is varied", filterable=False)
    return AxesBox(panel, x, x_values, y, y_values, subject)


def refresh(session: Session, x: str | None, y: str | None, subject: str | None) -> tuple[Any, Any, Any]:
    """Offer the session's axes and variants; what was chosen stays where it is still there."""
    known = offered(session)
    choices = [(axis.label + COSTS[axis.cost], name) for name, axis in known.items()]
    found = columns(kinds.own(session), shelf(session))
    ids = [column.id for column in found]
    best = [each for each in ids if each.startswith(MERGE)][-1:] + [each for each in ids if each == "sum"] + ids
    return (
        gr.Dropdown(choices, value=x if x in known else FIRST),
        gr.Dropdown([("nothing", NONE), *choices], value=y if y in known else NONE),
        gr.Dropdown([(column.name, column.id) for column in found], value=subject if subject in ids else best[0]),
    )


def restored(session: Session, axes: AxesOf | None, subject: str) -> tuple[Any, ...]:
    """The section as a recipe has it; as it is where the recipe has no axes."""
    if axes is None:
        return (gr.skip(),) * 5
    x, y, varied = refresh(session, axes.x, axes.y, subject)
    values = [box(session, axis, text) for axis, text in ((axes.x, axes.x_values), (axes.y, axes.y_values))]
    return x, values[0], y, values[1], varied


def box(session: Session, name: str, text: str) -> Any:
    """The box of an axis with its values."""
    return gr.Textbox(**{**_box(session, name), "value": text})


def turn(session: Session, name: str | None) -> Any:
    """The box for an axis' values: typed, or chosen elsewhere."""
    return gr.Textbox(**_box(session, name))


def _box(session: Session, name: str | None) -> dict[str, Any]:
    axis: Axis | None = offered(session).get(name or NONE)
    if axis is None:
        return {"value": "", "visible": False}
    if axis.name in CHOSEN:
        return {"value": "", "info": CHOSEN[axis.name], "interactive": False, "visible": True}
    return {"value": axis.example, "info": HOW, "interactive": True, "visible": True}


def shown(mode: str, x: str | None, y: str | None) -> tuple[Any, Any, Any]:
    """Which of the axes, the variants and the varied variant are to be seen."""
    axes = mode == "axes"
    every = "variant" in (x, y)
    return gr.Column(visible=axes), gr.CheckboxGroup(visible=not axes or every), gr.Dropdown(visible=not every)
