"""Where units lie: coordinates, clusters and neighbours of all units of equal length."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lego import projection
from lego.adapter import Adapter, module_kind, module_layer
from lego.cluster import partitions
from lego.errors import AdapterError
from lego.registry import resolve_rank, rows_by_rank
from lego.threads import one_thread
from lego.units import Pool, module_names, pools, signature


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
        pools: the units themselves, module by module.
    """

    adapters: tuple[str, ...]
    modules: tuple[str, ...]
    adapter: Int[np.ndarray, " units"]
    module: Int[np.ndarray, " units"]
    layer: Int[np.ndarray, " units"]
    rank_index: Int[np.ndarray, " units"]
    norm: Float[np.ndarray, " units"]
    pools: tuple[Pool, ...]

    def __len__(self) -> int:
        return len(self.adapter)

    def vectors(self) -> Float[Tensor, "units length"]:
        """The units side by side, fp32: put together anew each time, so that a map holds them once."""
        place = {module: (pool, row) for pool in self.pools for row, module in enumerate(pool.modules)}
        d_in, d_out = self.pools[0].down.shape[2], self.pools[0].up.shape[1]
        units, start = torch.empty(len(self), d_in + d_out), 0

        def copy(pool: Pool, row: int, rows: Tensor) -> None:
            with one_thread():
                rows[:, :d_in], rows[:, d_in:] = pool.down[row], pool.up[row].T

        with ThreadPoolExecutor(torch.get_num_threads()) as workers:
            copies = []
            for pool, row in (place[module] for module in self.modules):
                copies.append(workers.submit(copy, pool, row, units[start : start + pool.units]))
                start += pool.units
        for done in copies:
            done.result()
        return units

    def neighbours(self, unit: int, count: int = 5) -> list[int]:
        """The nearest other units, nearest first."""
        units = self.vectors()
        distance = torch.cdist(units[unit][None], units, compute_mode="donot_use_mm_for_euclid_dist")[0]
        distance[unit] = torch.inf
        return distance.argsort(stable=True)[: min(count, len(self) - 1)].tolist()

    def alike(self, unit: int) -> Float[np.ndarray, " units"]:
        """Cosine of every unit with one of them as the rank-one updates b aᵀ: cos(a, a') · cos(b, b'), from −1 to 1."""
        start = np.flatnonzero(self.module == self.module[unit])[0]
        place = {module: (pool, row) for pool in self.pools for row, module in enumerate(pool.modules)}
        pool, row = place[self.modules[self.module[unit]]]
        a, b = pool.down[row, unit - start], pool.up[row, :, unit - start]
        found: dict[str, np.ndarray] = {}
        for other in self.pools:
            squares = [gram.diagonal(dim1=1, dim2=2).double() for gram in (other.gram_down, other.gram_up)]
            size = (squares[0] * squares[1]).clamp_min(0).sqrt() * a.norm().double() * b.norm().double()
            inner = (other.down @ a).double() * (b @ other.up).double()
            cosine = torch.where(size > 0, inner / size.clamp_min(1e-300), 0)
            found.update(zip(other.modules, cosine.clamp(-1, 1).numpy(), strict=True))
        return np.concatenate([found[module] for module in self.modules])

    def pca(self) -> projection.Coordinates:
        """The two principal components of the centred units, at once."""
        return projection.principal_components(self.vectors(), 2)

    def components(self) -> Float[np.ndarray, "units components"]:
        """The principal components that UMAP starts from: the picture of `umap` is `projection.umap` of these, in any process."""
        return projection.principal_components(self.vectors(), projection.COMPONENTS, projection.COARSE)

    def umap(self, seed: int = 0, neighbours: int = 15) -> projection.Coordinates:
        """UMAP of the units: the same picture each time."""
        return projection.umap(self.components(), seed, neighbours)

    def clusters(self, k: int | str = "2r", restarts: int = 8) -> Int[np.ndarray, " units"]:
        """The cluster of each unit within its module: the very partition that a LEGO merge of the same k and seed makes."""
        if str(k).endswith("%"):
            split = [(pool.rows(rows), n) for pool in self.pools for n, rows in rows_by_rank(pool, str(k)).items()]
        else:
            split = [(pool, resolve_rank(k, pool)) for pool in self.pools]
        labels = partitions([pool for pool, _ in split], [n for _, n in split], restarts)
        found = {
            module: row
            for (pool, _), rows in zip(split, labels, strict=True)
            for module, row in zip(pool.modules, rows.numpy(), strict=True)
        }
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
        AdapterError: when the modules' units have different lengths, or there are none, as where all weights are 0.
    """
    asked = resolve(adapters, modules) if isinstance(modules, str) else list(modules)
    if not asked:
        raise AdapterError("no modules are given", None, "Choose at least one.")
    names = module_names(adapters, weights)
    wanted = [module for module in asked if module in names] or asked
    shapes = {signature(adapters, weights or [1.0] * len(adapters), module)[0][:2] for module in wanted}
    if len(shapes) > 1:
        told = ", ".join(f"{d_in} → {d_out}" for d_in, d_out in sorted(shapes))
        raise AdapterError(
            f"these modules have units of different lengths ({told})", None, "Choose modules of one shape."
        )
    groups = tuple(pools(adapters, weights, seed, modules=wanted))
    place = {module: (pool, row) for pool in groups for row, module in enumerate(pool.modules)}
    order = [module for module in names if module in place]
    counts = [place[module][0].units for module in order]
    owner = [place[module][0].owner for module in order]
    squares = [place[module][0].gram[place[module][1]].diagonal() for module in order]
    return UnitMap(
        adapters=tuple(adapter.name for adapter in adapters),
        modules=tuple(order),
        adapter=torch.cat(owner).numpy(),
        module=np.repeat(np.arange(len(order)), counts),
        layer=np.repeat([module_layer(module) for module in order], counts),
        rank_index=np.concatenate([rank_indices(ids.numpy()) for ids in owner]),
        norm=torch.cat(squares).clamp_min(0).sqrt().numpy(),
        pools=groups,
    )


def rank_indices(owner: Int[np.ndarray, " units"]) -> Int[np.ndarray, " units"]:
    """Each unit's row within its own adapter: 0, 1, 2, … anew for every owner."""
    return np.concatenate([np.arange(count) for count in np.unique(owner, return_counts=True)[1]])
