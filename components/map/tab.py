"""The Map tab: units of the picked adapters in the plane, a view beside it, and everything that follows the selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

import gradio as gr
import numpy as np

from components import charts, figures, fragments
from components.events import ALONE, AT_ONCE, NEWEST, PRIVATE, heard
from components.followed import Followed
from components.following import Within
from components.map import ablate, bricks, maps, pictured, plot, selection, trying, unit_details, unit_figures, views
from components.messages import told
from components.session.state import Selection, Session
from components.work import Stopped, Turn, Turns
from lego import AdapterError
from lego.unitset import UnitSet

SCRIPT = Path(__file__).with_name("map.js")
OVERTAKING = {**PRIVATE, "trigger_mode": "multiple"}
"""What may be asked for while it runs, and then gives way."""

_measuring = Turns()


@dataclass(frozen=True)
class MapTab:
    """The components of the tab that events need."""

    kind: gr.Dropdown
    layer: gr.Dropdown
    k: gr.Slider
    colour: gr.Radio
    projection: gr.Radio
    map: plot.PlotBox
    bridge: gr.HTML
    view: gr.Dropdown
    title: gr.HTML
    chart: charts.Chart
    strip: gr.HTML
    pin: gr.Button
    details: gr.HTML
    table: gr.HTML
    chosen: gr.State
    picked: gr.State
    bricks: bricks.BrickBox
    trying: trying.TryBox
    pictured: pictured.PictureBox
    ablate: ablate.AblateBox

    @property
    def place(self) -> list[Any]:
        """The controls that say which units are shown, and in how many clusters."""
        return [self.kind, self.layer, self.k]

    @property
    def following(self) -> list[Any]:
        """What ``follow`` fills."""
        panels = [self.pin, self.bricks.panel, self.pictured.panel]
        return [self.bridge, self.strip, self.table, self.details, *panels, self.map.note]

    @property
    def beside(self) -> list[Any]:
        """What ``beside`` fills."""
        return [self.title, self.chart]


def create() -> MapTab:
    """Lay the tab out; nothing is wired yet."""
    with gr.Column(elem_id="map-page", elem_classes="plain"):
        with gr.Row():
            # What is chosen may be of picks that have just changed: that is looked after here, not by Gradio.
            loose: dict[str, Any] = {"min_width": 130, "allow_custom_value": True}
            kind = gr.Dropdown([], label="Kind of module", scale=3, **loose)
            layer = gr.Dropdown([maps.ALL_LAYERS], value=maps.ALL_LAYERS, label="Layer", scale=2, **loose)
            colourings = list(unit_figures.COLOURINGS)
            colour = gr.Radio(colourings, value="adapter", label="Colour by", min_width=300, scale=7)
            projection = gr.Radio([maps.PCA, maps.UMAP], value=maps.PCA, label="Projection", min_width=170, scale=3)
            k = Within(0, 32, value=0, step=1, label="Clusters (k)", min_width=180, scale=3, elem_id="map-k")
        note, stop = plot.line()
        with gr.Row():
            with gr.Column(scale=3, min_width=320, elem_classes="by-figures"):
                shown = charts.create("Unit map", elem_id="unit-map")
            with gr.Column(scale=2, min_width=300, elem_classes="by-figures"):
                view = gr.Dropdown(list(views.VIEWS), value=next(iter(views.VIEWS)), label="View", filterable=False)
                title = gr.HTML(elem_id="view-title", js_on_load=fragments.HALT)
                chart = charts.create("View beside the map", elem_id="clusters")
        strip = gr.HTML(label="Layers", elem_id="layers")
        brick_box, try_box = bricks.create(), trying.create()
        pin = gr.Button("Pin this brick", visible=False, scale=0, min_width=160, elem_classes="by-alone")
        details = gr.HTML(label="Details of the brick")
        picture_box = pictured.create()
        table = gr.HTML(label="Bricks")
        ablate_box = ablate.create()
    bridge = gr.HTML(visible="hidden", html_template="<i></i>", js_on_load=SCRIPT.read_text(encoding="utf-8"))
    states = gr.State(Selection()), gr.State(None)
    map = plot.PlotBox(note, stop, shown, gr.State(None), gr.State(0))
    controls = kind, layer, k, colour, projection, map, bridge, view, title, chart
    return MapTab(*controls, strip, pin, details, table, *states, brick_box, try_box, picture_box, ablate_box)


def picks(session: Session) -> tuple[Any, ...]:
    """What the map shows of a session: the rest may change without drawing it again."""
    return session.base, session.picks


def left(session: Session, chosen: Selection) -> Selection:
    """What is still selected after the picks have changed."""
    return chosen.among([pick.key for pick in session.picks])


@told
def place(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, colour: str, projection: str,
    request: gr.Request,
) -> tuple[Any, ...]:  # fmt: skip
    """Offer the kinds, layers and cluster counts that the picked adapters have, keep what is chosen where they have it, draw it."""
    kinds, asked = maps.kinds(session), (kind, layer, k)
    kind = kind if kind in kinds else (kinds[0] if kinds else None)
    every = maps.ALL_LAYERS
    layers = [(every, every), *(maps.modules_of(session, kind) if kind else [])]
    layer = layer if layer in [value for _, value in layers] else every
    most, usual = maps.cluster_range(session, kind) if kind else (2, 1)
    k = k if 1 <= k <= most else usual
    # A choice that stays is not sent back: by then there may be a newer one.
    new = [{} if now == old else {"value": now} for now, old in zip((kind, layer, k), asked, strict=True)]
    offered = gr.Dropdown(kinds, **new[0]), gr.Dropdown(layers, **new[1]), gr.Slider(1, most, step=1, **new[2])
    chosen = left(session, chosen)
    drawn = plot.draw(session, chosen, kind, layer, k, colour, projection, request)
    return *offered, *drawn, *follow(session, chosen, kind, layer, k, projection)[:-1]


@told
def beside(
    session: Session, kind: str | None, layer: str, k: int, name: str, request: gr.Request
) -> Iterator[tuple[Any, Any]]:
    """Draw the view beside the map; one that takes a while says how long, and gives way to what is asked for meanwhile."""
    with _measuring.begin(str(request.session_hash)) as turn:
        yield from _beside(session, kind, layer, k, name, turn)
        if not turn.current:  # what is given last is sent once more at the end
            yield gr.skip(), gr.skip()


def _beside(session: Session, kind: str | None, layer: str, k: int, name: str, turn: Turn) -> Iterator[tuple[Any, Any]]:
    if not session.picks or not kind:
        yield "", figures.empty("")
        return
    try:
        seen = maps.seen(session, kind, layer, k)
        coming = views.coming(name, session, seen)
        for _ in coming.wait(turn) if coming else ():
            if not turn.current:
                return
            left = fragments.left(monotonic() - coming.since, coming.part)
            yield fragments.progress(f"{name}: measuring{left}", coming.part, halt=True), gr.skip()
        shown = views.VIEWS[name](session, seen)
    except Stopped:
        return
    except AdapterError as error:  # of this view alone: the map beside it stands
        yield fragments.heading(name), figures.empty(str(error))
        return
    if turn.current:
        yield fragments.heading(shown.title, shown.about), shown.figure


@told
def stop_measuring(
    session: Session, kind: str | None, layer: str, k: int, name: str, request: gr.Request
) -> Iterator[tuple[Any, Any, Any]]:
    """Back to the first view; what was measured is measured no further, unless somebody else waits for it."""
    stopped, first = _measuring.of(str(request.session_hash)), next(iter(views.VIEWS))
    with _measuring.begin(str(request.session_hash)) as turn:
        if session.picks and kind and (coming := views.coming(name, session, maps.seen(session, kind, layer, k))):
            coming.give_up(stopped)
        for title, chart in _beside(session, kind, layer, k, first, turn):
            yield first, title, chart


@told
def recluster(
    session: Session, chosen: Selection, kind: str, layer: str, k: int, colour: str, projection: str, name: str
) -> tuple[Any, ...]:
    """What another number of clusters changes: the view, the table, and the map where it is coloured by cluster."""
    view = maps.seen(session, kind, layer, k)
    drawn = plot.figure(view, chosen, colour, projection) if colour == "cluster" else gr.skip()
    shown = views.VIEWS[name](session, view) if name in views.CLUSTERED else None
    others = (fragments.heading(shown.title, shown.about), shown.figure) if shown else (gr.skip(), gr.skip())
    return drawn, plot.caption(view, chosen), selection.table(view, chosen), *others


@told
def select(
    session: Session, chosen: Selection, kind: str, layer: str, k: int, projection: str, name: str,
    ablated: tuple[UnitSet, ...], event: gr.EventData,
) -> tuple[Any, ...]:  # fmt: skip
    """Remember what was selected in any view, and let all others follow; what comes from the browser is checked."""
    origin, value = getattr(event, "origin", None), getattr(event, "value", None)
    found = selection.caught(session, maps.seen(session, kind, layer, k), chosen, name, ablated, origin, value)
    return found, *follow(session, found, kind, layer, k, projection)


@told
def follow(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, projection: str
) -> tuple[Any, ...]:
    """Let the map, the layer strip, the table and the details show what is selected."""
    hidden = gr.Button(visible=False), gr.Column(visible=False), gr.Column(visible=False)
    if not session.picks or not kind:
        return unit_figures.Marks().data(np.empty((0, 2))), "", "", "", *hidden, plot.caption(None)
    view = maps.seen(session, kind, layer, k)
    return (
        selection.marks(view, chosen).data(maps.projected(view, projection).xy),
        selection.strip(view, chosen),
        selection.table(view, chosen),
        unit_details.draw(session, view, chosen),
        _pin_button(chosen),
        gr.Column(visible=bool(chosen.units)),
        gr.Column(visible=pictured.offered(session, chosen)),
        plot.caption(view, chosen),
    )


def _pin_button(chosen: Selection) -> Any:
    pinned = chosen.pinned is not None and chosen.primary in (None, chosen.pinned)
    label = "Unpin the brick" if pinned else "Pin this brick"
    return gr.Button(label, visible=chosen.primary is not None or pinned)


def pin(chosen: Selection) -> Selection:
    """Keep the primary unit's details beside those of the next; or let the pinned one go."""
    pinned = chosen.pinned is not None and chosen.primary in (None, chosen.pinned)
    return replace(chosen, pinned=None if pinned else chosen.primary)


