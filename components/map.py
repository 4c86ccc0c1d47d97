"""The Map tab: units of the picked adapters in the plane, their clusters, and what a lasso catches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from html import escape
from typing import Any

import gradio as gr

from components import figures, fragments, maps
from components.messages import told
from components.session import Muted, Session, UnitId
from lego import AdapterError

ALL_LAYERS = "all layers"
LISTED = 100
"""Units listed below the map."""

BRIDGE = """
const wire = () => {
  const plot = document.querySelector('#unit-map .js-plotly-plot');
  if (!plot || plot.dataset.wired || !plot.on) return;
  plot.dataset.wired = 'yes';
  const send = (points) => trigger('select', {ids: points.map((point) => point.customdata)});
  plot.on('plotly_selected', (event) => { if (event && (event.lassoPoints || event.range)) send(event.points); });
  plot.on('plotly_click', (event) => send(event.points));
  plot.on('plotly_deselect', () => send([]));
};
new MutationObserver(wire).observe(document.body, {childList: true, subtree: true});
wire();
"""


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
    composition_title: gr.HTML
    composition: gr.Plot
    selection: gr.HTML
    mute: gr.Button

    @property
    def view(self) -> list[Any]:
        """The controls that decide what is drawn, in the order of ``draw``."""
        return [self.kind, self.layer, self.k, self.colour, self.projection]

    @property
    def drawing(self) -> list[Any]:
        """What ``draw`` fills."""
        return [self.plot, self.composition_title, self.composition, self.note, self.selection, self.mute]


def create() -> MapTab:
    """Lay the tab out; nothing is wired yet."""
    with gr.Row():
        kind = gr.Dropdown([], label="Kind of module", min_width=130, scale=3)
        layer = gr.Dropdown([ALL_LAYERS], value=ALL_LAYERS, label="Layer", min_width=130, scale=2)
        colour = gr.Radio(list(figures.COLOURINGS), value="adapter", label="Colour by", min_width=300, scale=7)
        projection = gr.Radio(["PCA", "UMAP"], value="PCA", label="Projection", min_width=170, scale=3)
        k = gr.Slider(0, 32, value=0, step=1, label="Clusters (k)", min_width=180, scale=3)
    note = gr.HTML(fragments.progress("Reading units", None))
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            plot = gr.Plot(label="Unit map", show_label=False, elem_id="unit-map", container=False)
        with gr.Column(scale=2, min_width=300):
            composition_title = gr.HTML()
            composition = gr.Plot(label="Cluster composition", show_label=False, elem_id="clusters", container=False)
    selection = gr.HTML(label="Selected bricks")
    mute = gr.Button("Mute the selected bricks", visible=False, scale=0)
    bridge = gr.HTML(visible="hidden", js_on_load=BRIDGE)
    return MapTab(
        kind, layer, k, colour, projection, note, plot, bridge, composition_title, composition, selection, mute
    )


def where(kind: str, layer: str) -> str:
    """What the two controls name: a kind of module across layers, or one module."""
    return kind if layer == ALL_LAYERS else layer


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
def draw(session: Session, kind: str | None, layer: str, k: int, colour: str, projection: str) -> Iterator[tuple]:
    """Draw the map: at once with what is there, and again when a projection that had to be computed is ready."""
    if not session.picks or not kind:
        nothing = figures.empty("Pick adapters in the Library to see their units.")
        yield nothing, "", figures.empty(""), fragments.subtle("Nothing is picked."), "", gr.Button(visible=False)
        return
    view = maps.view(session, where(kind, layer), int(k))
    chosen = _listing(session, view), gr.Button(visible=bool(session.selected))
    ready = maps.projected(view, projection)
    if ready is None:
        wait = "Shown as PCA while UMAP is computed (the first time takes half a minute)."
        yield *_drawn(session, view, maps.projected(view, "PCA"), colour), fragments.progress(wait, None), *chosen
        ready = maps.wait_for(view)
    yield *_drawn(session, view, ready, colour), fragments.subtle(_caption(view)), *chosen


def _caption(view: maps.View) -> str:
    modules, shown = len(view.units.modules), len(view.units)
    place = f"{modules} modules, {view.k} clusters in each" if modules > 1 else f"one module, {view.k} clusters"
    return f"{shown} of {view.total} units shown · {place}. Drag a lasso or click to select."


def _drawn(session: Session, view: maps.View, points: figures.Points, colour: str) -> tuple:
    unit_map = figures.unit_map(points, view.groups, colour, maps.rows_of(view, session.selected))
    if len(view.units.modules) == 1:
        title = fragments.heading("What each cluster is made of", "Units of each adapter in every cluster.")
        return unit_map, title, figures.clusters_of_module(points.owner, points.cluster, view.groups)
    about = "How many clusters of each layer hold one adapter alone, and how many mix several."
    title = fragments.heading("What the clusters are made of", about)
    return unit_map, title, figures.clusters_by_layer(points, view.groups)


@told
def select(session: Session, kind: str, layer: str, event: gr.EventData) -> Session:
    """Remember the units that the lasso or click caught; ids from the browser are checked against the map."""
    view = maps.view(session, where(kind, layer), 1)
    return replace(session, selected=tuple(maps.unit_id(view, i) for i in maps.checked(view, event.ids)))


def _listing(session: Session, view: maps.View) -> str:
    count = len(session.selected)
    if not count:
        return ""
    groups = dict(zip(view.keys, view.groups, strict=True))
    norms = {maps.unit_id(view, i): float(view.units.norm[i]) for i in maps.rows_of(view, session.selected)}
    rows = []
    for unit in session.selected[:LISTED]:
        (key, module, index), norm = unit, norms.get(unit)
        name = f"{fragments.swatch((groups[key].slot,))} {escape(groups[key].name)}"
        rows.append([name, f"<code>{escape(module)}</code>", str(index), "" if norm is None else f"{norm:.3f}"])
    title = fragments.heading(f"{count} brick{'s' if count > 1 else ''} selected", _more(count))
    names = ["Adapter", "Module", "Rank index", "Norm"]
    return title + fragments.table(names, rows, right=(2, 3), label="Selected bricks", tall=True)


def _more(count: int) -> str:
    return f"The first {LISTED} of them:" if count > LISTED else ""


@told
def mute(session: Session) -> Session:
    """Make the exact sum without the selected units a variant of its own."""
    units: frozenset[UnitId] = frozenset(session.selected)
    if not units:
        raise AdapterError("no bricks are selected", None, "Draw a lasso around some on the map first.")
    name = f"Sum without {len(units)} brick{'s' if len(units) > 1 else ''}"
    gr.Info(f"“{name}” joined the variants.")
    return session.mute(Muted(name, session.weights, units))


def wire(tab: MapTab, session: gr.State) -> None:
    """Connect the tab's events; a pick anywhere redraws it."""
    private = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
    choices = [tab.kind, tab.layer, tab.k]
    changed = session.change(controls, [session, *choices], choices, **private)
    drawings = [changed.then(draw, [session, *tab.view], tab.drawing, **private)]
    kind_changed = tab.kind.input(controls, [session, *choices], choices, **private)
    drawings.append(kind_changed.then(draw, [session, *tab.view], tab.drawing, **private))
    for control in (tab.layer, tab.colour, tab.projection):
        drawings.append(control.input(draw, [session, *tab.view], tab.drawing, **private))
    drawings.append(tab.k.input(draw, [session, *tab.view], tab.drawing, trigger_mode="always_last", **private))
    alone = {**private, "concurrency_limit": 1, "concurrency_id": "session"}
    tab.bridge.select(select, [session, tab.kind, tab.layer], [session], **alone)
    tab.mute.click(mute, [session], [session], **alone)
