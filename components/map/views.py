"""What is shown beside the map: clusters, layers × adapters, adapters × adapters, spectra, silhouettes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import plotly.graph_objects as go

from backends import library
from components.map import maps, unit_figures, view_figures
from components.map.blocks import of_pipeline, place_of, running_order
from components.session.state import Session
from components.work import Shared
from lego import AdapterError, module_layer
from lego.effective import inner_products
from lego.interference import Interference, interference
from lego.silhouette import silhouette_over
from lego.spectrum import spectra
from lego.unitset import UnitSet

MOST_CLUSTERS = 40
"""Clusters in the table of clusters × adapters, the most mixed ones first."""

MOST_KS = 16
"""Values of k for which silhouettes are computed."""


@dataclass(frozen=True)
class Shown:
    """A view as it is drawn: its heading, one line about it, the figure, and the units behind a cell or a bar.

    ``units`` takes (row, column) of a heat map, (trace, point) of bars and lines; None where nothing can be selected.
    """

    title: str
    about: str
    figure: go.Figure
    units: Callable[[int, int], UnitSet] | None = None


View = Callable[[Session, maps.View], Shown]


def composition(session: Session, seen: maps.View) -> Shown:
    """Of one module each cluster as a bar, of several how mixed the clusters of each layer are."""
    points = maps.points(seen, np.zeros((len(seen.units), 2)))
    if len(seen.units.modules) == 1:
        figure = unit_figures.clusters_of_module(points.owner, points.cluster, seen.groups)
        order = unit_figures.by_size(points.cluster)
        about = "Units of each adapter in every cluster; a bar selects its cluster."
        return Shown(
            "What each cluster is made of", about, figure, lambda _, bar: _units(seen, points.cluster == order[bar])
        )
    figure = unit_figures.clusters_by_layer(points, seen.groups)
    layers, table, kind = unit_figures.mixtures(points, len(seen.groups))
    kinds = [*range(len(seen.groups)), *(k for k in range(len(seen.groups), len(table)) if table[k].any())]
    about = "How many clusters of each layer hold one adapter alone, and how many mix several; a bar selects theirs."

    def units(trace: int, bar: int) -> UnitSet:
        return _units(seen, (kind == kinds[trace]) & (points.layer == layers[bar]))

    return Shown("What the clusters are made of", about, figure, units)


def clusters(session: Session, seen: maps.View) -> Shown:
    """Clusters × adapters: how many units of each, those of most adapters first."""
    units, found = seen.units, seen.clusters
    group = units.module * (int(found.max()) + 1) + found
    _, first, own = np.unique(group, return_index=True, return_inverse=True)
    counts = np.zeros((len(first), len(seen.groups)), dtype=int)
    np.add.at(counts, (own, units.adapter), 1)
    order = np.lexsort((-counts.sum(1), -(counts > 0).sum(1)))[:MOST_CLUSTERS]
    layer, labels, along = maps.layers(seen)
    single = len(units.modules) == 1
    rows = [f"{'' if single else f'{along} {labels[layer[first[c]]]} · '}{found[first[c]] + 1}" for c in order]
    names = view_figures.names(seen.groups)
    shown = np.where(counts[order] > 0, counts[order], np.nan)
    figure = view_figures.heat(rows, names, shown, "bricks", "d")
    about = "Bricks of each adapter in a cluster, clusters of most adapters first; a cell selects its bricks."
    if len(first) > MOST_CLUSTERS:
        about = f"{about} {MOST_CLUSTERS} of {len(first)}."
    return Shown(
        "Clusters × adapters",
        about,
        figure,
        lambda row, column: _units(seen, (own == order[row]) & (units.adapter == column)),
    )


def norms(session: Session, seen: maps.View) -> Shown:
    """Layers × adapters: the norm of each adapter's weighted update."""
    found = _products(session.weights)
    places, labels = _places(found.modules)
    squares = np.diagonal(found.inner, axis1=1, axis2=2)
    values = np.stack([np.sqrt(np.maximum(squares[places == i].sum(0), 0)) for i in range(len(labels))], axis=1)
    figure = view_figures.heat(view_figures.names(seen.groups), labels, values, "norm")
    about = "‖wΔW‖ of each adapter over all modules of a layer; a cell selects the adapter's bricks there."
    return Shown("Norms by layer", about, figure, _cells(seen, found.modules, places))


