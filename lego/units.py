"""The pool of units: every unit of every adapter, for one or many modules of one shape.

A unit (the paper's Minimal Semantic Unit) is row i of A joined to column i of B. Concatenating the units of several LoRAs is
summing their updates (arXiv 2409.16167, section 3), so a pool *is* the exact target D = Σ_j w_j s_j B_j A_j.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lego.adapter import Adapter, ModuleSpec, natural_order
from lego.errors import AdapterError
from lego.lowrank import Core, core_of
from lego.weights import Weight, check_weights, computable, weight_at

# Weights of one group of modules in memory at a time, in bytes of fp32.
GROUP_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Whole:
    """All pools of a merge, for what has to see every module at once.

    Attributes:
        pools: reads them again.
        memo: what was found, for the other pools of the same merge.
        lock: of the memo, since groups are merged side by side.
    """

    pools: Callable[[], Iterable[Pool]] = tuple
    memo: dict[Any, Any] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


@dataclass(frozen=True)
class Pool:
    """The units of all sources in M modules of one shape, sources side by side.

    ``up @ down`` is D of each module: sqrt(|w_j s_j|) is folded into both halves, the sign of w_j s_j into ``up``.

    Attributes:
        modules: the M modules' names.
        down: rows of A, (M, units, d_in), fp32.
        up: columns of B, (M, d_out, units), fp32.
        weight: w_j of each unit, (M, units).
        scale: s_j of each unit, (M, units).
        owner: which source a unit comes from, (units,).
        total_weight: Σ_j |w_j| over all sources of the merge, also those that do not adapt these modules, (M,).
        seed: of the merge.
        whole: the merge.
    """

    modules: tuple[str, ...]
    down: Float[Tensor, "modules units d_in"]
    up: Float[Tensor, "modules d_out units"]
    weight: Float[Tensor, "modules units"]
    scale: Float[Tensor, "modules units"]
    owner: Int[Tensor, " units"]
    total_weight: Float[Tensor, " modules"]
    seed: int = 0
    whole: Whole = field(default_factory=Whole, repr=False)

    @property
    def units(self) -> int:
        """|Φ|, the number of units in one module."""
        return self.down.shape[1]

    @property
    def coefficient(self) -> Float[Tensor, "modules units"]:
        """w_j s_j of each unit."""
        return self.weight * self.scale

    @property
    def present(self) -> list[int]:
        """The sources that adapt these modules."""
        return self.owner.unique().tolist()

    @property
    def ranks(self) -> list[int]:
        """r_j of each source that is present."""
        return [int((self.owner == source).sum()) for source in self.present]

    @cached_property
    def gram_down(self) -> Float[Tensor, "modules units units"]:
        """A Aᵀ."""
        return self.down @ self.down.mT

    @cached_property
    def gram_up(self) -> Float[Tensor, "modules units units"]:
        """Bᵀ B."""
        return self.up.mT @ self.up

    @cached_property
    def gram(self) -> Float[Tensor, "modules units units"]:
        """Inner products of the units, A Aᵀ + Bᵀ B: all that k-means and PCA need to know of them."""
        return self.gram_down + self.gram_up

    @cached_property
    def core(self) -> Core:
        """Singular values of D and the small matrices that turn units into its singular vectors."""
        return core_of(self.down, self.up)

    def rows(self, rows: list[int]) -> Pool:
        """The pool of some of the modules."""
        part = {name: getattr(self, name)[rows] for name in ("down", "up", "weight", "scale", "total_weight")}
        return replace(self, modules=tuple(self.modules[row] for row in rows), **part)

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


def pool(
    adapters: Sequence[Adapter],
    modules: str | Sequence[str],
    weights: Sequence[Weight] | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    whole: Whole | None = None,
) -> Pool:
    """The pool of modules of one shape.

    A source has no units in the pool where its weight is 0, so that it cannot shape a merge.

    Args:
        adapters: the sources.
        modules: names of modules that agree in shape and in each source's rank.
        weights: w_j, one for each source, 1 each unless given.
        seed: for what draws random numbers later.
        device: where the pool's tensors lie.
        whole: the merge that the pool is a part of; these modules alone unless given.

    Raises:
        AdapterError: when no source adapts the modules, their shapes disagree between sources, or a weight times a scale is too
            small or too large for fp32.
    """
    modules = (modules,) if isinstance(modules, str) else tuple(modules)
    found = check_weights(adapters, weights)
    signatures = {signature(adapters, found, module) for module in modules}
    if len(signatures) > 1:
        raise AdapterError("modules of different shapes or ranks cannot share a pool", ", ".join(modules[:2]))
    (d_in, d_out, *_), ranks = signatures.pop()
    units = sum(ranks)
    down, up = torch.empty(len(modules), units, d_in), torch.empty(len(modules), d_out, units)
    weight, scale = torch.empty(len(modules), units), torch.empty(len(modules), units)
    total = torch.empty(len(modules))
    for m, module in enumerate(modules):
        total[m] = sum(abs(weight_at(w, module)) for w in found)
        start = 0
        for j, rank in enumerate(ranks):
            if not rank:
                continue
            part, w, own = adapters[j][module], weight_at(found[j], module), slice(start, start + rank)
            coefficient = w * part.scale
            if not coefficient or not computable(coefficient):
                raise AdapterError(
                    f"its scale {part.scale:g} times its weight {w:g} is nothing fp32 can compute with",
                    f"{adapters[j].name}, {module}",
                )
            torch.mul(part.down, abs(coefficient) ** 0.5, out=down[m, own])
            torch.mul(part.up, signed_root(coefficient), out=up[m, :, own])
            weight[m, own], scale[m, own] = w, part.scale
            start += rank
    owner = torch.repeat_interleave(torch.arange(len(ranks)), torch.tensor(ranks))
    down, up, weight, scale = (tensor.to(device) for tensor in (down, up, weight, scale))
    whole = whole or Whole(lambda: [pool(adapters, modules, weights, seed, device)])
    return Pool(modules, down, up, weight, scale, owner.to(device), total.to(device), seed, whole)


def signed_root(value: float) -> float:
    """sign(x)·sqrt(|x|)."""
    return abs(value) ** 0.5 * (1 if value >= 0 else -1)


# What the modules of one pool share: their form and each source's rank, 0 where it is absent or weighs nothing.
Signature = tuple[tuple[int, int, tuple[int, ...], bool], tuple[int, ...]]


def signature(adapters: Sequence[Adapter], weights: Sequence[Weight], module: str) -> Signature:
    """A module's form and ranks: modules that agree in them share a pool.

    Raises:
        AdapterError: when two adapters disagree about the form, as adapters of different bases do, or none has the module at a
            weight other than 0.
    """
    specs = [(adapter.name, adapter.modules[module]) for adapter in adapters if module in adapter.modules]
    forms = {spec.form for _, spec in specs}
    if not forms:
        raise AdapterError(f"no adapter has a module {module!r}")
    if len(forms) > 1:
        told = ", ".join(f"{name}: {form_text(spec)}" for name, spec in specs)
        raise AdapterError(f"the adapters disagree about its shape ({told})", module, "They belong to different bases.")
    ranks = tuple(
        adapter.modules[module].rank if module in adapter.modules and weight_at(weight, module) else 0
        for adapter, weight in zip(adapters, weights, strict=True)
    )
    if not any(ranks):
        raise AdapterError("has weight 0 in every adapter that adapts it", module)
    return forms.pop(), ranks


def form_text(spec: ModuleSpec) -> str:
    """``576 → 192``, with the kernel of a convolution."""
    kernel = f", kernel {'×'.join(map(str, spec.kernel))}" if spec.kernel else ""
    return f"{'embedding ' if spec.embedding else ''}{spec.d_in} → {spec.d_out}{kernel}"


def module_names(adapters: Sequence[Adapter], weights: Sequence[Weight] | None = None) -> list[str]:
    """Every module that a source of non-zero weight adapts, in natural order."""
    found = check_weights(adapters, weights)
    every = {module for a, w in zip(adapters, found, strict=True) for module in a.modules if weight_at(w, module)}
    return sorted(every, key=natural_order)


def groups(
    adapters: Sequence[Adapter], weights: Sequence[Weight] | None = None, modules: Sequence[str] | None = None
) -> list[list[str]]:
    """All modules (or the given ones) in groups that can share a pool and fit in memory.

    Raises:
        AdapterError: as `signature` does.
    """
    found = check_weights(adapters, weights)
    alike: dict[Signature, list[str]] = {}
    for module in module_names(adapters, found) if modules is None else modules:
        alike.setdefault(signature(adapters, found, module), []).append(module)
    cut = []
    for ((d_in, d_out, *_), ranks), names in alike.items():
        size = max(1, GROUP_BYTES // (4 * (d_in + d_out) * sum(ranks)))
        cut += [names[start : start + size] for start in range(0, len(names), size)]
    return cut


def pools(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight] | None = None,
    seed: int = 0,
    modules: Sequence[str] | None = None,
) -> Iterator[Pool]:
    """Pools of all modules (or the given ones), group by group.

    Raises:
        AdapterError: as `pool` does.
    """
    for names in groups(adapters, weights, modules):
        yield pool(adapters, names, weights, seed)
