"""Core Space. arXiv 2509.17786."""

from __future__ import annotations

from lego.corespace import core_space, out_of_core
from lego.registry import Merged, merge_method
from lego.rules import ChosenRule, Kept, Rule, source_weights
from lego.units import Pool


@merge_method(
    title="Core Space",
    paper="https://arxiv.org/abs/2509.17786",
    equations="M_j = U_Bᵀ s_j B_j A_j V_A;  ΔW = U_B · rule(M_1 … M_N) · V_Aᵀ",
    random=True,
    unit_invariant=True,
)
def core(pool: Pool, *, rule: ChosenRule = "ties", density: Kept = 0.5) -> Merged:
    """Apply a rule to small matrices: the updates in one pair of bases that holds all of them without loss."""
    left, cores, right = core_space(pool)
    merged = Rule(rule, density).merge(pool, [core.float() for core in cores], source_weights(pool))
    return out_of_core(left, merged, right)
