"""One's place in the queue, said while one waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import gradio as gr
from gradio.context import LocalContext

from components import fragments
from components.events import PRIVATE

EVERY = 0.5
"""Seconds between two looks."""
SLOW = 4
"""Looks until a run counts as having passed unseen."""


def ahead(waiting: Sequence[Any], running: int, who: str) -> int | None:
    """How many runs come before a visitor's in a queue.

    Args:
        waiting: the queue's events, first come first.
        running: how many run now.
        who: the visitor's session.

    Returns:
        The number, or None where none of theirs waits.
    """
    place = next((i for i, event in enumerate(waiting) if event.session_hash == who), None)
    return None if place is None else place + running


def told(before: int) -> str:
    """The place for people."""
    text = "You are next" if before <= 1 else f"{before} are before you"
    return fragments.progress(f"Waiting for its turn: {text}", None)


def place_in(queue: str) -> Callable[..., AsyncIterator[Any]]:
    """The handler that follows a visitor's place in a queue until it is their turn; it takes no thread while it waits.

    Args:
        queue: the concurrency id of what they wait for.
    """

    async def place(request: gr.Request) -> AsyncIterator[Any]:
        page: Any = LocalContext.blocks.get()
        shown, missed = None, 0
        yield gr.skip()  # without a value at all, the end would empty the line
        while missed < SLOW:
            line = page._queue.event_queue_per_concurrency_id.get(queue)  # there from its first event on
            before = line and ahead(line.queue, line.current_concurrency, str(request.session_hash))
            if before is None:  # not come yet, or its turn
                if shown is not None:
                    yield gr.skip()  # the end would say the last place again, over what the run has said since
                    return
                missed += 1
            elif before != shown:
                shown = before
                yield told(before)
            await asyncio.sleep(EVERY)

    return place


def follow(listen: Callable[..., Any], queue: str, line: gr.HTML) -> Any:
    """Show the place in a queue from an event on.

    Args:
        listen: the event, as ``button.click`` or ``event.then``.
        queue: the concurrency id of what is waited for.
        line: where it is said.
    """
    return listen(place_in(queue), None, [line], **PRIVATE)
