"""PEFT's `linear`: A added to A, B added to B."""

from __future__ import annotations

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Rule
from lego.units import Pool


@merge_method(title="Linear (factors)", equations="A′ = Σ_j sqrt(w_j s_j) A_j,  B′ = Σ_j sqrt(w_j s_j) B_j")
def linear(pool: Pool) -> Merged:
    """Add the factors separately, as PEFT's `linear` does: the product has cross terms B_i A_j and is not the sum."""
    return factorwise(pool, Rule("sum"))
