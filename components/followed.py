"""A state that much of the page follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from components.events import PRIVATE

Part = tuple[Callable[..., Any], list[Any], list[Any]]


class Followed(gr.State):
    """A state that much of the page follows, all of it in one request: each listener by itself is a step of the browser's own."""

    is_template = True  # sent as the class it is made of

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self.done = gr.State(0)
        """Changes once all has followed."""
        self._parts: list[Part] = []

    def follow(self, function: Callable[..., Any], given: list[Any], shown: list[Any]) -> None:
        """Let a function that takes a moment fill components at each change.

        Args:
            function: as an event's; what it raises is told as a warning, the others go on.
            given, shown: its inputs and its outputs.
        """
        self._parts.append((function, given, shown))

    def wire(self) -> None:
        """Connect everything that follows."""
        given = list({each._id: each for _, own, _ in self._parts for each in own}.values())
        shown = [each for _, _, own in self._parts for each in own]

        def follow(request: gr.Request, done: int, *values: Any) -> list[Any]:
            before = self._now(request)
            of = {each._id: value for each, value in zip(given, values, strict=True)}
            found = [
                _part(function, [of[each._id] for each in own], len(fills)) for function, own, fills in self._parts
            ]
            if self._now(request) != before:  # what follows that is on its way, and this would come over it
                return [gr.skip()] * (len(shown) + 1)
            return [done + 1, *chain.from_iterable(found)]

        self.change(follow, [self.done, *given], [self.done, *shown], **PRIVATE)

    def _now(self, request: gr.Request) -> Any:
        page = LocalContext.blocks.get()
        assert page is not None
        return page.state_holder[str(request.session_hash)][self._id]


def _part(function: Callable[..., Any], values: list[Any], count: int) -> Sequence[Any]:
    try:
        found = function(*values)
    except gr.Error as error:
        gr.Warning(error.message)
        return (gr.skip(),) * count
    return [found] if count == 1 else found
