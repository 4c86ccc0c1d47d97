"""How the page's events are listened to: as itself alone, without Gradio's own signs of progress."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr
from gradio.components.api_component import Api
from gradio.context import LocalContext

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
ALONE = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "session"}
"""What changes the session: one after another."""
MODEL = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "model"}
"""What runs the base model: one after another."""
HUB = {**PRIVATE, "concurrency_limit": 4, "concurrency_id": "hub"}
"""What waits for the hub."""
AT_ONCE = {**PRIVATE, "queue": False}
"""What takes a moment and fills no state: asked in one request, with half as many steps as in the queue."""
LAST = {"trigger_mode": "always_last"}
NEWEST = {**PRIVATE, **LAST}
"""What is wanted again while it runs, runs once more, with the newest values. On a component's own event this may stand only once."""


def heard(events: Sequence[Any]) -> Any:
    """Several events of components as one, for whatever ``then`` follows the ``NEWEST``.

    What waits behind a run lets Gradio's page begin all listeners of its event again: two of them that wait would begin each other
    for ever. What comes after this one waits by itself.
    """
    return gr.on(events, None, None, None, js="() => []", **PRIVATE)


def newest(events: Sequence[Any], function: Callable[..., Any], given: Any, shown: Any, **how: Any) -> Any:
    """Run a function at each of several events of components, and once more after what came while it ran.

    Args:
        events: as ``slider.change``.
        function, given, shown: what is run, its inputs and its outputs.
        how: over ``NEWEST``.

    Returns:
        The run, for those who follow or cancel it.
    """
    return heard(events).then(function, given, shown, **{**NEWEST, **how})


OPEN = "the page"
"""What a page counts as among what of its own runs."""


def stay_open(request: gr.Request) -> None:
    """Let the stream of messages stay open as long as the page is: called by what the page asks for first.

    Gradio closes it whenever nothing of the page's runs, and what is asked for at that very moment is answered into a stream that
    nobody reads: it shows no sooner than the next thing is asked for. So the page itself counts as something that runs.
    """
    page: Any = LocalContext.blocks.get()
    page._queue.pending_event_ids_session.setdefault(request.session_hash, set()).add(OPEN)


class Page(gr.Blocks):
    """Blocks that spare the browser work: at every step of any event Gradio's page looks up each component that any event so far has
    taken or filled, one after another and each through the whole tree, a third of a millisecond a look.

    Attributes:
        still: the first component of the page, found at the first look. All events that show no progress keep their state there, and
            it stands for the states among their inputs: the server has those, what the browser sends for one is not read.
    """

    still: gr.HTML

    def __exit__(self, *error: Any) -> None:
        self.children.sort(key=lambda block: isinstance(block, Api))  # what only endpoints take is never looked up
        for event in self.fns.values():
            if event.show_progress == "hidden":
                event.show_progress_on = [self.still]
        super().__exit__(*error)

    def get_config_file(self) -> Any:
        """What the browser is told of the page."""
        config = super().get_config_file()
        states = {each["id"] for each in config["components"] if each["type"] == "state"}
        for event in config["dependencies"]:
            if event["api_visibility"] == "private":
                event["inputs"] = [self.still._id if each in states else each for each in event["inputs"]]
        return config