def wire(tab: MapTab, session: Followed, settings: list[Any], reported: gr.Dropdown) -> None:
    """Connect the tab's events; a pick anywhere redraws it.

    Args:
        settings: of Compare: how an edit is tried.
        reported: the merge whose report is shown on the Merge tab.
    """
    chosen, looks = tab.chosen, [tab.colour, tab.projection]
    everything = [session, chosen, *tab.place]
    session.follow(picks, [session], [tab.picked])
    tab.picked.change(left, [session, chosen], [chosen], **ALONE)
    viewed = [session, *tab.place, tab.view]
    placed = [*tab.place, *tab.map.drawn, *tab.following[:-1]]  # the line above the map is among what is drawn
    for listen in (tab.picked.change, heard([tab.kind.input, tab.layer.input]).then):
        drawn = listen(place, [*everything, *looks], placed, **NEWEST)
        drawn.then(beside, viewed, tab.beside, **OVERTAKING)
    plot.wire(tab.map, session, chosen, tab.place, looks)
    reclustered = [tab.map.plot, tab.map.note, tab.table, *tab.beside]
    tab.k.input(recluster, [*everything, *looks, tab.view], reclustered, **{**NEWEST, **AT_ONCE})
    tab.view.input(beside, viewed, tab.beside, **OVERTAKING)
    tab.title.halt(stop_measuring, viewed, [tab.view, *tab.beside], **PRIVATE)
    seen = [*everything, tab.projection]
    tab.bridge.select(
        select, [*seen, tab.view, tab.ablate.found], [chosen, *tab.following], trigger_mode="multiple", **ALONE
    )
    edits, recalled = bricks.wire(tab.bricks, session, chosen, reported, tab.trying.pressed, trying.asking)
    for changed in (recalled, tab.pin.click(pin, [chosen], [chosen], **ALONE)):
        changed.then(follow, seen, tab.following, **NEWEST)
    trying.wire(tab.trying, edits, session, tab.picked, settings)
    pictured.wire(tab.pictured, session, chosen, tab.picked)
    ablate.wire(tab.ablate, session, tab.picked, tab.place, maps.where)
