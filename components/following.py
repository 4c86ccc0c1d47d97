"""Choices that follow the session: what was chosen from earlier ones counts as not chosen.

The page reports a change of the session before it shows the new choices, so for a moment it sends what is no longer on offer. Gradio
answers that with an error message, which helps nobody here.
"""

from __future__ import annotations

from typing import Any

import gradio as gr


class Ticks(gr.CheckboxGroup):
    """A group of check boxes."""

    is_template = True  # drawn as the class it is made of

    def preprocess(self, payload: list[Any]) -> list[Any]:
        """What is ticked and still on offer."""
        offered = [value for _, value in self.choices]
        return super().preprocess([value for value in payload if value in offered])


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
        """What is chosen, None where it is no longer on offer."""
        return super().preprocess(payload if payload in [value for _, value in self.choices] else None)
