"""Unit maps of picked adapters, computed once per content and shared: the plain functions behind the Map tab."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from backends import library
from components.figures import Group
from components.library.shelf import shelf
from components.map import laid
from components.map.blocks import of_pipeline, place_of, places, running_order
from components.map.umaps import Umap
from components.map.unit_figures import Points
from components.session.state import Session
from lego import Adapter, AdapterError, module_kind, module_layer
from lego.layout import UnitMap, resolve, unit_map
from lego.unitset import UnitId, UnitSet, indices

ALL_LAYERS = "all layers"
PCA, UMAP = "PCA", "UMAP"
MOST_UNITS = 20_000
"""More units than this are thinned out by whole modules: nobody tells more points apart, and a browser draws them slowly."""


_lock = threading.Lock()


class Mapped:
    """A unit map with its projections, shared by every visitor who looks at the same adapters and modules."""

    def __init__(self, units: UnitMap, total: int, ahead: np.ndarray | None = None) -> None:
        self.units, self.total, self.umap = units, total, Umap(units, ahead)
        self.clusters, self.alike = lru_cache(maxsize=16)(units.clusters), lru_cache(maxsize=16)(units.alike)

    @cached_property
    def starts(self) -> dict[tuple[int, int], int]:
        """The row of each adapter's first unit in each module: (adapter, module), both as the units name them by number."""
        units = self.units
        place = np.column_stack([units.adapter, units.module])
        first = np.flatnonzero(np.r_[True, (place[1:] != place[:-1]).any(1)])
        return {(int(a), int(m)): int(row) for row, (a, m) in zip(first, place[first], strict=True)}

    @cached_property
    def pca(self) -> np.ndarray:
        """The two principal components, (units, 2)."""
        return self.units.pca()


@dataclass(frozen=True)
class View:
    """What one visitor sees: the shared map, the colours and names of this session, and the number of clusters."""

    mapped: Mapped
    keys: tuple[str, ...]
    groups: tuple[Group, ...]
    k: int

    @property
    def units(self) -> UnitMap:
        """The shared unit map."""
        return self.mapped.units

    @property
    def clusters(self) -> np.ndarray:
        """The cluster of each unit within its module, (units,)."""
        return self.mapped.clusters(self.k)

    @property
    def total(self) -> int:
        """Units there are, shown or not."""
        return self.mapped.total


@lru_cache(maxsize=24)
def _mapped(weights: tuple[tuple[str, float], ...], where: str) -> Mapped:
    adapters = [library.get(key) for key, _ in weights]
    modules = modules_at(adapters, where)
    counts = [sum(a.modules[m].rank for a in adapters if m in a.modules) for m in modules]
    kept = _thinned(modules, counts)
    units = unit_map(adapters, kept, [weight for _, weight in weights])
    return Mapped(units, sum(counts), laid.umap(weights, where))


def pipeline_kinds(adapters: Sequence[Adapter]) -> dict[str, list[str]]:
    """A pipeline's modules in running order by what they are in their block, those of one shape together: ``attn1.to_q 128 → 128``.

    Blocks of a UNet differ in width, and only units of one length lie on one map. Empty for adapters of other models.
    """
    found: dict[str, dict[tuple[int, int], list[str]]] = {}
    forms = {name: (spec.d_in, spec.d_out) for a in adapters for name, spec in a.modules.items() if of_pipeline(name)}
    for name in sorted(forms, key=running_order):
        found.setdefault(place_of(name).kind, {}).setdefault(forms[name], []).append(name)
    return {
        kind if len(own) == 1 else f"{kind} {form[0]} → {form[1]}": names
        for kind, own in found.items()
        for form, names in own.items()
    }


def modules_at(adapters: Sequence[Adapter], where: str) -> list[str]:
    """The modules meant by one's name, by a kind of module, or by one of `pipeline_kinds`.

    Raises:
        AdapterError: when no adapter adapts any such module.
    """
    return pipeline_kinds(adapters).get(where) or resolve(adapters, where)