def meeting(session: Session, seen: maps.View) -> Shown:
    """Layers × adapters: the interference that each adapter suffers from all others."""
    found = measured(session.weights).result()
    places, labels = _places(found.modules)
    values = np.stack([_part(found, places == i).total().scores[0] for i in range(len(labels))], axis=1)
    figure = view_figures.heat(view_figures.names(seen.groups), labels, values, "interference")
    about = (
        "Which share of what all others do acts on the inputs that an adapter reads, 0 to 1; a cell selects its bricks."
    )
    return Shown("Interference by layer", about, figure, _cells(seen, found.modules, places))


def _between(measure: str, title: str, about: str) -> View:
    """Adapters × adapters, by one of the measures of `lego.interference`, over all modules that both adapt."""

    def show(session: Session, seen: maps.View) -> Shown:
        names = view_figures.names(seen.groups)
        values = getattr(measured(session.weights).result().total(), measure)[0].copy()
        np.fill_diagonal(values, np.nan)  # each with itself would drown the rest
        figure = view_figures.heat(names, names, values, title.lower())

        def units(row: int, column: int) -> UnitSet:
            return _units(seen, np.isin(seen.units.adapter, [row, column]))

        return Shown(title, f"{about} A cell selects the bricks of both on this map.", figure, units)

    return show


def spectrum(session: Session, seen: maps.View) -> Shown:
    """The singular values of each adapter's update, the mean over the map's modules."""
    found = spectra(seen.units.pools, len(seen.groups))
    figure = view_figures.spectrum(seen.groups, [own.mean(0) if len(own) else own.ravel() for own in found])
    about = "Singular values of each adapter's weighted update, the mean over the modules of this map."
    return Shown("Spectrum of each adapter", about, figure)


def silhouette(session: Session, seen: maps.View) -> Shown:
    """How well apart the clusters are, for every k."""
    values = silhouettes(session, seen).result()
    figure = view_figures.silhouette(_ks(session, seen), values, maps.cluster_range(session, seen.units.modules[0])[1])
    about = "Near 1 clusters are tight and far apart, near 0 they run into each other: the mean over all bricks of this map."
    return Shown("Silhouette over k", about, figure)


SILHOUETTE = "Silhouette over k"
MEASURED = ("Layers × adapters: interference", "Adapters × adapters: unit cosine", "Adapters × adapters: inputs",
            "Adapters × adapters: outputs")  # fmt: skip
"""Views of what adapters do to each other."""

COSINE = "Cosine of a unit of one with a unit of the other as rank-one updates, without its sign:"
OVERLAP = "1 where one subspace holds the other, 0 where they are orthogonal:"

VIEWS: dict[str, View] = {
    "Clusters": composition,
    "Clusters × adapters": clusters,
    "Layers × adapters: norms": norms,
    "Layers × adapters: interference": meeting,
    "Adapters × adapters: unit cosine": _between("unit_max", "Unit cosine", f"{COSINE} the largest of each module."),
    "Adapters × adapters: inputs": _between("overlap_in", "Input overlap", f"{OVERLAP} what A reads."),
    "Adapters × adapters: outputs": _between("overlap_out", "Output overlap", f"{OVERLAP} what B writes."),
    "Spectrum": spectrum,
    SILHOUETTE: silhouette,
}

CLUSTERED = ("Clusters", "Clusters × adapters")
"""Views of the clusters that there are: another k changes them."""


