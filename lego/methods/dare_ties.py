"""DARE with TIES's election, on the factors, as PEFT's `dare_ties`. arXiv 2311.03099."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Majority, disjoint_mean, drop_and_rescale
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
    density: Annotated[float, Field(gt=0, le=1, description="Probability with which an entry is kept.")] = 0.5,
    majority: Annotated[Majority, Field(description="Elect signs by summed values or by count.")] = "total",
) -> Merged:
    """Drop entries of each factor at random and rescale, then elect signs and average, A and B apart as PEFT's `dare_ties` does."""

    def prepare(factor: Tensor, half: str, source: int) -> Tensor:
        return drop_and_rescale(factor, density, pool.uniform(*factor.shape[1:], stream=f"{half}{source}"))

    return factorwise(pool, partial(disjoint_mean, majority=majority), prepare)
