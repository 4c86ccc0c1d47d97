"""How the page's events are listened to: as itself alone, without Gradio's own signs of progress."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr

PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
ALONE = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "session"}
"""What changes the session: one after another."""
MODEL = {**PRIVATE, "concurrency_limit": 1, "concurrency_id": "model"}
"""What runs the base model: one after another."""
HUB = {**PRIVATE, "concurrency_limit": 4, "concurrency_id": "hub"}
"""What waits for the hub."""
AT_ONCE = {**PRIVATE, "queue": False}
"""What takes a moment and fills no state: asked in one request, with half as many steps as in the queue."""
NEWEST = {**PRIVATE, "trigger_mode": "always_last"}
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


ALIVE = 15
"""Seconds between two signs of life."""


async def stay_open() -> AsyncIterator[Any]:
    """An event that runs as long as the page is open, so that the stream of messages is never closed.

    Gradio closes it whenever nothing runs, and what the page asks for at that very moment is answered into a stream that nobody reads:
    it shows no sooner than the next thing is asked for.
    """
    while True:
        yield gr.skip()
        await asyncio.sleep(ALIVE)


def quiet(page: gr.Blocks, place: gr.HTML) -> None:
    """Let all events that show no progress keep their state in one place, the first component of the page.

    Gradio's page keeps it for every component that an event ever filled, and looks each of them up among all components at every
    step of any event: with hundreds of both that is a tenth of a second of the browser's time.
    """
    for event in page.fns.values():
        if event.show_progress == "hidden":
            event.show_progress_on = [place]
