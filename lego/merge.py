"""Merge adapters: group the modules, run the method on each group's pool, and report what was done."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from lego.adapter import Adapter, Factors, finite, natural_order
from lego.errors import AdapterError
from lego.fidelity import Fidelity, compare
from lego.recipe import Recipe, Source
from lego.registry import Method
from lego.registry import method as find_method
from lego.units import Pool, check_weights, module_names, pools

VERSION = "0.1.0"


class SourceReport(BaseModel):
    """One source of a merge: ‖s B A‖_F over all its modules is its norm, before its weight."""

    name: str
    sha256: str
    weight: float
    ranks: list[int]
    modules: int
    norm: float


class ModuleReport(BaseModel):
    """What became of one module."""

    module: str
    units: int
    rank: int
    relative_error: float
    norm_ratio: float
    cosine: float


class MergeReport(BaseModel):
    """What a merge did. Norms and fidelity are against the exact sum D of the weighted sources, over all modules together."""

    name: str
    method: str
    parameters: dict[str, Any]
    seed: int
    sources: list[SourceReport]
    modules: int
    rank_min: int
    rank_max: int
    norm_before: float
    norm_after: float
    relative_error: float
    norm_ratio: float
    cosine: float
    seconds: float
    export_error: float | None = None
    warnings: list[str]
    per_module: list[ModuleReport]

    def text(self) -> str:
        """The report for a terminal, without the modules' own lines."""
        ranks = f"{self.rank_min}" if self.rank_min == self.rank_max else f"{self.rank_min}–{self.rank_max}"
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        lines = [f"{self.method} ({given}), seed {self.seed}"]
        lines += [
            f"  {s.weight:+g} × {s.name}  rank {spread(s.ranks)}, {s.modules} modules, norm {s.norm:.4g}"
            for s in self.sources
        ]
        lines += [
            f"  → {self.name}: {self.modules} modules, rank {ranks}, {self.seconds:.2f} s",
            f"  against the exact sum: relative error {self.relative_error:.4g}, norm ratio {self.norm_ratio:.4g}, "
            f"cosine {self.cosine:.4g}",
            f"  norm {self.norm_before:.4g} → {self.norm_after:.4g}",
        ]
        if self.export_error is not None:
            lines.append(f"  rounding on export: relative error {self.export_error:.2g}")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def spread(ranks: Sequence[int]) -> str:
    """``8`` or ``4–16``."""
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"


def merge(
    adapters: Sequence[Adapter],
    *,
    method: str = "lego",
    weights: Sequence[float] | None = None,
    seed: int = 0,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    **parameters: Any,
) -> Adapter:
    """Merge adapters into one, in memory.

    Args:
        adapters: the sources; any mix of ranks, scales and target modules, of one base. The first names it.
        method: one of `lego.methods()`.
        weights: w_j, negative ones too; 1 each unless given.
        seed: of everything random.
        name: of the merged adapter.
        progress: called with (modules done, modules in all) after each group; may raise to stop the merge.
        **parameters: of the method; see ``lego.methods()[method].parameters``.

    Returns:
        The merged adapter, with its `MergeReport` and its `Recipe`.

    Raises:
        AdapterError: for parameters, weights or adapters that cannot be used together.
    """
    start, chosen = time.perf_counter(), find_method(method)
    values, found = chosen.validate(parameters), check_weights(adapters, weights)
    config, base = shared_config(adapters), next((a.base_model for a in adapters if a.base_model), None)
    name = name or f"{method}-" + "-".join(adapter.name for adapter in adapters)

    merged: dict[str, Factors] = {}
    parts: list[Fidelity] = []
    units: dict[str, int] = {}
    norms = torch.zeros(len(adapters), dtype=torch.float64)
    total = len(module_names(adapters, found))
    for pool in pools(adapters, found, seed):
        down, up = chosen(pool, **values)
        for module, a, b in zip(pool.modules, down, up, strict=True):
            merged[module] = Factors(finite(a, f"{name}, {module}"), finite(b, f"{name}, {module}"))
            units[module] = pool.units
        parts.append(compare(down, up, pool.down, pool.up))
        norms += source_norms(pool, found)
        if progress:
            progress(len(merged), total)

    fidelity = Fidelity.joined(parts)
    result = Adapter.from_factors(name, merged, base_model=base, config=config)
    result.recipe = recipe_of(adapters, found, method, values, seed, base)
    sources = [
        SourceReport(name=a.name, sha256=a.sha256, weight=w, ranks=list(a.ranks), modules=len(a.modules), norm=norm)
        for a, w, norm in zip(adapters, found, norms.sqrt().tolist(), strict=True)
    ]
    every = fidelity.total()
    result.report = MergeReport(
        name=name,
        method=method,
        parameters=values,
        seed=seed,
        sources=sources,
        modules=len(merged),
        rank_min=result.ranks[0],
        rank_max=result.ranks[-1],
        norm_before=float(every.target.sqrt()),
        norm_after=float(every.merged.sqrt()),
        relative_error=float(every.relative_error),
        norm_ratio=float(every.norm_ratio),
        cosine=float(every.cosine),
        seconds=time.perf_counter() - start,
        warnings=warnings_of(adapters, found, every, chosen),
        per_module=module_reports(merged, units, fidelity),
    )
    return result


