"""DARE on the updates, then their sum, as PEFT's `dare_linear_svd`. arXiv 2311.03099."""

from __future__ import annotations

from lego.dense import merge_dense
from lego.registry import Merged, merge_method, resolve_rank
from lego.rules import Cut, Dropped, Rule
from lego.units import Pool


@merge_method(
    title="DARE",
    paper="https://arxiv.org/abs/2311.03099",
    equations="U_k S_k V_kᵀ of Σ_j w_j drop(s_j B_j A_j) / density",
    random=True,
    unit_invariant=True,
)
def dare_linear_svd(
    pool: Pool,
    *,
    density: Dropped = 0.5,
    rank: Cut = "2r",
) -> Merged:
    """Drop entries of each whole update at random and rescale, then add the updates and cut to a rank."""
    return merge_dense(pool, Rule("dare_linear", density), resolve_rank(rank, pool))
