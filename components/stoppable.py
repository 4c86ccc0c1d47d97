"""A button whose work keeps the model busy: its Stop, the line that says how far it is, and first the place in the queue."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import fragments, queueing
from components.events import MODEL, PRIVATE

PRESSED = "() => ({__type__: 'update', interactive: false})"


@dataclass(frozen=True)
class Stoppable:
    """The components that events need."""

    run: gr.Button
    stop: gr.Button
    progress: gr.HTML

    @property
    def all(self) -> list[Any]:
        """What `waiting` and `ended` set."""
        return [self.progress, self.run, self.stop]


def create(label: str, stop: str) -> Stoppable:
    """Lay both buttons out; the line is rendered where its place is."""
    run_button = gr.Button(label, scale=0, min_width=220)
    stop_button = gr.Button(stop, visible=False, scale=0, min_width=150)
    return Stoppable(run_button, stop_button, gr.HTML(render=False))


def buttons(busy: bool) -> tuple[Any, Any]:
    """Both buttons while there is work, and while there is none."""
    return gr.Button(interactive=not busy), gr.Button(visible=busy, interactive=True)


def waiting() -> tuple[Any, ...]:
    """What is shown at once, however long others keep the model busy."""
    return fragments.progress("Waiting for the model", None), *buttons(busy=True)


def ended() -> tuple[Any, ...]:
    """After a stop or an error: what came stays."""
    return fragments.subtle("Stopped."), *buttons(busy=False)


def idle() -> tuple[Any, ...]:
    """After the end: the line stays as it is."""
    return buttons(busy=False)


def wire(box: Stoppable, work: Callable[..., Any], given: list[Any], results: list[Any]) -> Any:
    """Connect the buttons to their work.

    Args:
        box: the buttons.
        work: a generator whose every value is the line and what ``results`` show.
        given: its arguments.
        results: components.

    Returns:
        The event that runs, for those who cancel it.
    """
    clicked = box.run.click(waiting, None, box.all, **PRIVATE)
    running = clicked.then(work, given, [box.progress, *results], **MODEL)
    queueing.follow(clicked.then, "model", box.progress)
    running.success(idle, None, [box.run, box.stop], **PRIVATE)
    running.failure(ended, None, box.all, **PRIVATE)
    halt(box.stop, [running])
    return running


def halt(stop: gr.Button, runs: list[Any]) -> None:
    """Let a button stop work, which ends as after an error.

    Until then it is pressed, and no new work can begin: Gradio's page would take that for what is still being cancelled, and drop it.
    """
    stop.click(None, None, [stop], js=PRESSED, cancels=runs, **PRIVATE)
