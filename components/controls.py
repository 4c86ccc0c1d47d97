"""A merge method's parameters and a config's fields as components: what they declare is what the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

import gradio as gr
from gradio.components import Component
from pydantic.fields import FieldInfo

from lego import Method, Parameter, method, methods

LONGEST = 500
"""Characters of a text."""
RANKS = ("0.5r", "r", "2r", "3r", "95%", "all")

LABELS = {
    "lr": "Learning rate",
    "alpha": "α",
    "reads": "Gates read",
    "base_expert": "Base expert",
    "seed": "Training seed",
}
"""Labels of a config's fields that are not simply their names."""


def control(parameter: Parameter) -> Component:
    """The component in which one parameter is set."""
    label, info = parameter.name.replace("_", " "), parameter.help
    label = label if label in ("k", "r") else label.capitalize()
    if parameter.type == "bool":
        return gr.Checkbox(bool(parameter.default), label=label, info=info)
    if parameter.type == "choice":
        return gr.Dropdown(list(parameter.choices or ()), value=parameter.default, label=label, info=info)
    if parameter.type == "rank":
        return gr.Dropdown(list(RANKS), value=str(parameter.default), label=label, info=info, allow_custom_value=True)
    if parameter.name == "strength":
        return gr.Slider(0, 2, value=parameter.default, step=0.05, label=label, info=info)
    low, high = parameter.minimum, parameter.maximum
    step = 1 if parameter.type == "int" else 0.01
    if low is not None and high is not None and high - low <= 100:
        return gr.Slider(low, high, value=parameter.default, step=step, label=label, info=info)
    precision = 0 if parameter.type == "int" else None
    return gr.Number(parameter.default, label=label, info=info, minimum=low, maximum=high, precision=precision)


def group(found: Method, visible: bool) -> tuple[gr.Group, list[Component]]:
    """All parameters of one method in one group; only the chosen method's group is visible."""
    with gr.Column(visible=visible, elem_classes="plain") as box:
        return box, [control(parameter) for parameter in found.parameters]


def read(found: Method, values: Sequence[Any]) -> dict[str, Any]:
    """The parameters as the method takes them, from its components' values in the same order."""
    given = dict(zip((parameter.name for parameter in found.parameters), values, strict=True))
    whole = {parameter.name for parameter in found.parameters if parameter.type == "int"}
    return found.validate(
        {name: int(value) if name in whole and value is not None else value for name, value in given.items()}
    )


def read_one(name: str, values: Sequence[Any]) -> dict[str, Any]:
    """The same for the method of that name, from the values of all methods' components in the registry's order.

    Raises:
        AdapterError: for a value outside what the parameter takes.
    """
    start = 0
    for other, found in methods().items():
        count = len(found.parameters)
        if other == name:
            return read(found, values[start : start + count])
        start += count
    return read(method(name), values)


def field_control(name: str, field: FieldInfo, label: str | None = None) -> Component:
    """The component in which one field of a config is set; under its own label, or one that tells it from others of its name."""
    label = label or LABELS.get(name, name.replace("_", " ").capitalize())
    info, kind = field.description, field.annotation
    if kind is bool:
        return gr.Checkbox(field.default, label=label, info=info)
    if kind is str:
        return gr.Textbox(field.default, label=label, info=info, max_length=LONGEST)
    if get_origin(kind) is Literal:
        return gr.Radio(list(get_args(kind)), value=field.default, label=label, info=info)
    low = next((found for limit in field.metadata if (found := getattr(limit, "ge", None)) is not None), None)
    high = next((found for limit in field.metadata if (found := getattr(limit, "le", None)) is not None), None)
    step, precision = (1, 0) if kind is int else (field.default / 10 or 0.01, None)
    return gr.Number(
        field.default, label=label, info=info, minimum=low, maximum=high, precision=precision, step=step, min_width=150
    )
