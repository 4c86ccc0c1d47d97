"""All units side by side: the exact sum, unit by unit."""

from __future__ import annotations

from lego.registry import Merged, merge_method
from lego.units import Pool


@merge_method(title="Concatenation", equations="A′ = [A_1; …; A_N], B′ = [B_1 … B_N]", unit_invariant=True)
def concat(pool: Pool) -> Merged:
    """Keep every unit as it is, side by side: exactly the weighted sum, at rank Σ r_j."""
    return pool.down, pool.up
