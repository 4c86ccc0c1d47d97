"""Adapters beside each other: how far each is from each, what they would do to each other, and what became of a merge's sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lego.adapter import Adapter
from lego.effective import EffectiveWeights, Products, effective_weights, inner_products
from lego.errors import AdapterError
from lego.fidelity import Fidelity
from lego.interference import Interference, interference
from lego.recipe import Source
from lego.tables import LINES, grid, left_out, short
from lego.weights import Weight


@dataclass(frozen=True, eq=False)
class MergeCheck:
    """A merged adapter against the exact sum D of its sources at the weights of its recipe.

    Attributes:
        name: of the merged adapter.
        weights: w_j of its recipe, in the order of ``effective.sources``.
        modules: names, in natural order.
        fidelity: of each module against D.
        effective: the weights that the sources really have in it.
    """

    name: str
    weights: tuple[Weight, ...]
    modules: tuple[str, ...]
    fidelity: Fidelity
    effective: EffectiveWeights

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold."""
        overall = {name: finite(getattr(self.fidelity.total(), name).numpy())[0] for name in MEASURES}
        columns = [finite(getattr(self.fidelity, name).numpy()) for name in MEASURES]
        modules = [
            {"module": module, **dict(zip(MEASURES, values, strict=True))}
            for module, *values in zip(self.modules, *columns, strict=True)
        ]
        effective = self.effective.as_dict()
        return {"name": self.name, "weights": list(self.weights), **overall, "modules": modules, "effective": effective}


MEASURES = ("relative_error", "norm_ratio", "cosine")


