"""The pool of units: every unit of every adapter, for one or many modules of one shape.

A unit (the paper's Minimal Semantic Unit) is row i of A joined to column i of B. Concatenating the units of several LoRAs is
summing their updates (arXiv 2409.16167, section 3), so a pool *is* the exact target D = Σ_j w_j s_j B_j A_j.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lego.adapter import Adapter, natural_order
from lego.errors import AdapterError

# Weights of one group of modules in memory at a time, in bytes of fp32.
GROUP_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Pool:
    """The units of all sources in M modules of one shape, sources side by side.

    ``up @ down`` is D of each module: sqrt(|w_j s_j|) is folded into both halves, the sign of w_j s_j into ``up``.

    Attributes:
        modules: the M modules' names.
        down: rows of A, (M, units, d_in), fp32.
        up: columns of B, (M, d_out, units), fp32.
        coefficient: w_j s_j of each unit, (M, units).
        owner: which source a unit comes from, (units,).
        total_weight: Σ_j |w_j| over all sources of the merge, also those that do not adapt these modules.
        seed: of the merge.
    """

    modules: tuple[str, ...]
    down: Float[Tensor, "modules units d_in"]
    up: Float[Tensor, "modules d_out units"]
    coefficient: Float[Tensor, "modules units"]
    owner: Int[Tensor, " units"]
    total_weight: float
    seed: int = 0

    @property
    def units(self) -> int:
        """|Φ|, the number of units in one module."""
        return self.down.shape[1]

    @property
    def present(self) -> list[int]:
        """The sources that adapt these modules."""
        return self.owner.unique().tolist()

    @property
    def ranks(self) -> list[int]:
        """r_j of each source that is present."""
        return [int((self.owner == source).sum()) for source in self.present]

    @cached_property
    def gram(self) -> Float[Tensor, "modules units units"]:
        """Inner products of the units, A Aᵀ + Bᵀ B: all that k-means and PCA need to know of them."""
        return self.down @ self.down.mT + self.up.mT @ self.up

    def uniform(self, *shape: int, stream: object = 0) -> Float[Tensor, "modules *shape"]:
        """Random numbers in [0, 1), the same for a module whatever else is merged beside it.

        Args:
            shape: of the numbers of one module.
            stream: tells several draws for one module apart.
        """
        draws = torch.empty(len(self.modules), *shape)
        for row, module in zip(draws, self.modules, strict=True):
            name = f"{self.seed}/{module}/{stream}".encode()
            seed = int.from_bytes(hashlib.blake2b(name, digest_size=7).digest())
            torch.rand(row.shape, generator=torch.Generator().manual_seed(seed), out=row)
        return draws.to(self.down.device)


def check_weights(adapters: Sequence[Adapter], weights: Sequence[float] | None) -> list[float]:
    """One finite weight for each adapter, 1 when none are given.

    Raises:
        AdapterError: for no adapter, a wrong number of weights, one that is not finite, or all zero.
    """
    if not adapters:
        raise AdapterError("no adapter given", None, "Pick at least one.")
    found = [1.0] * len(adapters) if weights is None else [float(weight) for weight in weights]
    if len(found) != len(adapters):
        raise AdapterError(f"{len(found)} weights for {len(adapters)} adapters", None, "Give one weight for each.")
    if not all(abs(weight) < float("inf") for weight in found):
        raise AdapterError(f"weights must be finite numbers, not {found}")
    if not any(found):
        raise AdapterError("all weights are 0, so there is nothing to merge")
    return found


def pool(
    adapters: Sequence[Adapter], modules: str | Sequence[str], weights: Sequence[float] | None = None, seed: int = 0
) -> Pool:
    """The pool of modules of one shape.

    A source of weight 0 has no units in the pool, so that it cannot shape a merge.

    Args:
        adapters: the sources.
        modules: one module's name, or several that have the same shape and ranks in every source.
        weights: w_j, 1 unless given.
        seed: for what draws random numbers later.

    Raises:
        AdapterError: when no source adapts the modules or their shapes disagree between sources.
    """
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    found = check_weights(adapters, weights)
    signatures = {signature(adapters, found, module) for module in modules}
    if len(signatures) > 1:
        raise AdapterError("modules of different shapes or ranks cannot share a pool", ", ".join(modules[:2]))
    downs, ups, coefficients = [], [], []
    present = [j for j, adapter in enumerate(adapters) if found[j] and modules[0] in adapter.modules]
    for module in modules:
        parts = [adapters[j][module] for j in present]
        scales = [found[j] * part.scale for j, part in zip(present, parts, strict=True)]
        downs.append(torch.cat([part.down * abs(c) ** 0.5 for part, c in zip(parts, scales, strict=True)]))
        ups.append(torch.cat([part.up * signed_root(c) for part, c in zip(parts, scales, strict=True)], dim=1))
        coefficients.append(torch.cat([torch.full((part.rank,), c) for part, c in zip(parts, scales, strict=True)]))
    owner = torch.cat([torch.full((adapters[j].modules[modules[0]].rank,), j) for j in present])
    stacked = (torch.stack(downs), torch.stack(ups), torch.stack(coefficients))
    return Pool(modules, *stacked, owner, total_weight=sum(map(abs, found)), seed=seed)


def signed_root(value: float) -> float:
    """sign(x)·sqrt(|x|)."""
    return abs(value) ** 0.5 * (1 if value >= 0 else -1)


Signature = tuple[int, int, tuple[int, ...]]


def signature(adapters: Sequence[Adapter], weights: Sequence[float], module: str) -> Signature:
    """(d_in, d_out, rank in each source; 0 where absent) of a module: modules that agree in it share a pool.

    Raises:
        AdapterError: when two adapters disagree about the shape, as adapters of different bases do, or none has the module.
    """
    specs = [(adapter.name, adapter.modules[module]) for adapter in adapters if module in adapter.modules]
    sizes = {(spec.d_in, spec.d_out) for _, spec in specs}
    if not sizes:
        raise AdapterError(f"no adapter has a module {module!r}")
    if len(sizes) > 1:
        told = ", ".join(f"{name}: {spec.d_in} → {spec.d_out}" for name, spec in specs)
        raise AdapterError(f"the adapters disagree about its shape ({told})", module, "They belong to different bases.")
    ranks = (a.modules[module].rank if w and module in a.modules else 0 for a, w in zip(adapters, weights, strict=True))
    return *sizes.pop(), tuple(ranks)


def module_names(adapters: Sequence[Adapter], weights: Sequence[float] | None = None) -> list[str]:
    """Every module that a source of non-zero weight adapts, in natural order."""
    found = check_weights(adapters, weights)
    every = {module for a, w in zip(adapters, found, strict=True) if w for module in a.modules}
    return sorted(every, key=natural_order)


def pools(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    seed: int = 0,
    modules: Sequence[str] | None = None,
) -> Iterator[Pool]:
    """Pools of all modules (or the given ones), those of one signature together in groups that fit in memory.

    Raises:
        AdapterError: as `pool` does.
    """
    found = check_weights(adapters, weights)
    groups: dict[Signature, list[str]] = {}
    for module in module_names(adapters, found) if modules is None else modules:
        groups.setdefault(signature(adapters, found, module), []).append(module)
    for (d_in, d_out, ranks), modules in groups.items():
        size = max(1, GROUP_BYTES // (4 * (d_in + d_out) * sum(ranks)))
        for start in range(0, len(modules), size):
            yield pool(adapters, modules[start : start + size], found, seed)
