"""The Map tab: units of the picked adapters in the plane, a view beside it, and everything that follows the selection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np

from components import figures, fragments
from components.following import Within
from components.map import ablate, bricks, maps, pictured, selection, trying, unit_details, unit_figures, views
from components.messages import told
from components.session.state import Selection, Session
from lego import AdapterError
from lego.unitset import UnitSet

ALL_LAYERS = "all layers"
SCRIPT = Path(__file__).with_name("map.js")


@dataclass(frozen=True)
class MapTab:
    """The components of the tab that events need."""

    kind: gr.Dropdown
    layer: gr.Dropdown
    k: gr.Slider
    colour: gr.Radio
    projection: gr.Radio
    note: gr.HTML
    plot: gr.Plot
    bridge: gr.HTML
    view: gr.Dropdown
    title: gr.HTML
    chart: gr.Plot
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
        return [self.bridge, self.strip, self.table, self.details, self.pin, self.bricks.panel, self.pictured.panel]

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
            layer = gr.Dropdown([ALL_LAYERS], value=ALL_LAYERS, label="Layer", scale=2, **loose)
            colourings = list(unit_figures.COLOURINGS)
            colour = gr.Radio(colourings, value="adapter", label="Colour by", min_width=300, scale=7)
            projection = gr.Radio(["PCA", "UMAP"], value="PCA", label="Projection", min_width=170, scale=3)
            k = Within(0, 32, value=0, step=1, label="Clusters (k)", min_width=180, scale=3, elem_id="map-k")
        note = gr.HTML(fragments.progress("Reading bricks", None), elem_classes="by-said")
        with gr.Row():
            with gr.Column(scale=3, min_width=320, elem_classes="by-figures"):
                plot = gr.Plot(label="Unit map", show_label=False, elem_id="unit-map", container=False)
            with gr.Column(scale=2, min_width=300, elem_classes="by-figures"):
                view = gr.Dropdown(list(views.VIEWS), value=next(iter(views.VIEWS)), label="View", filterable=False)
                title = gr.HTML(elem_id="view-title")
                chart = gr.Plot(label="View beside the map", show_label=False, elem_id="clusters", container=False)
        strip = gr.HTML(label="Layers", elem_id="layers")
        brick_box, try_box = bricks.create(), trying.create()
        pin = gr.Button("Pin this brick", visible=False, scale=0, min_width=160, elem_classes="by-alone")
        details = gr.HTML(label="Details of the brick")
        picture_box = pictured.create()
        table = gr.HTML(label="Bricks")
        ablate_box = ablate.create()
        gr.HTML(visible="hidden", js_on_load=figures.FIT_SCRIPT)
    bridge = gr.HTML(visible="hidden", html_template="<i></i>", js_on_load=SCRIPT.read_text(encoding="utf-8"))
    states = gr.State(Selection()), gr.State(None)
    controls = kind, layer, k, colour, projection, note, plot, bridge, view, title, chart
    return MapTab(*controls, strip, pin, details, table, *states, brick_box, try_box, picture_box, ablate_box)


def where(kind: str, layer: str) -> str:
    """What the two controls name: a kind of module across layers, or one module."""
    return kind if layer == ALL_LAYERS else layer


def seen(session: Session, kind: str, layer: str, k: float) -> maps.View:
    """The map that the controls ask for; where they still stand as for other picks, the map that they will ask for."""
    try:
        return maps.view(session, where(kind, layer), int(k))
    except AdapterError:
        kinds = maps.kinds(session)
        if kind in kinds and layer == ALL_LAYERS:
            raise
        return maps.view(session, kind if kind in kinds else kinds[0], int(k))


def picks(session: Session) -> tuple[Any, ...]:
    """What the map shows of a session: the rest may change without drawing it again."""
    return session.base, session.picks


def left(session: Session, chosen: Selection) -> Selection:
    """What is still selected after the picks have changed."""
    return chosen.among([pick.key for pick in session.picks])


@told
def controls(session: Session, kind: str | None, layer: str, k: int) -> tuple[Any, Any, Any]:
    """Offer the kinds, layers and cluster counts that the picked adapters have; keep what was chosen where it still exists."""
    kinds = maps.kinds(session)
    kind = kind if kind in kinds else (kinds[0] if kinds else None)
    layers = [(ALL_LAYERS, ALL_LAYERS), *maps.modules_of(session, kind)] if kind else [(ALL_LAYERS, ALL_LAYERS)]
    layer = layer if layer in [value for _, value in layers] else ALL_LAYERS
    most, usual = maps.cluster_range(session, kind) if kind else (2, 1)
    k = k if 1 <= k <= most else usual
    return gr.Dropdown(kinds, value=kind), gr.Dropdown(layers, value=layer), gr.Slider(1, most, value=k, step=1)


@told
def draw(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, colour: str, projection: str
) -> Iterator[tuple]:
    """Draw the map: at once with what is there, and again when a projection that had to be computed is ready."""
    if not session.picks or not kind:
        yield figures.empty("Pick adapters in the Library to see their bricks."), fragments.subtle("Nothing is picked.")
        return
    view = seen(session, kind, layer, k)
    ready = maps.projected(view, projection)
    if ready is None:
        wait = "Shown as PCA while UMAP is computed (the first time takes half a minute)."
        yield _drawn(view, maps.projected(view, "PCA"), colour, chosen), fragments.progress(wait, None)
        ready = maps.wait_for(view)
    yield _drawn(view, ready, colour, chosen), fragments.subtle(_caption(view))


def _drawn(view: maps.View, points: unit_figures.Points, colour: str, chosen: Selection) -> Any:
    return unit_figures.unit_map(points, view.groups, colour, selection.marks(view, chosen))


def _caption(view: maps.View) -> str:
    modules, shown = len(view.units.modules), len(view.units)
    place = f"{modules} modules, {view.k} clusters in each" if modules > 1 else f"one module, {view.k} clusters"
    how = "Drag a lasso or click to select, Escape or a double click clears."
    return f"{shown} of {view.total} bricks shown · {place}. {how}"


@told
def beside(session: Session, kind: str | None, layer: str, k: int, name: str) -> Iterator[tuple]:
    """Draw the view beside the map; one that takes a while says so."""
    if not session.picks or not kind:
        yield "", figures.empty("")
        return
    if name in views.SLOW:
        yield fragments.progress(f"{name}: measuring", None), gr.skip()
    try:
        shown = views.VIEWS[name](session, seen(session, kind, layer, k))
    except AdapterError as error:  # of this view alone: the map beside it stands
        yield fragments.heading(name), figures.empty(str(error))
        return
    yield fragments.heading(shown.title, shown.about), shown.figure


@told
def recluster(
    session: Session, chosen: Selection, kind: str, layer: str, k: int, colour: str, projection: str, name: str
) -> Iterator[tuple]:
    """What another number of clusters changes: the view, the table, and the map where it is coloured by cluster."""
    view = seen(session, kind, layer, k)
    points = maps.projected(view, projection) or maps.projected(view, "PCA")
    drawn = _drawn(view, points, colour, chosen) if colour == "cluster" else gr.skip()
    for title, chart in beside(session, kind, layer, k, name):
        yield drawn, fragments.subtle(_caption(view)), selection.table(view, chosen), title, chart


@told
def select(
    session: Session, chosen: Selection, kind: str, layer: str, k: int, name: str, ablated: tuple[UnitSet, ...],
    event: gr.EventData,
) -> Selection:  # fmt: skip
    """Remember what was selected in any view; what comes from the browser is checked."""
    return selection.caught(
        session,
        seen(session, kind, layer, k),
        chosen,
        name,
        ablated,
        getattr(event, "origin", None),
        getattr(event, "value", None),
    )


@told
def follow(
    session: Session, chosen: Selection, kind: str | None, layer: str, k: int, projection: str
) -> tuple[Any, ...]:
    """Let the map, the layer strip, the table and the details show what is selected."""
    hidden = gr.Button(visible=False), gr.Column(visible=False), gr.Column(visible=False)
    if not session.picks or not kind:
        return unit_figures.Marks().data(np.empty((0, 2))), "", "", "", *hidden
    view = seen(session, kind, layer, k)
    points = maps.projected(view, projection) or maps.projected(view, "PCA")
    return (
        selection.marks(view, chosen).data(points.xy),
        selection.strip(view, chosen),
        selection.table(view, chosen),
        unit_details.draw(session, view, chosen),
        _pin_button(chosen),
        gr.Column(visible=bool(chosen.units)),
        gr.Column(visible=pictured.offered(session, chosen)),
    )


def _pin_button(chosen: Selection) -> Any:
    pinned = chosen.pinned is not None and chosen.primary in (None, chosen.pinned)
    label = "Unpin the brick" if pinned else "Pin this brick"
    return gr.Button(label, visible=chosen.primary is not None or pinned)


def pin(chosen: Selection) -> Selection:
    """Keep the primary unit's details beside those of the next; or let the pinned one go."""
    pinned = chosen.pinned is not None and chosen.primary in (None, chosen.pinned)
    return replace(chosen, pinned=None if pinned else chosen.primary)