def _thinned(modules: Sequence[str], counts: Sequence[int]) -> list[str]:
    """Every n-th module, so that at most MOST_UNITS units remain (but always one module)."""
    step = max(1, -(-sum(counts) // MOST_UNITS))
    return list(modules[::step])


def mapped(weights: Iterable[tuple[str, float]], where: str) -> Mapped:
    """The map of these adapters with these weights; computed once, by one thread at a time."""
    with _lock:
        return _mapped(tuple(weights), where)


def view(session: Session, where: str, k: int) -> View:
    """The map of the session's picks.

    Raises:
        AdapterError: when the picked adapters have no such module, or its units differ in length.
    """
    entries = shelf(session)
    groups = tuple(Group(entries[pick.key].title, pick.slot) for pick in session.picks)
    keys = tuple(pick.key for pick in session.picks)
    return View(mapped(session.weights, where), keys, groups, k)


def where(kind: str, layer: str) -> str:
    """What the tab's two controls name: a kind of module across layers, or one module."""
    return kind if layer == ALL_LAYERS else layer


def seen(session: Session, kind: str, layer: str, k: float) -> View:
    """The map that the controls ask for; where they still stand as for other picks, the map that they will ask for."""
    try:
        return view(session, where(kind, layer), int(k))
    except AdapterError:
        known = kinds(session)
        if kind in known and layer == ALL_LAYERS:
            raise
        return view(session, kind if kind in known else known[0], int(k))


def points(seen: View, xy: np.ndarray) -> Points:
    """Everything the figures draw, at these coordinates."""
    units = seen.units
    blocks = places(filter(of_pipeline, units.modules))
    return Points(
        xy=xy,
        owner=units.adapter,
        module=units.module,
        modules=units.modules,
        layer=_block_numbers(units, blocks) if blocks else units.layer,
        blocks=blocks,
        rank_index=units.rank_index,
        norm=units.norm,
        cluster=seen.clusters,
    )


def _block_numbers(units: UnitMap, blocks: Sequence[str]) -> np.ndarray:
    """The number of each unit's block among those shown, (units,)."""
    return np.array([blocks.index(place_of(module).label) for module in units.modules])[units.module]


def layers(seen: View) -> tuple[np.ndarray, list[str], str]:
    """For each unit the number of its layer among those of the map, (units,); their names; and what they are: layer or block."""
    if blocks := places(filter(of_pipeline, seen.units.modules)):
        return _block_numbers(seen.units, blocks), blocks, "block"
    found, layer = np.unique(seen.units.layer, return_inverse=True)
    return layer, [str(number) for number in found], "layer"


def projected(seen: View, projection: str) -> Points:
    """The points in a projection; in the principal components while UMAP is still being computed."""
    xy = seen.mapped.umap.ready if projection == UMAP else None
    return points(seen, seen.mapped.pca if xy is None else xy)


def _picked(session: Session) -> list[Adapter]:
    return [library.get(pick.key) for pick in session.picks]


def kinds(session: Session) -> list[str]:
    """Kinds of module of the picked adapters: those that most of them share first; of a pipeline's, those of most modules."""
    adapters = _picked(session)
    if known := pipeline_kinds(adapters):
        shared = {kind: sum(any(m in a.modules for m in own) for a in adapters) for kind, own in known.items()}
        return sorted(known, key=lambda kind: (-shared[kind], -len(known[kind])))
    count = Counter(kind for adapter in adapters for kind in adapter.kinds)
    return sorted(count, key=lambda kind: -count[kind])


def modules_of(session: Session, kind: str) -> list[tuple[str, str]]:
    """(label, name) of every module of a kind; the label is its layer or block where that tells it."""
    if known := pipeline_kinds(_picked(session)).get(kind):
        labels = Counter(place_of(name).label for name in known)
        return [(found if labels[found := place_of(name).label] == 1 else name, name) for name in known]
    names = [name for name in resolve(_picked(session), kind) if module_kind(name) == kind]
    layers = Counter(module_layer(name) for name in names)
    return [(f"layer {module_layer(n)}" if layers[module_layer(n)] == 1 else n, n) for n in names]


def cluster_range(session: Session, kind: str) -> tuple[int, int]:
    """(most clusters that make sense in one module of this kind, LEGO's default of twice the mean rank)."""
    adapters = _picked(session)
    ranks = [[a.modules[m].rank for a in adapters if m in a.modules] for m in modules_at(adapters, kind)]
    most = max(sum(own) for own in ranks)
    widest = max(ranks, key=sum)
    return most, min(most, round(2 * sum(widest) / len(widest)))


def checked(seen: View, ids: Any) -> list[int]:
    """Unit numbers as they came from the browser, once each.

    Raises:
        AdapterError: when they are not numbers of units of this map.
    """
    if not isinstance(ids, list) or not all(isinstance(i, int) and 0 <= i < len(seen.units) for i in ids):
        raise AdapterError("these bricks are not on the map any more", None, "Select them again.")
    return list(dict.fromkeys(ids))


def unit_id(seen: View, i: int) -> UnitId:
    """Which unit point i is."""
    units = seen.units
    return seen.keys[units.adapter[i]], units.modules[units.module[i]], int(units.rank_index[i])


def unit_set(seen: View, rows: Iterable[int]) -> UnitSet:
    """The units of some points."""
    units, bits = seen.units, dict[tuple[int, int], int]()
    rows = np.fromiter(rows, dtype=int)
    for a, m, index in zip(
        units.adapter[rows].tolist(), units.module[rows].tolist(), units.rank_index[rows].tolist(), strict=True
    ):
        bits[a, m] = bits.get((a, m), 0) | 1 << index
    return UnitSet.packed({(seen.keys[a], units.modules[m]): found for (a, m), found in bits.items()})


def rows_of(seen: View, units: UnitSet) -> np.ndarray:
    """The points of those units that are on this map, ascending."""
    adapters = {key: a for a, key in enumerate(seen.keys)}
    modules = {name: m for m, name in enumerate(seen.units.modules)}
    starts = seen.mapped.starts
    rows = [
        start + index
        for key, module, bits in units.parts
        if (start := starts.get((adapters.get(key, -1), modules.get(module, -1)))) is not None
        for index in indices(bits)
    ]
    return np.sort(np.array(rows, dtype=int))


def row_of(seen: View, unit: UnitId | None) -> int | None:
    """The point of a unit; None where it is not on this map."""
    rows = rows_of(seen, UnitSet.of([unit] if unit else []))
    return int(rows[0]) if len(rows) else None
