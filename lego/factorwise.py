"""Merging A with A and B with B, as PEFT's `linear`, `ties`, `dare_*` and `magnitude_prune` do.

The product of the merged halves has cross terms B_i A_j between different adapters: it is not the sum. Kept because people use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch.nn.functional import pad

from lego.registry import Merged
from lego.rules import Rule
from lego.units import Pool


def factorwise(pool: Pool, rule: Rule) -> Merged:
    """Apply a rule to the sources' A and, apart from them, to their B.

    The weight of a source is sqrt(|w s|) on each half with the sign on A, as PEFT has it. Sources of lower rank are padded with
    zero units after they were trimmed.
    """
    downs, ups, weights = [], [], []
    for source in pool.present:
        weight = pool.coefficient[:, pool.owner == source][:, :1, None]  # w_j s_j, (M, 1, 1)
        limit = rule.limit(pool, source, factors_of)
        down, up = (
            rule.sparse(factor, partial(pool.uniform, stream=f"{half}{source}"), limit)
            for half, factor in zip("AB", factors_of(pool, source), strict=True)
        )
        missing = max(pool.ranks) - down.shape[1]
        downs.append(pad(down, (0, 0, 0, missing)))
        ups.append(pad(up, (0, missing)))
        weights.append(weight)
    weight = torch.stack(weights)
    root = weight.abs().sqrt()
    return rule.combine(torch.stack(downs), root * weight.sign()), rule.combine(torch.stack(ups), root)


def factors_of(pool: Pool, source: int) -> Iterator[torch.Tensor]:
    """A source's own A and B, without weight and scale."""
    own = pool.owner == source
    weight = pool.coefficient[:, own][:, :1, None]
    yield pool.down[:, own] / weight.abs().sqrt()
    yield pool.up[:, :, own] / (weight.abs().sqrt() * weight.sign())
