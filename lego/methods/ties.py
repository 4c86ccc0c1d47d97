"""TIES on the factors, as PEFT's `ties`. arXiv 2306.01708."""

from __future__ import annotations

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Rule, Trimmed, TrimmedOver, Vote, WeightedVote
from lego.units import Pool


@merge_method(
    title="TIES (factors)",
    paper="https://arxiv.org/abs/2306.01708",
    equations="trim to the largest entries; elect a sign per entry; mean of the sources that agree",
)
def ties(
    pool: Pool,
    *,
    density: Trimmed = 0.5,
    trim_over: TrimmedOver = "module",
    majority: Vote = "total",
    weighted_vote: WeightedVote = False,
) -> Merged:
    """Trim each factor, elect a sign for each entry and average the sources that agree, A and B apart as PEFT's `ties` does."""
    return factorwise(pool, Rule("ties", density, majority, weighted_vote, trim_over))
