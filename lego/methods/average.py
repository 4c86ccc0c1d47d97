"""The normalised average: NLA in the MoLE paper, "ensemble" in others."""

from __future__ import annotations

from lego.lowrank import truncate
from lego.registry import Merged, merge_method
from lego.units import Pool


@merge_method(
    title="Average (NLA)", equations="ΔW = Σ_j w_j s_j B_j A_j / Σ_j |w_j|", unit_invariant=True, normalised=True
)
def average(pool: Pool) -> Merged:
    """Average the updates exactly: weights that sum to one (NLA, arXiv 2404.13628), stored at the lowest rank that loses nothing."""
    down, up = truncate(pool.down, pool.up, core=pool.core)
    return down, up / pool.total_weight[:, None, None]
