"""With which weights a merge holds its sources, from inner products of units alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from lego.adapter import Adapter, natural_order
from lego.errors import AdapterError
from lego.interference import divided
from lego.tables import LINES, grid, left_out, short
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
        shown, names = slice(0, 5), [short(name, 9) for name in self.sources]
        rows = [["all", *(f"{w:.3f}" for w in self.overall[shown]), f"{self.overall_explained:.1%}"]]
        rows += [
            [short(self.modules[m], 34), *(f"{w:.3f}" for w in self.weights[m, shown]), f"{self.explained[m]:.1%}"]
            for m in order
        ]
        more = [f"… and {len(names) - 5} more sources"] if len(names) > 5 else []
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
