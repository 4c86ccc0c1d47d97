"""What much of the page follows, all of it in one request: each listener by itself is a step of the browser's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from components.events import PRIVATE


class Followers:
    """Functions that each take a moment and fill components of their own, run together."""

    def __init__(self) -> None:
        self._parts: list[tuple[Callable[..., Any], list[Any], list[Any]]] = []

    def follow(self, function: Callable[..., Any], given: list[Any], shown: list[Any]) -> None:
        """Let a function join.

        Args:
            function: as an event's; what it raises is told as a warning, the others go on.
            given, shown: its inputs and its outputs.
        """
        self._parts.append((function, given, shown))

    @property
    def given(self) -> list[Any]:
        """The inputs of all, each once."""
        return list({each._id: each for _, own, _ in self._parts for each in own}.values())

    @property
    def shown(self) -> list[Any]:
        """The outputs of all."""
        return [each for _, _, own in self._parts for each in own]

    def run(self, *values: Any) -> list[Any]:
        """What to show, from the values of ``given``."""
        of = {each._id: value for each, value in zip(self.given, values, strict=True)}
        found = [_part(function, [of[each._id] for each in own], len(fills)) for function, own, fills in self._parts]
        return list(chain.from_iterable(found))


class Followed(gr.State):
    """A state that much of the page follows."""

    is_template = True  # sent as the class it is made of

    def __init__(self, value: Any = None) -> None:
        super().__init__(value)
        self._followers = Followers()

    def follow(self, function: Callable[..., Any], given: list[Any], shown: list[Any]) -> None:
        """Let a function fill components at each change, as in `Followers`."""
        self._followers.follow(function, given, shown)

    def wire(self) -> None:
        """Connect everything that follows."""
        shown = self._followers.shown

        def follow(request: gr.Request, *values: Any) -> list[Any]:
            before = self._now(request)
            found = self._followers.run(*values)
            # After another change what follows that is on its way, and this would come over it.
            return found if self._now(request) == before else [gr.skip()] * len(shown)

        self.change(follow, self._followers.given, shown, **PRIVATE)

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
