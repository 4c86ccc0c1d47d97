"""Trimmed updates, added, as PEFT's `magnitude_prune_svd`."""

from __future__ import annotations

from lego.dense import merge_dense
from lego.registry import Merged, merge_method, resolve_rank
from lego.rules import Cut, Rule, Trimmed, TrimmedOver
from lego.units import Pool


@merge_method(
    title="Magnitude pruning",
    equations="U_k S_k V_kᵀ of Σ_j w_j trim(s_j B_j A_j)",
    unit_invariant=True,
)
def magnitude_prune_svd(
    pool: Pool,
    *,
    density: Trimmed = 0.5,
    trim_over: TrimmedOver = "module",
    rank: Cut = "2r",
) -> Merged:
    """Trim each whole update to its largest entries, then add the updates and cut to a rank."""
    return merge_dense(pool, Rule("magnitude_prune", density, over=trim_over), resolve_rank(rank, pool))
