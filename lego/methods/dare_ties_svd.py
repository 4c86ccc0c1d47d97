"""DARE with TIES's election, on the updates, as PEFT's `dare_ties_svd`. arXiv 2311.03099."""

from __future__ import annotations

from lego.dense import merge_dense
from lego.registry import Merged, merge_method, resolve_rank
from lego.rules import Cut, Dropped, Rule, Vote, WeightedVote
from lego.units import Pool


@merge_method(
    title="DARE-TIES",
    paper="https://arxiv.org/abs/2311.03099",
    equations="T_j = drop(s_j B_j A_j) / density; elect a sign per entry; mean of the w_j T_j that agree; U_k S_k V_kᵀ of it",
    random=True,
    unit_invariant=True,
)
def dare_ties_svd(
    pool: Pool,
    *,
    density: Dropped = 0.5,
    majority: Vote = "total",
    weighted_vote: WeightedVote = False,
    rank: Cut = "2r",
) -> Merged:
    """Drop entries of each whole update at random and rescale, then elect signs and average; then cut to a rank."""
    return merge_dense(pool, Rule("dare_ties", density, majority, weighted_vote), resolve_rank(rank, pool))
