"""The plot of the map: drawn at once with what is there, and once more when the UMAP that it waits for has come."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from components import charts, figures, fragments
from components.events import NEWEST, PRIVATE, newest
from components.map import maps, selection, unit_figures
from components.messages import told
from components.session.state import Selection, Session
from components.work import Turns
from mole.cli import clock

_waiting = Turns()
NOTHING = "Pick adapters in the Library to see their bricks."


@dataclass(frozen=True)
class PlotBox:
    """The components that events need: the line above the map, its Stop, the map, the UMAP it waits for, and how many have come."""

    note: gr.HTML
    stop: gr.Button
    plot: charts.Chart
    awaited: gr.State
    come: gr.State

    @property
    def drawn(self) -> list[Any]:
        """What ``draw`` fills."""
        return [self.plot, self.note, self.stop, self.awaited]


def line() -> tuple[gr.HTML, gr.Button]:
    """Lay out what is said above the map."""
    with gr.Row(elem_classes="by-told"):
        note = gr.HTML(fragments.progress("Reading bricks", None), elem_classes="by-said")
        stop = gr.Button("Stop UMAP", visible=False, size="sm", scale=0, min_width=110)
    return note, stop


@told
def draw(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, colour: str, projection: str,
    request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """The map, and what it shows; the principal components where UMAP is still to come, and then which one is awaited."""
    view = maps.seen(session, kind, layer, k) if session.picks and kind else None
    drawn = figure(view, chosen, colour, projection) if view else figures.empty(NOTHING)
    if view and projection == maps.UMAP and view.mapped.umap.ready is None:
        return drawn, gr.skip(), gr.skip(), (session.weights, kind, layer)
    _waiting.end(str(request.session_hash))
    return drawn, caption(view, chosen), gr.Button(visible=False), None


def figure(view: maps.View, chosen: Selection, colour: str, projection: str) -> Any:
    """The map with what is selected."""
    return unit_figures.unit_map(maps.projected(view, projection), view.groups, colour, selection.marks(view, chosen))


def caption(view: maps.View | None, chosen: Selection | None = None) -> str:
    """How much of what is shown, and what can be done."""
    if view is None:
        return fragments.subtle("Nothing is picked.")
    modules, shown = len(view.units.modules), len(view.units)
    place = f"{modules} modules, {view.k} clusters in each" if modules > 1 else f"one module, {view.k} clusters"
    how = "Drag a lasso or click to select, Escape or a double click clears."
    if chosen and chosen.units:
        how = f"{len(chosen.units):,} selected: mute, scale or keep them below. Escape or a double click clears."
    return fragments.subtle(f"{shown} of {view.total} bricks shown · {place}. {how}")


@told
def wait(
    session: Session, awaited: tuple[Any, ...] | None, k: int, come: int, request: gr.Request
) -> Iterator[tuple[Any, Any, Any]]:
    """Where UMAP is still to come, say how long that takes, then that one more has come; unless another map is asked for."""
    yield gr.skip(), gr.skip(), gr.skip()
    if awaited is None:
        return
    with _waiting.begin(str(request.session_hash)) as turn:
        _, kind, layer = awaited
        yield gr.skip(), gr.Button(visible=True), gr.skip()
        for seconds, expected in maps.seen(session, kind, layer, k).mapped.umap.told(turn):
            if not turn.current:
                break
            yield coming(seconds, expected), gr.skip(), gr.skip()
        # What is given last is sent once more at the end: over what a newer one says, where it says anything.
        yield (gr.skip(), gr.Button(visible=False), come + 1) if turn.current else (gr.skip(),) * 3


def coming(seconds: float, expected: float) -> str:
    """How long UMAP still takes."""
    left = expected - seconds
    text = f", about {clock(left)} left" if left >= 1 else ", longer than usual"
    return fragments.progress(f"Shown as PCA while UMAP is computed{text}", min(seconds / expected, 0.97))


@told
def stop(session: Session, kind: str | None, layer: str, k: int, request: gr.Request) -> tuple[Any, ...]:
    """Back to the principal components; the UMAP is computed no further, unless somebody else waits for it."""
    turn = _waiting.end(str(request.session_hash))
    view = maps.seen(session, kind, layer, k) if session.picks and kind else None
    if view:
        view.mapped.umap.give_up(turn)
    return caption(view), gr.Button(visible=False), None, maps.PCA


def wire(box: PlotBox, session: gr.State, chosen: gr.State, place: list[Any], looks: list[Any]) -> None:
    """Connect the map.

    Args:
        place: kind, layer and k.
        looks: colour and projection.
    """
    given, back = [session, chosen, *place, *looks], [box.note, box.stop, box.awaited, looks[-1]]
    newest([each.input for each in looks], draw, given, box.drawn)
    box.come.change(draw, given, box.drawn, **NEWEST)
    waiting = [box.note, box.stop, box.come]
    waited = box.awaited.change(
        wait, [session, box.awaited, place[-1], box.come], waiting, **{**PRIVATE, "trigger_mode": "multiple"}
    )
    waited.failure(stop, [session, *place], back, **PRIVATE)
    box.stop.click(stop, [session, *place], back, **PRIVATE)
