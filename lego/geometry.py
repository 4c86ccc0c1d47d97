"""Where units lie before they are clustered.

The update b aᵀ leaves a unit's coordinates open: (a, b), (−a, −b) and (c·a, b/c) are the same. ``paper`` takes the units as training
left them (arXiv 2409.16167), the others remove what is arbitrary:

- ``balanced``: ‖a‖ = ‖b‖ for every unit, and signs such that similar units point the same way;
- ``singular``: each adapter rewritten in its singular vectors first, so that its units do not depend on how it was trained;
- ``rank-one``: the distance between the matrices b aᵀ themselves.
"""

from __future__ import annotations

from dataclasses import fields, replace
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lego.lowrank import core_from, even, truncate
from lego.units import Pool

# Cosines below this are rounding.
ORTHOGONAL = 1e-5

Geometry = Literal["paper", "balanced", "singular", "rank-one"]


def arrange(pool: Pool, geometry: Geometry) -> Pool:
    """The same updates by other units."""
    if geometry == "paper":
        return pool
    if geometry == "rank-one":
        return MatrixPool.of(balance(pool))
    return align(balance(singular(pool) if geometry == "singular" else pool))


class MatrixPool(Pool):
    """Units whose inner products are those of the matrices b aᵀ, so that clustering sees only these."""

    @classmethod
    def of(cls, pool: Pool) -> MatrixPool:
        """The same units."""
        return cls(**{field.name: getattr(pool, field.name) for field in fields(pool)})

    @cached_property
    def gram(self) -> Float[Tensor, "modules units units"]:
        """<b_i a_iᵀ, b_j a_jᵀ> = <a_i, a_j> <b_i, b_j>: (A Aᵀ) ∘ (Bᵀ B)."""
        return self.gram_down * self.gram_up


def balance(pool: Pool) -> Pool:
    """Rescale each unit to ‖a‖ = ‖b‖; b aᵀ stays."""
    down, up = even(pool.down, pool.up)
    return replace(pool, down=down, up=up)


def singular(pool: Pool) -> Pool:
    """Each source's units replaced by its singular triplets: (√σ v, √σ u), largest first."""
    down, up = torch.empty_like(pool.down), torch.empty_like(pool.up)
    for source in pool.present:
        own = pool.owner == source
        rank = int(own.sum())
        down[:, own], up[:, :, own] = truncate(pool.down[:, own], pool.up[:, :, own], rank)
    return replace(pool, down=down, up=up)


def align(pool: Pool) -> Pool:
    """Flip whole units so that similar ones point the same way, for all units of a module together.

    Along the maximum spanning tree of |cosines| (Prim's algorithm), each unit takes the sign that makes its inner product with its
    neighbour in the tree positive. Units orthogonal to all others point where their largest entry of a is positive. So the signs that
    the units came with mean nothing, up to one sign of all units, which no distance sees.
    """
    peak = pool.down.gather(2, pool.down.abs().argmax(2, keepdim=True))[:, :, 0]
    sign = torch.where(peak < 0, -1.0, 1.0)
    cosine = pool.gram / norms(pool.gram) * sign[:, :, None] * sign[:, None]
    module = torch.arange(len(cosine), device=cosine.device)
    outside = torch.ones_like(sign, dtype=torch.bool)
    latest, flips = torch.zeros_like(module), torch.ones_like(sign)
    nearest = torch.zeros_like(sign)  # the cosine to the closest unit in the tree, of largest magnitude
    for _ in range(pool.units - 1):
        outside[module, latest] = False
        towards = cosine[module, latest] * flips[module, latest][:, None]
        nearest = torch.where(towards.abs() > nearest.abs(), towards, nearest)
        latest = nearest.abs().masked_fill(~outside, -1).argmax(1)
        flips[module, latest] = torch.where(nearest[module, latest] < -ORTHOGONAL, -1.0, 1.0)
    sign = sign * flips
    return replace(pool, down=sign[:, :, None] * pool.down, up=pool.up * sign[:, None])


def norms(gram: Float[Tensor, "modules units units"]) -> Float[Tensor, "modules units units"]:
    """‖m_i‖ ‖m_j‖, and 1 where it is 0."""
    norm = gram.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    product = norm[:, :, None] * norm[:, None]
    return torch.where(product > 0, product, 1)


def best_rank_one(
    pool: Pool, member: Float[Tensor, "modules units k"]
) -> tuple[Float[Tensor, "modules k units"], Float[Tensor, "modules k units"]]:
    """The best rank-one approximation of the mean of each cluster's matrices b aᵀ: a small SVD for each cluster.

    Args:
        pool: of the units.
        member: 1 where a unit belongs to a cluster, else 0.

    Returns:
        Coefficients of the units in the two halves, whose norms are equal: ``first @ pool.down`` and ``pool.up @ second.mT``.
    """
    counts = member.sum(1)  # (M, k)
    most = int(counts.max())
    unit = member.mT.argsort(dim=2, descending=True, stable=True)[:, :, :most]  # the members of each cluster come first
    inside = torch.arange(most, device=member.device) < counts[:, :, None]  # (M, k, most)
    both = (inside[..., None] & inside[..., None, :]).flatten(0, 1)
    module = torch.arange(len(member), device=member.device)[:, None, None, None]
    grams = [gram[module, unit[..., None], unit[..., None, :]].flatten(0, 1) for gram in (pool.gram_down, pool.gram_up)]
    core = core_from(*(torch.where(both, gram, 0).double() for gram in grams))
    half = (core.values[:, :1] / counts.flatten()[:, None]).sqrt()
    empty = torch.zeros_like(member.mT)
    down, up = (
        empty.scatter(2, unit, torch.where(inside, (half * side).view_as(unit).to(member.dtype), 0))
        for side in (core.right[:, 0], core.left[:, :, 0])
    )
    return down, up