def units_at(session: Session, seen: maps.View, view: str, place: Any) -> UnitSet:
    """The units behind a cell or bar of a view, as the browser names it.

    Raises:
        AdapterError: when the view has no such place, or none of it can be selected.
    """
    if view not in VIEWS:
        raise AdapterError(f"there is no view {str(view)[:40]!r}", None, f"There are {', '.join(VIEWS)}.")
    units = VIEWS[view](session, seen).units
    if units is None:
        return UnitSet()
    match place:
        case [int(row), int(column)] if row >= 0 and column >= 0:
            try:
                return units(row, column)
            except IndexError:
                pass
    raise AdapterError("this is not in the view any more", None, "Select again.")


def _units(seen: maps.View, mask: np.ndarray) -> UnitSet:
    return maps.unit_set(seen, np.flatnonzero(mask))


def _cells(seen: maps.View, modules: Sequence[str], places: np.ndarray) -> Callable[[int, int], UnitSet]:
    """The units of an adapter in the modules at a place."""

    def units(row: int, column: int) -> UnitSet:
        key = seen.keys[row]
        if column > places.max():
            raise IndexError(column)
        own = library.get(key).modules
        there = [modules[m] for m in np.flatnonzero(places == column) if modules[m] in own]
        return UnitSet.packed({(key, module): (1 << own[module].rank) - 1 for module in there})

    return units


def _places(modules: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """For each module the number of its layer or block among all of these, and their names."""
    ordered = sorted(modules, key=running_order)
    names = {m: place_of(m).label if of_pipeline(m) else str(module_layer(m)) for m in ordered}
    labels = list(dict.fromkeys(names.values()))
    return np.array([labels.index(names[module]) for module in modules]), labels


def _part(found: Interference, mask: np.ndarray) -> Interference:
    arrays = ("inner", "response", "unit_max", "unit_mean", "overlap_in", "overlap_out", "shared", "opposed")
    modules = tuple(np.array(found.modules)[mask])
    return replace(found, modules=modules, **{name: getattr(found, name)[mask] for name in arrays})


def _sources(weights: tuple[tuple[str, float], ...]) -> tuple[list, list[float]]:
    return [library.get(key) for key, _ in weights], [weight for _, weight in weights]


@lru_cache(maxsize=8)
def _products(weights: tuple[tuple[str, float], ...]) -> Any:
    return inner_products(*_sources(weights))


def coming(name: str, session: Session, seen: maps.View) -> Shared[Any] | None:
    """What a view is drawn from, where that takes long the first time.

    Raises:
        AdapterError: when there is too little to measure.
    """
    if name == SILHOUETTE:
        return silhouettes(session, seen)
    return measured(session.weights) if name in MEASURED else None


@lru_cache(maxsize=8)
def measured(weights: tuple[tuple[str, float], ...]) -> Shared[Interference]:
    """What adapters with these weights do to each other."""
    return Shared(lambda progress, _: interference(*_sources(weights), progress=progress))


def silhouettes(session: Session, seen: maps.View) -> Shared[list[float]]:
    """The mean silhouette for each of some k.

    Raises:
        AdapterError: when there are too few bricks for three clusters.
    """
    return _silhouettes(session.weights, seen.units.modules, _ks(session, seen), seen.mapped)


def _ks(session: Session, seen: maps.View) -> tuple[int, ...]:
    most, paper = maps.cluster_range(session, seen.units.modules[0])
    if most < 3:
        raise AdapterError("there are too few bricks here to compare clusters", None, "Pick more adapters.")
    ks = np.unique(np.linspace(2, most - 1, MOST_KS).round().astype(int)).tolist()
    return tuple(sorted({*ks, paper} - {1, most}))


@lru_cache(maxsize=16)
def _silhouettes(
    weights: tuple[tuple[str, float], ...], modules: tuple[str, ...], ks: tuple[int, ...], mapped: maps.Mapped
) -> Shared[list[float]]:
    return Shared(lambda progress, _: silhouette_over(mapped.units.pools, ks, progress=progress))
