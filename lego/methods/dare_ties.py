"""DARE with TIES's election, on the factors, as PEFT's `dare_ties`. arXiv 2311.03099."""

from __future__ import annotations

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Dropped, Rule, Vote, WeightedVote
from lego.units import Pool


@merge_method(
    title="DARE-TIES (factors)",
    paper="https://arxiv.org/abs/2311.03099",
    equations="drop entries at random, divide the rest by the density; elect a sign per entry; mean of the sources that agree",
    random=True,
)
def dare_ties(
    pool: Pool,
    *,
    density: Dropped = 0.5,
    majority: Vote = "total",
    weighted_vote: WeightedVote = False,
) -> Merged:
    """Drop entries of each factor at random and rescale, then elect signs and average, A and B apart as PEFT's `dare_ties` does."""
    return factorwise(pool, Rule("dare_ties", density, majority, weighted_vote))
