"""Choices that follow the session: whether one is still on offer is seen by who uses it, not by Gradio.

The page reports a change of the session before it shows the new choices, so for a moment it sends what is no longer on offer. Gradio
answers that with an error message, which helps nobody here; and its own list of what is on offer may be that of an earlier session,
since any two updates of a component at the same time each write it.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


class Ticks(gr.CheckboxGroup):
    """A group of check boxes."""

    is_template = True  # drawn as the class it is made of

    def preprocess(self, payload: list[Any]) -> list[Any]:
        """What is ticked, perhaps of an earlier session."""
        return [value for value in payload or [] if isinstance(value, str)]


class Within(gr.Slider):
    """A slider: what lies outside its range counts as its nearest end."""

    is_template = True

    def preprocess(self, payload: float) -> float:
        """The value, inside the range that is on offer."""
        return super().preprocess(min(max(payload, self.minimum), self.maximum))


class Choice(gr.Dropdown):
    """A drop-down list of which one is chosen."""

    is_template = True

    def preprocess(self, payload: Any) -> Any:
        """What is chosen, perhaps of an earlier session."""
        return payload if isinstance(payload, str) else None