def wire(tab: MapTab, session: gr.State, settings: list[Any], reported: gr.Dropdown) -> None:
    """Connect the tab's events; a pick anywhere redraws it.

    Args:
        settings: of Compare: how an edit is tried.
        reported: the merge whose report is shown on the Merge tab.
    """
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    alone = {**private, "concurrency_limit": 1, "concurrency_id": "session"}
    chosen, looks = tab.chosen, [tab.colour, tab.projection]
    everything = [session, chosen, *tab.place]
    session.change(picks, [session], [tab.picked], **private)
    tab.picked.change(left, [session, chosen], [chosen], **alone)
    for event in (tab.picked.change, tab.kind.input):
        set_up = event(controls, [session, *tab.place], tab.place, **private)
        _redraw(tab, session, set_up.then, private)
    _redraw(tab, session, tab.layer.input, private)
    for control in looks:
        control.input(draw, [*everything, *looks], [tab.plot, tab.note], **private)
    reclustered = [tab.plot, tab.note, tab.table, *tab.beside]
    tab.k.input(recluster, [*everything, *looks, tab.view], reclustered, trigger_mode="always_last", **private)
    tab.view.input(beside, [session, *tab.place, tab.view], tab.beside, **private)
    tab.bridge.select(select, [*everything, tab.view, tab.ablate.found], [chosen], trigger_mode="multiple", **alone)
    chosen.change(follow, [*everything, tab.projection], tab.following, **private)
    tab.pin.click(pin, [chosen], [chosen], **alone)
    edits = bricks.wire(tab.bricks, session, chosen, reported)
    trying.wire(tab.trying, tab.bricks, edits, session, tab.picked, settings)
    pictured.wire(tab.pictured, session, chosen, tab.picked)
    ablate.wire(tab.ablate, session, tab.picked, tab.place, where)


def _redraw(tab: MapTab, session: gr.State, event: Any, private: dict[str, Any]) -> None:
    """After an event draw all that depends on which units are shown."""
    everything = [session, tab.chosen, *tab.place]
    event(draw, [*everything, tab.colour, tab.projection], [tab.plot, tab.note], **private)
    event(beside, [session, *tab.place, tab.view], tab.beside, **private)
    event(follow, [*everything, tab.projection], tab.following, **private)
