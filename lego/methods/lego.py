"""LoRA-LEGO: cluster the units, keep the centroids. arXiv 2409.16167."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch.nn.functional import one_hot

from lego.adapter import largest
from lego.cluster import partition
from lego.geometry import Geometry, arrange, best_rank_one
from lego.registry import Merged, Rank, merge_method, resolve_rank, source_rank
from lego.units import Pool


@merge_method(
    title="LoRA-LEGO",
    paper="https://arxiv.org/abs/2409.16167",
    equations="μ_c = mean_{m∈c} m;  μ_c ← μ_c · mean_{m∈c}‖m‖_∞ / ‖μ_c‖_∞;  ΔW = sqrt(r/k) · B′A′",
    random=True,
    unit_invariant=True,
)
def lego(
    pool: Pool,
    *,
    k: Annotated[
        Rank,
        Field(description="Clusters, the merged rank: a number, a multiple of the sources' rank, or a kept energy."),
    ] = "2r",
    geometry: Annotated[
        Geometry,
        Field(
            description="Where units lie: as trained (paper), of equal halves and aligned signs (balanced), rewritten in singular "
            "vectors (singular), or as matrices b aᵀ (rank-one)."
        ),
    ] = "paper",
    parameter_reweighting: Annotated[
        bool, Field(description="Give each centroid the mean peak of its members, against the decay of averaged norms.")
    ] = True,
    output_reweighting: Annotated[
        bool, Field(description="Multiply by sqrt(r/k), against the growth of the output's variance with the rank.")
    ] = True,
    r: Annotated[
        Literal["mean", "max", "min"], Field(description="What r means where the sources' ranks differ.")
    ] = "mean",
    restarts: Annotated[int, Field(ge=1, le=64, description="k-means runs; the one of least inertia is kept.")] = 8,
) -> Merged:
    """Take the LoRAs apart into rank-one units, cluster them, and merge the clusters' centroids into one LoRA of any rank."""
    clusters = resolve_rank(k, pool, r)
    units = arrange(pool, geometry)
    labels = partition(units, clusters, restarts)
    member = one_hot(labels, clusters).to(units.down.dtype)  # (M, units, k)
    mean = (member / member.sum(1, keepdim=True)).mT  # (M, k, units)

    # Algorithm 1: a centroid is a row of A' and a column of B'.
    left, right = best_rank_one(units, member) if geometry == "rank-one" else (mean, mean)
    down, up = left @ units.down, units.up @ right.mT

    if parameter_reweighting:
        factor = mean @ peak(units.down, units.up)[:, :, None] / peak(down, up)[:, :, None].clamp_min(1e-30)
        down, up = factor * down, factor.mT * up

    if output_reweighting:  # Theorem 3.1; half of it on each side
        half = (source_rank(pool, r) / clusters) ** 0.25
        down, up = half * down, half * up
    return down, up


def peak(down: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """‖m‖_∞ of each whole unit [a; b], (M, units)."""
    return torch.maximum(largest(down, 2), largest(up, 1))
