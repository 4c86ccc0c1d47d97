"""DARE on the factors, then their sum, as PEFT's `dare_linear`. arXiv 2311.03099."""

from __future__ import annotations

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Dropped, Rule
from lego.units import Pool


@merge_method(
    title="DARE (factors)",
    paper="https://arxiv.org/abs/2311.03099",
    equations="drop entries at random, divide the rest by the density; A′ = Σ_j sqrt(w_j s_j) A_j,  B′ = Σ_j sqrt(w_j s_j) B_j",
    random=True,
)
def dare_linear(
    pool: Pool,
    *,
    density: Dropped = 0.5,
) -> Merged:
    """Drop entries of each factor at random and rescale, then add A to A and B to B as PEFT's `dare_linear` does: with cross terms."""
    return factorwise(pool, Rule("dare_linear", density))
