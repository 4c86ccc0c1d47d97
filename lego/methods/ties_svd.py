"""TIES on the updates, as PEFT's `ties_svd`. arXiv 2306.01708."""

from __future__ import annotations

from lego.dense import merge_dense
from lego.registry import Merged, merge_method, resolve_rank
from lego.rules import Cut, Rule, Trimmed, TrimmedOver, Vote, WeightedVote
from lego.units import Pool


@merge_method(
    title="TIES",
    paper="https://arxiv.org/abs/2306.01708",
    equations="T_j = trim(s_j B_j A_j); elect a sign per entry; mean of the w_j T_j that agree; U_k S_k V_kᵀ of it",
    unit_invariant=True,
)
def ties_svd(
    pool: Pool,
    *,
    density: Trimmed = 0.5,
    trim_over: TrimmedOver = "module",
    majority: Vote = "total",
    weighted_vote: WeightedVote = False,
    rank: Cut = "2r",
) -> Merged:
    """Trim each whole update, elect a sign for each entry and average the sources that agree; then cut to a rank."""
    return merge_dense(pool, Rule("ties", density, majority, weighted_vote, trim_over), resolve_rank(rank, pool))
