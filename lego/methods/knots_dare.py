"""KnOTS with DARE and TIES's election. arXiv 2410.19735."""

from __future__ import annotations

from lego.knots import knots
from lego.registry import Merged, merge_method
from lego.rules import Dropped, Rule, Scaled
from lego.units import Pool


@merge_method(
    title="KnOTS-DARE-TIES",
    paper="https://arxiv.org/abs/2410.19735",
    equations="[s_1 B_1 A_1 … s_N B_N A_N] = U Σ [V_1ᵀ … V_Nᵀ];  ΔW = U · DARE-TIES(Σ V_1ᵀ … Σ V_Nᵀ)",
    random=True,
    unit_invariant=True,
)
def knots_dare(pool: Pool, *, density: Dropped = 0.5, scaled: Scaled = True) -> Merged:
    """Bring the sources' updates into one basis by a joint SVD, then drop at random, elect signs and average there."""
    return knots(pool, Rule("dare_ties", density), scaled)
