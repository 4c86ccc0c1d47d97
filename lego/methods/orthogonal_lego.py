"""LEGO with orthogonal bricks: a method of this project, from LoRA-LEGO (arXiv 2409.16167) and Task Singular Vectors (2412.00081)."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch.nn.functional import one_hot

from lego.cluster import partition
from lego.geometry import MatrixPool, balance, best_rank_one, singular
from lego.orthogonal import polar
from lego.registry import Merged, Rank, merge_method, resolve_rank
from lego.units import Pool


@merge_method(
    title="LEGO, orthogonal bricks",
    equations="units √σ(u, v) of each LoRA;  σ_c u_c v_cᵀ = best rank one of Σ_{m∈c} σ u vᵀ;  ΔW = U(UᵀU)^-½ · diag(σ_c) · (VᵀV)^-½Vᵀ",
    random=True,
    unit_invariant=True,
)
def orthogonal_lego(
    pool: Pool,
    *,
    k: Annotated[
        Rank, Field(description="Clusters, the merged rank; with all units this is Task Singular Vectors.")
    ] = "2r",
    restarts: Annotated[int, Field(ge=1, le=64, description="k-means runs; the one of least inertia is kept.")] = 8,
) -> Merged:
    """Cluster the LoRAs' singular units as matrices, keep the strongest direction of each cluster's sum, and make these orthogonal."""
    clusters = resolve_rank(k, pool)
    units = MatrixPool.of(balance(singular(pool)))
    member = one_hot(partition(units, clusters, restarts), clusters).to(pool.down.dtype)  # (M, units, k)

    # Like units add up, and of unlike ones the strongest stays: the best rank one of the sum is |c| times that of the mean.
    left, right = best_rank_one(units, member)
    size = member.sum(1)
    v, u = left @ units.down, units.up @ right.mT  # ‖v_c‖² = ‖u_c‖² = σ_c / |c|
    sigma = size * torch.linalg.vector_norm(v, dim=2) * torch.linalg.vector_norm(u, dim=1)

    v, u = polar(unit(v.mT)).mT, polar(unit(u))
    root = sigma.sqrt()
    return root[:, :, None] * v, u * root[:, None]


def unit(columns: torch.Tensor) -> torch.Tensor:
    """Columns of norm 1; those of 0 stay."""
    return columns / torch.linalg.vector_norm(columns, dim=1, keepdim=True).clamp_min(1e-30)
