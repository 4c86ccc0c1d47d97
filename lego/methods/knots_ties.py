"""KnOTS with TIES. arXiv 2410.19735."""

from __future__ import annotations

from lego.knots import knots
from lego.registry import Merged, merge_method
from lego.rules import Rule, Scaled, Trimmed
from lego.units import Pool


@merge_method(
    title="KnOTS-TIES",
    paper="https://arxiv.org/abs/2410.19735",
    equations="[s_1 B_1 A_1 … s_N B_N A_N] = U Σ [V_1ᵀ … V_Nᵀ];  ΔW = U · TIES(Σ V_1ᵀ … Σ V_Nᵀ)",
    unit_invariant=True,
)
def knots_ties(pool: Pool, *, density: Trimmed = 0.5, scaled: Scaled = True) -> Merged:
    """Bring the sources' updates into one basis by a joint SVD, then trim, elect signs and average there."""
    return knots(pool, Rule("ties", density), scaled)