def shared_config(adapters: Sequence[Adapter]) -> dict[str, Any]:
    """The facts of the sources' format that the merged adapter keeps.

    Raises:
        AdapterError: when they contradict each other.
    """
    shared: dict[str, Any] = {}
    for adapter in adapters:
        for key, value in adapter.config.items():
            if shared.setdefault(key, value) != value:
                raise AdapterError(f"has {key}={value!r}, another source {shared[key]!r}", adapter.name)
    return shared


def source_norms(pool: Pool, weights: Sequence[float]) -> torch.Tensor:
    """Σ over the pool's modules of ‖s_j B_j A_j‖_F², (sources,), fp64."""
    norms = torch.zeros(len(weights), dtype=torch.float64)
    for source in pool.present:
        own = pool.owner == source
        down, up = pool.down[:, own].double(), pool.up[:, :, own].double()
        norms[source] = ((down @ down.mT) * (up.mT @ up)).sum() / weights[source] ** 2
    return norms


def recipe_of(
    adapters: Sequence[Adapter],
    weights: Sequence[float],
    method: str,
    values: dict[str, Any],
    seed: int,
    base: str | None,
) -> Recipe:
    """The merge as data."""
    sources = [
        Source(name=a.name, path=str(a.path) if a.path else None, sha256=a.sha256, weight=w)
        for a, w in zip(adapters, weights, strict=True)
    ]
    return Recipe(brickyard=VERSION, base_model=base, sources=sources, method=method, parameters=values, seed=seed)


def module_reports(merged: dict[str, Factors], units: dict[str, int], fidelity: Fidelity) -> list[ModuleReport]:
    """One line a module, in natural order."""
    measures = torch.stack([fidelity.relative_error, fidelity.norm_ratio, fidelity.cosine], 1).tolist()
    lines = {
        module: ModuleReport(
            module=module, units=units[module], rank=factors.rank, relative_error=error, norm_ratio=ratio, cosine=cosine
        )
        for (module, factors), (error, ratio, cosine) in zip(merged.items(), measures, strict=True)
    }
    return [lines[module] for module in sorted(merged, key=natural_order)]


def warnings_of(adapters: Sequence[Adapter], weights: Sequence[float], every: Fidelity, method: Method) -> list[str]:
    """What the maker of a merge should know and would not see."""
    found = []
    used = [adapter for adapter, weight in zip(adapters, weights, strict=True) if weight]
    if idle := [adapter.name for adapter, weight in zip(adapters, weights, strict=True) if not weight]:
        found.append(f"weight 0, so not in the merge: {', '.join(idle)}")
    if len(bases := dict.fromkeys(adapter.base_model for adapter in used if adapter.base_model)) > 1:
        found.append(
            f"the sources name different bases ({', '.join(bases)}): merge them only if these hold the same weights"
        )
    sets = {frozenset(adapter.modules) for adapter in used}
    if len(sets) > 1:
        found.append("the adapters adapt different modules; a module is merged from those that adapt it")
    if len({adapter.ranks for adapter in used}) > 1 and not method.unit_invariant:
        found.append("the ranks differ, so the smaller factors were padded with zero units; PEFT refuses this")
    ratio = float(every.norm_ratio)
    if not 0.5 <= ratio <= 2 and method.name != "average":
        found.append(f"the merged update is {ratio:.2g} times as strong as the exact sum: adjust strength")
    if float(every.relative_error) > 0.7 and not method.unit_invariant:
        found.append("merging A and B apart adds cross terms: this is far from the sum of the adapters")
    return found
