"""Truncated SVD of the exact sum."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lego.lowrank import truncate
from lego.registry import Merged, Rank, merge_method, resolve_rank
from lego.units import Pool


@merge_method(title="SVD", equations="ΔW = U_k S_k V_kᵀ of Σ_j w_j s_j B_j A_j", unit_invariant=True)
def svd(
    pool: Pool,
    *,
    rank: Annotated[
        Rank, Field(description="Rank kept: a number, a multiple of the sources' rank, a kept energy (95%), or all.")
    ] = "2r",
) -> Merged:
    """Cut the exact sum to a rank, with the least possible error (Eckart and Young)."""
    return truncate(pool.down, pool.up, resolve_rank(rank, pool), pool.core)
