"""What a merge did: ranks, weights, norms before and after, fidelity, warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from pydantic import BaseModel, BeforeValidator

from lego.adapter import Adapter, natural_order
from lego.fidelity import Fidelity
from lego.registry import Method
from lego.units import Pool
from lego.weights import Weight, shown, weighs

# A share of ‖D‖: infinite against a D of zero, for which JSON has no word but null.
Share = Annotated[float, BeforeValidator(lambda value: math.inf if value is None else value)]


class SourceReport(BaseModel):
    """One source of a merge: ‖s B A‖_F is its norm, before its weight, over the modules where that is not 0."""

    name: str
    origin: str | None = None
    license: str | None = None
    sha256: str
    weight: float | dict[str, float]
    ranks: list[int]
    modules: int
    norm: float


class ModuleReport(BaseModel):
    """What became of one module."""

    module: str
    units: int
    rank: int
    relative_error: Share
    norm_ratio: Share
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
    relative_error: Share
    norm_ratio: Share
    cosine: float
    seconds: float
    export_error: float | None = None
    warnings: list[str]
    per_module: list[ModuleReport]

    @property
    def fidelity(self) -> str:
        """The three measures over all modules, in words."""
        return f"relative error {self.relative_error:.4g}, norm ratio {self.norm_ratio:.4g}, cosine {self.cosine:.4g}"

    def text(self) -> str:
        """The report for a terminal, without the modules' own lines."""
        ranks = f"{self.rank_min}" if self.rank_min == self.rank_max else f"{self.rank_min}–{self.rank_max}"
        given = ", ".join(f"{name}={value}" for name, value in self.parameters.items())
        lines = [f"{self.method} ({given}), seed {self.seed}"]
        lines += [
            f"  {shown(s.weight)} × {s.name}  rank {spread(s.ranks)}, {s.modules} modules, norm {s.norm:.4g}"
            for s in self.sources
        ]
        lines += [
            f"  → {self.name}: {self.modules} modules, rank {ranks}, {self.seconds:.2f} s",
            f"  against the exact sum: {self.fidelity}",
            f"  norm {self.norm_before:.4g} → {self.norm_after:.4g}",
        ]
        if self.export_error is not None:
            lines.append(f"  rounding on export: relative error {self.export_error:.2g}")
        return "\n".join([*lines, *(f"  warning: {warning}" for warning in self.warnings)])


def spread(ranks: Sequence[int]) -> str:
    """``8`` or ``4–16``."""
    return f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)}–{max(ranks)}"


def licence_of(adapter: Adapter) -> str | None:
    """As its card states it: one, or a list of several."""
    found = adapter.card.get("license")
    several = found if isinstance(found, list) else [found]
    return ", ".join(name for name in several if name and isinstance(name, str)) or None


def source_norms(pool: Pool, sources: int) -> torch.Tensor:
    """Σ over the pool's modules of ‖s_j B_j A_j‖_F², (sources,), fp64."""
    products = pool.gram_down.double() * pool.gram_up.double() / pool.weight.double().square()[:, :, None]
    norms = torch.zeros(sources, dtype=torch.float64)
    for source in pool.present:
        own = pool.owner == source
        norms[source] = products[:, own][:, :, own].sum().clamp_min(0)
    return norms


def module_reports(lines: Sequence[tuple[str, int, int]], fidelity: Fidelity) -> list[ModuleReport]:
    """One line a module in natural order, from (module, units, merged rank) in the order of ``fidelity``."""
    measures = torch.stack([fidelity.relative_error, fidelity.norm_ratio, fidelity.cosine], 1).tolist()
    found = [
        ModuleReport(module=module, units=units, rank=rank, relative_error=error, norm_ratio=ratio, cosine=cosine)
        for (module, units, rank), (error, ratio, cosine) in zip(lines, measures, strict=True)
    ]
    return sorted(found, key=lambda line: natural_order(line.module))


def warnings_of(
    adapters: Sequence[Adapter],
    weights: Sequence[Weight],
    every: Fidelity,
    method: Method,
    lines: Sequence[tuple[str, int, int]],
) -> list[str]:
    """What the maker of a merge should know and would not see; ``lines`` as `module_reports` takes them."""
    found = []
    pairs = list(zip(adapters, weights, strict=True))
    used = [adapter for adapter, weight in pairs if weighs(adapter, weight)]
    if method.name == "lego" and len(used) > 1 and all(rank == units for _, units, rank in lines):
        found.append("there are as many clusters as units, so none were merged: take a smaller k")
    if idle := [adapter.name for adapter, weight in pairs if not weighs(adapter, weight)]:
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
    if not 0.5 <= ratio <= 2 and not method.normalised:
        found.append(f"the merged update is {ratio:.2g} times as strong as the exact sum: adjust strength")
    if float(every.relative_error) > 0.7 and not method.unit_invariant:
        found.append("merging A and B apart adds cross terms: this is far from the sum of the adapters")
    return found
