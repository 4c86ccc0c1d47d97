"""Trimmed factors, added, as PEFT's `magnitude_prune`."""

from __future__ import annotations

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Rule, Trimmed, TrimmedOver
from lego.units import Pool


@merge_method(
    title="Magnitude pruning (factors)",
    equations="trim to the largest entries; A′ = Σ_j sqrt(w_j s_j) A_j,  B′ = Σ_j sqrt(w_j s_j) B_j",
)
def magnitude_prune(
    pool: Pool,
    *,
    density: Trimmed = 0.5,
    trim_over: TrimmedOver = "module",
) -> Merged:
    """Trim each factor to its largest entries, then add A to A and B to B as PEFT's `magnitude_prune` does: with cross terms."""
    return factorwise(pool, Rule("magnitude_prune", density, over=trim_over))
