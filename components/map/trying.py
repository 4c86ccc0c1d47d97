"""An edit tried at once: the exact sum with it and without it, on the prompts of Compare, under the same noise, beside the map."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from backends.image import Drawing
from components import fragments, kinds, queueing
from components.compare import aligning, comparison, pictures, plan, running
from components.compare.comparison import Comparison
from components.compare.form import Form
from components.compare.tab import awaited, read_prompts
from components.events import MODEL, PRIVATE
from components.library.shelf import shelf
from components.messages import told
from components.session.state import Column, Session, columns
from components.work import Turns, loading
from lego import AdapterError
from mole.pool import Weighting

_newest = Turns()
"""The last edit of each page: of several it alone is tried, not each of them in turn."""


@dataclass(frozen=True)
class TryBox:
    """The components of the section that events need."""

    progress: gr.HTML
    stop: gr.Button
    shown: gr.HTML
    asked: gr.State

    @property
    def line(self) -> list[Any]:
        """What says how far it is."""
        return [self.progress, self.stop]

    @property
    def pressed(self) -> list[Any]:
        """What an edit fills that is tried, before the session."""
        return [*self.line, self.asked]


def create() -> TryBox:
    """Lay the section out; nothing is wired yet."""
    progress = gr.HTML()
    stop = gr.Button("Stop trying", visible=False, scale=0, min_width=140, elem_classes="by-alone")
    return TryBox(progress, stop, gr.HTML(label="What the edit changes"), gr.State(0))


def pair(session: Session) -> list[Column]:
    """The exact sum that the newest edit began with, and the edit.

    Raises:
        AdapterError: when nothing is edited.
    """
    edits = kinds.own(session).edited
    if not edits:
        raise AdapterError("nothing is muted or scaled", None, "Select some bricks and press one of the buttons.")
    newest, every = edits[-1], columns(session, shelf(session))
    whole = Weighting(newest.weights)
    usual = Column("whole", "Exact sum", whole, session.slots(newest.adapters))
    before = next((column for column in every if column.weighting == whole), usual)
    return [before, next(column for column in every if column.id == f"edited:{newest.name}")]


def asking(edit: Callable[..., Session]) -> Callable[..., tuple[Any, ...]]:
    """An edit that is tried next: what to say meanwhile, how often that was asked for, and the session with it."""

    def press(asked: int, request: gr.Request, *given: Any) -> tuple[Any, ...]:
        edited = edit(*given)
        _newest.begin(str(request.session_hash))
        # At once, however long others keep the model busy.
        return fragments.progress("Waiting for the model", None), gr.Button(visible=True), asked + 1, edited

    return press


@told
def start(request: gr.Request, session: Session, *settings: Any) -> Iterator[tuple]:
    """Run the newest edit beside its exact sum, until there is a newer one."""
    turn = _newest.of(str(request.session_hash))
    yield (gr.skip(),) * 3
    if turn is None or turn.taken:  # stopped, or tried already: there were several edits while it waited for the model
        return
    turn.taken = True
    with turn:
        for step in tried(session, settings):
            if not turn.current:
                yield (gr.skip(),) * 3  # the end sends the last once more, over a newer one
                return
            yield step


def tried(session: Session, settings: Sequence[Any]) -> Iterator[tuple]:
    """The line, its Stop and both columns, as they come."""
    form, coming = Form.of(tuple(settings)), loading(session.base)
    prompts, both, busy = read_prompts(form.prompts), pair(session), gr.Button(visible=True)
    for _ in coming.watch():
        yield awaited(coming), busy, gr.skip()
    wanted = form.wanted(coming.base().info.kind == kinds.IMAGE)
    seeds = wanted.seeds if isinstance(wanted, Drawing) else ()
    planned = plan.side_by_side(both, prompts, seeds)
    for line, found in running.every(session.base, planned, wanted, aligning.NONE):
        yield line, busy, draw(found)
    yield line, gr.Button(visible=False), draw(found)


def draw(found: Any) -> str:
    """Both columns, in the edit's what differs from the sum marked."""
    if isinstance(found, Comparison):
        return comparison.draw(found, True, not found.finished, against=found.names[0])
    return pictures.draw(found, running=not found.finished)


def ended(request: gr.Request) -> tuple[Any, ...]:
    """After a stop or an error: what waits is not tried either."""
    _newest.end(str(request.session_hash))
    return fragments.subtle("Stopped."), gr.Button(visible=False)


def idle() -> tuple[Any, ...]:
    """Nothing is tried."""
    return "", gr.Button(visible=False)


def cleared(request: gr.Request) -> tuple[Any, ...]:
    """Nothing is tried, and nothing shown."""
    _newest.end(str(request.session_hash))
    return *idle(), ""


def wire(box: TryBox, edits: list[Any], session: gr.State, picked: gr.State, settings: list[Any]) -> None:
    """Connect the section's events.

    Args:
        edits: the events that let an edit join the variants.
        picked: changes with the picks, with which what was tried leaves.
        settings: of Compare.
    """
    for edit in edits:
        edit.failure(idle, None, box.line, **PRIVATE)
    run = box.asked.change(start, [session, *settings], [*box.line, box.shown], trigger_mode="multiple", **MODEL)
    run.failure(ended, None, box.line, **PRIVATE)
    queueing.follow(box.asked.change, "model", box.progress)
    box.stop.click(ended, None, box.line, cancels=[run], **PRIVATE)
    picked.change(cleared, None, [*box.line, box.shown], cancels=[run], **PRIVATE)
