"""The exact sum at the lowest rank that holds it."""

from __future__ import annotations

from lego.lowrank import truncate
from lego.registry import Merged, merge_method
from lego.units import Pool


@merge_method(title="Exact sum", equations="ΔW = Σ_j w_j s_j B_j A_j", unit_invariant=True)
def sum(pool: Pool) -> Merged:
    """Add the updates exactly (task arithmetic, diffusers' `set_adapters`), stored at the lowest rank that loses nothing."""
    return truncate(pool.down, pool.up, core=pool.core)
