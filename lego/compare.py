"""Adapters beside each other: how far each is from each, what they would do to each other, and what became of a merge's sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lego.adapter import Adapter, natural_order
from lego.errors import AdapterError
from lego.fidelity import Fidelity
from lego.interference import LINES, Interference, divided, grid, interference, left_out, short
from lego.units import pools
from lego.weights import Weight

# Sources whose updates are this nearly dependent share their weight, rather than being given large ones that cancel.
DEPENDENT = 1e-9


@dataclass(frozen=True, eq=False)
class Products:
    """<D_i, D_j> of N adapters in M modules, in natural order: all that follows is made of them.

    Attributes:
        modules: names.
        inner: fp64; 0 where an adapter lacks the module.
    """

    modules: tuple[str, ...]
    inner: Float[np.ndarray, "modules n n"]


def inner_products(adapters: Sequence[Adapter], weights: Sequence[Weight] | None = None) -> Products:
    """Stream <w_i D_i, w_j D_j> module by module, never building a D.

    Raises:
        AdapterError: as `lego.units.pools` does.
    """
    found: dict[str, np.ndarray] = {}
    for pool in pools(adapters, weights):
        down, up = pool.down.double(), pool.up.double()
        member = torch.nn.functional.one_hot(pool.owner, len(adapters)).to(down)
        inner = member.T @ ((down @ down.mT) * (up.mT @ up)) @ member
        found.update(zip(pool.modules, inner.cpu().numpy(), strict=True))
    modules = sorted(found, key=natural_order)
    return Products(tuple(modules), np.stack([found[module] for module in modules]))


@dataclass(frozen=True, eq=False)
class EffectiveWeights:
    """With which weights a merge holds its sources: the w that minimise ‖ΔW − Σ_j w_j D_j‖_F.

    A source that the others contain (the same adapter twice) shares its weight with them: the smallest w that does it.

    Attributes:
        merged, sources: names.
        modules: the M names.
        weights: of each source in each module, 0 where it lacks the module, (M, N).
        explained: 1 − ‖ΔW − Σ_j w_j D_j‖² / ‖ΔW‖², (M,); 1 where ΔW is 0.
        overall, overall_explained: the same with one weight a source for all modules together.
    """

    merged: str
    sources: tuple[str, ...]
    modules: tuple[str, ...]
    weights: Float[np.ndarray, "modules n"]
    explained: Float[np.ndarray, " modules"]
    overall: Float[np.ndarray, " n"]
    overall_explained: float

    def text(self) -> str:
        """The weights for a terminal, the modules that the sources explain least first; 100 columns."""
        order = np.argsort(self.explained, kind="stable")[:LINES]
        shown, names = slice(0, 6), [short(name, 9) for name in self.sources]
        rows = [["all", *(f"{w:.3f}" for w in self.overall[shown]), f"{self.overall_explained:.1%}"]]
        rows += [
            [short(self.modules[m], 36), *(f"{w:.3f}" for w in self.weights[m, shown]), f"{self.explained[m]:.1%}"]
            for m in order
        ]
        more = [f"… and {len(names) - 6} more sources"] if len(names) > 6 else []
        table = grid(["module", *names[shown], "explained"], rows)
        return "\n".join(
            [f"effective weights in {short(self.merged, 60)}", *table, *more, *left_out(len(self.modules), "modules")]
        )

    def as_dict(self) -> dict[str, Any]:
        """Everything as plain data that JSON can hold."""
        modules = zip(self.modules, self.weights.tolist(), self.explained.tolist(), strict=True)
        return {
            "merged": self.merged,
            "sources": list(self.sources),
            "overall": {"weights": self.overall.tolist(), "explained": self.overall_explained},
            "modules": [{"module": m, "weights": w, "explained": share} for m, w, share in modules],
        }


def effective_weights(merged: Adapter, sources: Sequence[Adapter]) -> EffectiveWeights:
    """The weights with which a merged adapter holds its sources, by least squares from inner products.

    Args:
        merged: any adapter, made here or elsewhere.
        sources: at least one, of the same base.

    Raises:
        AdapterError: without sources, or when shapes disagree.
    """
    if not sources:
        raise AdapterError("no sources given", merged.name, "Give the adapters it was merged from.")
    products = inner_products([merged, *sources])
    fits = [fit(inner) for inner in products.inner]
    overall, explained = fit(products.inner.sum(0))
    return EffectiveWeights(
        merged.name,
        tuple(source.name for source in sources),
        products.modules,
        np.stack([weights for weights, _ in fits]),
        np.array([share for _, share in fits]),
        overall,
        explained,
    )


def fit(inner: Float[np.ndarray, "1+n 1+n"]) -> tuple[Float[np.ndarray, " n"], float]:
    """Least squares of the first vector by the others, from their inner products: weights and share explained."""
    square, target = inner[1:, 1:], inner[1:, 0]
    sizes = np.sqrt(np.maximum(np.diagonal(square), 0))
    inverse = divided(
        np.ones_like(sizes), sizes
    )  # each source as long as the others, so that none is taken for rounding
    cosines = square * inverse[:, None] * inverse
    weights = inverse * (np.linalg.pinv(cosines, rcond=DEPENDENT, hermitian=True) @ (target * inverse))
    if inner[0, 0] <= 0:
        return weights, 1.0
    rest = inner[0, 0] - 2 * weights @ target + weights @ square @ weights
    return weights, float(np.clip(1 - rest / inner[0, 0], 0, 1))


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
        interference: between those that are not such merges; None when there are fewer than two.
    """

    adapters: tuple[str, ...]
    products: Products
    merges: tuple[MergeCheck, ...]
    missing: dict[str, list[str]]
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
        lines = grid(["adapter", "against", "relative error", "norm ratio", "cosine"], rows)
        lines += left_out(len(order), "pairs")
        for check in self.merges:
            every = check.fidelity.total()
            told = ", ".join(f"{name.replace('_', ' ')} {float(getattr(every, name)):.4g}" for name in MEASURES)
            lines += ["", f"{short(check.name, 28)} against the exact sum: {told}", check.effective.text()]
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
    by_hash = {adapter.sha256: adapter for adapter in adapters}
    merges, missing = {}, {}
    for number, adapter in enumerate(adapters):
        if adapter.recipe is None:
            continue
        sources = adapter.recipe.sources
        absent = [source.name or source.path or source.hub or "?" for source in sources if source.sha256 not in by_hash]
        if absent:
            missing[adapter.name] = absent
        else:
            merges[number] = check_merge(
                adapter, [by_hash[s.sha256 or ""] for s in sources], [s.weight for s in sources]
            )
    rest = [adapter for number, adapter in enumerate(adapters) if number not in merges]
    return Comparison(
        tuple(adapter.name for adapter in adapters),
        inner_products(adapters),
        tuple(merges.values()),
        missing,
        interference(rest) if len(rest) > 1 else None,
    )


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
    return np.where(np.isfinite(values), values.astype(object), None).tolist()