@dataclass(frozen=True, eq=False)
class Comparison:
    """N adapters against each other.

    Attributes:
        adapters: names.
        products: their inner products by module.
        merges: those of them that carry a recipe whose sources are all among them, against the exact sum of these.
        missing: merged adapters whose sources are not all among them, and which are not.
        apart: pairs that adapt no module together, of which the measures say nothing.
        interference: between those that are not such merges; None when there are fewer than two.
    """

    adapters: tuple[str, ...]
    products: Products
    merges: tuple[MergeCheck, ...]
    missing: dict[str, list[str]]
    apart: tuple[tuple[str, str], ...]
    interference: Interference | None

    @property
    def pairs(self) -> Fidelity:
        """Adapter j measured against adapter i, row by row in an (N, N) table flattened to N²; all modules together."""
        return between(self.products.inner.sum(0))

    def table(self, measure: str) -> Float[np.ndarray, "n n"]:
        """One measure of `Fidelity` at [i, j]: adapter j against reference i, all modules together."""
        return getattr(self.pairs, measure).numpy().reshape(len(self.adapters), -1)

    def text(self) -> str:
        """Everything for a terminal, 100 columns."""
        count, columns = len(self.adapters), [self.table(name) for name in MEASURES]
        order = sorted(((i, j) for i in range(count) for j in range(count) if i != j), key=lambda p: -columns[0][p])
        rows = [
            [short(self.adapters[j], 28), short(self.adapters[i], 28), *(f"{column[i, j]:.4g}" for column in columns)]
            for i, j in order[:LINES]
        ]
        lines = grid(["adapter", "against", "relative error", "norm ratio", "cosine"], rows, left=(0, 1))
        lines += left_out(len(order), "pairs")
        for check in self.merges:
            every = check.fidelity.total()
            told = ", ".join(f"{name.replace('_', ' ')} {float(getattr(every, name)):.4g}" for name in MEASURES)
            lines += ["", f"{short(check.name, 28)} against the exact sum: {told}", check.effective.text()]
        lines += [""] if self.apart else []
        for one, other in self.apart[:LINES]:
            lines.append(f"{short(one, 28)} and {short(other, 28)} adapt no module together; are they for one base?")
        lines += left_out(len(self.apart), "such pairs")
        for name, sources in self.missing.items():
            lines += ["", f"{short(name, 28)}: sources not given: {short(', '.join(sources), 50)}"]
        if self.interference:
            lines += ["", self.interference.text()]
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold; [i][j] is adapter j against reference i, null where infinite."""

        def tables(inner: np.ndarray) -> dict[str, Any]:
            found, shape = between(inner), (len(self.adapters), -1)
            return {name: finite(getattr(found, name).numpy().reshape(shape)) for name in MEASURES}

        modules = zip(self.products.modules, self.products.inner, strict=True)
        return {
            "adapters": list(self.adapters),
            "overall": tables(self.products.inner.sum(0)),
            "modules": [{"module": module, **tables(inner)} for module, inner in modules],
            "merges": [check.as_dict() for check in self.merges],
            "sources_not_given": self.missing,
            "no_module_together": [list(pair) for pair in self.apart],
            "interference": self.interference.as_dict() if self.interference else None,
        }


def compare(adapters: Sequence[Adapter]) -> Comparison:
    """Compare adapters with each other, and merges with the sources among them (known by their hashes).

    Args:
        adapters: two or more, of one base.

    Raises:
        AdapterError: for fewer, or when shapes disagree.
    """
    if len(adapters) < 2:
        raise AdapterError("there is nothing to compare with", None, "Give at least two adapters.")
    merges, missing = {}, {}
    for number, adapter in enumerate(adapters):
        if adapter.recipe is None:
            continue
        recipe = adapter.recipe.sources
        sources = [source for source in (given(s, adapters) for s in recipe) if source]
        if len(sources) == len(recipe):
            merges[number] = check_merge(adapter, sources, [source.weight for source in recipe])
        else:
            missing[adapter.name] = [s.name or s.path or s.hub or "?" for s in recipe if not given(s, adapters)]
    rest = [adapter for number, adapter in enumerate(adapters) if number not in merges]
    return Comparison(
        tuple(adapter.name for adapter in adapters),
        inner_products(adapters),
        tuple(merges.values()),
        missing,
        tuple((a.name, b.name) for a, b in combinations(adapters, 2) if a.modules.keys().isdisjoint(b.modules)),
        interference(rest) if len(rest) > 1 else None,
    )


def given(source: Source, adapters: Sequence[Adapter]) -> Adapter | None:
    """The adapter that a recipe means, by its hash; by its name too where copies of one file differ in their config."""
    same = [adapter for adapter in adapters if adapter.sha256 == source.sha256]
    return next((adapter for adapter in same if adapter.name == source.name), same[0] if same else None)


def check_merge(merged: Adapter, sources: Sequence[Adapter], weights: Sequence[Weight]) -> MergeCheck:
    """A merged adapter against D = Σ_j w_j D_j.

    Raises:
        AdapterError: when shapes disagree.
    """
    products = inner_products([merged, *sources], [1.0, *weights])
    whole, inner, target = (
        torch.from_numpy(part.copy())
        for part in (
            products.inner[:, 0, 0],
            products.inner[:, 0, 1:].sum(1),
            products.inner[:, 1:, 1:].sum((1, 2)).clip(0),
        )
    )
    fidelity = Fidelity(whole, target, inner, (whole + target - 2 * inner).clamp_min(0))
    return MergeCheck(merged.name, tuple(weights), products.modules, fidelity, effective_weights(merged, sources))


def between(inner: Float[np.ndarray, "n n"]) -> Fidelity:
    """Each vector j against each i, flattened to N²; i is the target."""
    norms, found = torch.from_numpy(np.diagonal(inner).copy()), torch.from_numpy(inner.copy())
    merged, target = norms[None].expand_as(found).flatten(), norms[:, None].expand_as(found).flatten()
    found = found.flatten()
    return Fidelity(merged, target, found, (merged + target - 2 * found).clamp_min(0))


def finite(values: np.ndarray) -> Any:
    """Nested lists with None for what is infinite, which JSON has no word for."""
    if values.ndim:
        return [finite(value) for value in values]
    return float(values) if np.isfinite(values) else None
