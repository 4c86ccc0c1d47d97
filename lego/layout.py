"""Where units lie: 2-D coordinates, clusters and neighbours of all units of equal length, from one Gram matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.sparse.linalg import eigsh

from lego.adapter import Adapter, module_kind, module_layer
from lego.cluster import partition
from lego.errors import AdapterError
from lego.registry import resolve_rank
from lego.units import Pool, module_names, pools, signature

Coordinates = Float[np.ndarray, "units 2"]


@dataclass(frozen=True)
class UnitMap:
    """All units of some modules of one shape, as arrays with one entry a unit, module after module.

    Attributes:
        adapters: names of the sources.
        modules: names of the modules.
        adapter, module: index into those, (units,).
        layer: layer number, (units,).
        rank_index: the unit's row in its adapter's A, (units,).
        norm: ‖m‖, (units,).
        gram: inner products of the units, fp64, (units, units).
        pools: the same units, module by module, for clustering.
    """

    adapters: tuple[str, ...]
    modules: tuple[str, ...]
    adapter: Int[np.ndarray, " units"]
    module: Int[np.ndarray, " units"]
    layer: Int[np.ndarray, " units"]
    rank_index: Int[np.ndarray, " units"]
    norm: Float[np.ndarray, " units"]
    gram: Float[np.ndarray, "units units"]
    pools: tuple[Pool, ...]

    def __len__(self) -> int:
        return len(self.adapter)

    @property
    def distances(self) -> Float[np.ndarray, "units units"]:
        """Euclidean distances between the units."""
        squares = self.norm**2
        return np.sqrt(np.maximum(squares[:, None] + squares[None] - 2 * self.gram, 0))

    def neighbours(self, unit: int, count: int = 5) -> list[int]:
        """The nearest other units, nearest first."""
        distance = self.norm**2 - 2 * self.gram[unit]
        distance[unit] = np.inf
        return np.argsort(distance, kind="stable")[: min(count, len(self) - 1)].tolist()

    def pca(self) -> Coordinates:
        """The two principal components of the centred units, from the centred Gram matrix: exact, and at once.

        The sign of an axis is fixed so that its largest coordinate is positive.
        """
        mean = self.gram.mean(axis=0)
        centred = self.gram - mean[None] - mean[:, None] + mean.mean()
        if len(self) <= 3:
            values, vectors = np.linalg.eigh(centred)
        else:
            values, vectors = eigsh(centred, k=2, which="LA", v0=np.ones(len(self)))
        order = np.argsort(values)[::-1][:2]
        points = vectors[:, order] * np.sqrt(np.maximum(values[order], 0))
        points = np.pad(points, ((0, 0), (0, 2 - points.shape[1])))
        return points * np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)

    def umap(self, seed: int = 0, neighbours: int = 15) -> Coordinates:
        """UMAP of the units, from their exact neighbours and started at the PCA: the same picture each time.

        Units fewer than four have no neighbourhoods to keep, so their PCA is returned.
        """
        if len(self) < 4:
            return self.pca()
        import umap  # numba compiles for seconds: only when a UMAP is asked for

        near = min(neighbours, len(self) - 1)
        distances = self.distances
        np.fill_diagonal(distances, 0)
        index = np.argsort(distances, axis=1, kind="stable")[:, :near]
        graph = (index, np.take_along_axis(distances, index, axis=1).astype(np.float32), None)
        start = self.pca()
        start = 10 * start / max(np.abs(start).max(), 1e-12)
        # A precomputed graph leaves UMAP no use for the data but its number of rows.
        reducer = umap.UMAP(n_neighbors=near, precomputed_knn=graph, init=start, random_state=seed, n_jobs=1)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="precomputed_knn")  # it cannot place new points; there are none
            return reducer.fit_transform(start.astype(np.float32))

    def clusters(self, k: int | str = "2r", restarts: int = 8) -> Int[np.ndarray, " units"]:
        """The cluster of each unit within its module: the very partition that a LEGO merge of the same k and seed makes."""
        found: dict[str, np.ndarray] = {}
        for pool in self.pools:
            labels = partition(pool, resolve_rank(k, pool), restarts).numpy()
            found.update(zip(pool.modules, labels, strict=True))
        return np.concatenate([found[module] for module in self.modules])


def resolve(adapters: Sequence[Adapter], where: str) -> list[str]:
    """The modules meant by a module's name or by a kind of module such as ``q_proj``.

    Raises:
        AdapterError: when no adapter adapts any such module.
    """
    names = module_names(adapters)
    found = [name for name in names if where in (name, module_kind(name))]
    if not found:
        kinds = ", ".join(dict.fromkeys(module_kind(name) for name in names))
        raise AdapterError(f"no picked adapter has a module or kind {where!r}", None, f"Kinds: {kinds}.")
    return found


def unit_map(
    adapters: Sequence[Adapter], modules: str | Sequence[str], weights: Sequence[float] | None = None, seed: int = 0
) -> UnitMap:
    """Gather the units of modules of one shape.

    Args:
        adapters: the sources.
        modules: a module's name, a kind of module, or several names.
        weights: as in a merge: they scale the units, and with them clusters.
        seed: of the clustering.

    Raises:
        AdapterError: when the modules' units have different lengths, or there are none.
    """
    wanted = resolve(adapters, modules) if isinstance(modules, str) else list(modules)
    shapes = {signature(adapters, weights or [1.0] * len(adapters), module)[0][:2] for module in wanted}
    if len(shapes) > 1:
        told = ", ".join(f"{d_in} → {d_out}" for d_in, d_out in sorted(shapes))
        raise AdapterError(
            f"these modules have units of different lengths ({told})", None, "Choose modules of one shape."
        )
    groups = tuple(pools(adapters, weights, seed, modules=wanted))
    place = {module: (pool, row) for pool in groups for row, module in enumerate(pool.modules)}
    order = [module for module in module_names(adapters, weights) if module in place]
    counts = [place[module][0].units for module in order]
    owner = [place[module][0].owner for module in order]
    units = torch.cat([torch.cat([p.down[i], p.up[i].mT], 1) for p, i in (place[module] for module in order)]).double()
    gram = (units @ units.mT).numpy()
    return UnitMap(
        adapters=tuple(adapter.name for adapter in adapters),
        modules=tuple(order),
        adapter=torch.cat(owner).numpy(),
        module=np.repeat(np.arange(len(order)), counts),
        layer=np.repeat([module_layer(module) for module in order], counts),
        rank_index=np.concatenate([rank_indices(ids.numpy()) for ids in owner]),
        norm=np.sqrt(np.maximum(np.diagonal(gram), 0)),
        gram=gram,
        pools=groups,
    )


def rank_indices(owner: Int[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
    """Each unit's row within its own adapter: 0, 1, 2, … anew for every owner."""
    return np.concatenate([np.arange(count) for count in np.unique(owner, return_counts=True)[1]])
