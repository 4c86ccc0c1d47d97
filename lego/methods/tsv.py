"""Task Singular Vectors. arXiv 2412.00081."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lego.lowrank import core_svd
from lego.orthogonal import Orthogonal, orthogonal_sum
from lego.registry import Merged, Rank, merge_method, resolve_rank
from lego.units import Pool


@merge_method(
    title="Task Singular Vectors",
    paper="https://arxiv.org/abs/2412.00081",
    equations="w_j s_j B_j A_j = U_j S_j V_jᵀ;  U = [U_1 … U_N], V alike;  ΔW = U(UᵀU)^-½ · S · (VᵀV)^-½Vᵀ",
    unit_invariant=True,
)
def tsv(
    pool: Pool,
    *,
    rank: Annotated[
        Rank,
        Field(
            description="Singular directions kept in all, evenly from every source; the paper keeps 1/N of each full SVD's."
        ),
    ] = "all",
    orthogonal: Annotated[
        Orthogonal,
        Field(description="Which singular vectors are made orthogonal across the sources; both in the paper."),
    ] = "both",
) -> Merged:
    """Make the singular vectors of all sources orthogonal to each other, so that they interfere no more, and add the sources."""
    sources = [pool.owner == source for source in pool.present]
    parts = [core_svd(pool.down[:, own], pool.up[:, :, own]) for own in sources]
    return orthogonal_sum(parts, resolve_rank(rank, pool), orthogonal)
