"""TIES on the factors, as PEFT's `ties`. arXiv 2306.01708."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from pydantic import Field
from torch import Tensor

from lego.factorwise import factorwise
from lego.registry import Merged, merge_method
from lego.rules import Majority, disjoint_mean, trim
from lego.units import Pool


@merge_method(
    title="TIES (factors)",
    paper="https://arxiv.org/abs/2306.01708",
    equations="trim to the largest entries; elect a sign per entry; mean of the sources that agree",
)
def ties(
    pool: Pool,
    *,
    density: Annotated[float, Field(gt=0, le=1, description="Share of entries kept in each factor.")] = 0.5,
    majority: Annotated[Majority, Field(description="Elect signs by summed values or by count.")] = "total",
) -> Merged:
    """Trim each factor, elect a sign for each entry and average the sources that agree, A and B apart as PEFT's `ties` does."""

    def prepare(factor: Tensor, half: str, source: int) -> Tensor:
        return trim(factor, density)

    return factorwise(pool, partial(disjoint_mean, majority=majority), prepare)
