"""The plot of the map: drawn at once with what is there, and once more when the UMAP that it waits for has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import charts, figures, fragments
from components.events import NEWEST, PRIVATE, heard
from components.map import maps, selection, unit_figures
from components.messages import told
from components.session.state import Selection, Session
from components.work import Turns
from mole.cli import clock

_waiting = Turns()


@dataclass(frozen=True)
class PlotBox:
    """The components that events need: the line above the map, its Stop, the map, and how many UMAPs have come."""

    note: gr.HTML
    stop: gr.Button
    plot: charts.Chart
    come: gr.State

    @property
    def drawn(self) -> list[Any]:
        """What ``draw`` fills."""
        return [self.plot, self.note]

    @property
    def awaited(self) -> list[Any]:
        """What ``wait`` fills."""
        return [self.note, self.stop, self.come]


def line() -> tuple[gr.HTML, gr.Button]:
    """Lay out what is said above the map."""
    with gr.Row(elem_classes="by-told"):
        note = gr.HTML(fragments.progress("Reading bricks", None), elem_classes="by-said")
        stop = gr.Button("Stop UMAP", visible=False, size="sm", scale=0, min_width=110)
    return note, stop


@told
def draw(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, colour: str, projection: str
) -> tuple[Any, Any]:
    """The map, and what it shows; the principal components where UMAP is still to come."""
    if not session.picks or not kind:
        return figures.empty("Pick adapters in the Library to see their bricks."), caption(None)
    view = maps.seen(session, kind, layer, k)
    coming = projection == maps.UMAP and view.mapped.umap.ready is None
    return figure(view, chosen, colour, projection), gr.skip() if coming else caption(view)


def figure(view: maps.View, chosen: Selection, colour: str, projection: str) -> Any:
    """The map with what is selected."""
    return unit_figures.unit_map(maps.projected(view, projection), view.groups, colour, selection.marks(view, chosen))


def caption(view: maps.View | None) -> str:
    """How much of what is shown."""
    if view is None:
        return fragments.subtle("Nothing is picked.")
    modules, shown = len(view.units.modules), len(view.units)
    place = f"{modules} modules, {view.k} clusters in each" if modules > 1 else f"one module, {view.k} clusters"
    how = "Drag a lasso or click to select, Escape or a double click clears."
    return fragments.subtle(f"{shown} of {view.total} bricks shown · {place}. {how}")


@told
def wait(
    session: Session, kind: str | None, layer: str, k: int, projection: str, come: int, request: gr.Request
) -> Iterator[tuple[Any, Any, Any]]:
    """Where UMAP is still to come, say how long that takes, then that one more has come; unless another map is asked for."""
    with _waiting.begin(str(request.session_hash)) as turn:
        view = maps.seen(session, kind, layer, k) if session.picks and kind else None
        umap = view and view.mapped.umap
        if umap is None or projection != maps.UMAP or umap.ready is not None:
            # Over what an earlier wait may have said since this map was drawn.
            yield caption(view), gr.Button(visible=False), gr.skip()
            return
        yield gr.skip(), gr.Button(visible=True), gr.skip()
        for seconds, expected in umap.wait(turn):
            if not turn.current:
                return
            yield coming(seconds, expected), gr.skip(), gr.skip()
        if turn.current:
            yield gr.skip(), gr.Button(visible=False), come + 1


def coming(seconds: float, expected: float) -> str:
    """How long UMAP still takes."""
    left = expected - seconds
    text = f", about {clock(left)} left" if left >= 1 else ", longer than usual"
    return fragments.progress(f"Shown as PCA while UMAP is computed{text}", min(seconds / expected, 0.97))


@told
def stop(session: Session, kind: str | None, layer: str, k: int, request: gr.Request) -> tuple[Any, Any, Any]:
    """Back to the principal components; the UMAP is computed no further, unless somebody else waits for it."""
    turn = _waiting.end(str(request.session_hash))
    view = maps.seen(session, kind, layer, k) if session.picks and kind else None
    if view:
        view.mapped.umap.give_up(turn)
    return caption(view), gr.Button(visible=False), maps.PCA


def wire(
    box: PlotBox, session: gr.State, chosen: gr.State, place: list[Any], looks: list[Any], placed: list[Any]
) -> None:
    """Connect the map.

    Args:
        place: kind, layer and k.
        looks: colour and projection.
        placed: the listeners of what asks for other bricks.
    """
    colour, projection = looks
    given, awaited = [session, chosen, *place, *looks], [session, *place, projection, box.come]
    back = [box.note, box.stop, projection]
    each = {**PRIVATE, "trigger_mode": "multiple"}
    colour.input(draw, given, box.drawn, **NEWEST)
    box.come.change(draw, given, box.drawn, **NEWEST)
    for listen in (*placed, heard([projection.input]).then):
        drawn = listen(draw, given, box.drawn, **NEWEST)
        drawn.then(wait, awaited, box.awaited, **each).failure(stop, [session, *place], back, **PRIVATE)
    box.stop.click(stop, [session, *place], back, **PRIVATE)
