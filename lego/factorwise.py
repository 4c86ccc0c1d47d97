"""Merging A with A and B with B, as PEFT's `linear`, `ties` and `dare_*` do.

The product of the merged halves has cross terms B_i A_j between different adapters: it is not the sum. Kept because people use it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from lego.registry import Merged
from lego.units import Pool

# What is done to one source's own factor first: (M, rows, columns), "A" or "B", which source → the same shape.
Prepare = Callable[[Tensor, str, int], Tensor]
# Combines the sources' factors (N, M, rows, columns) under their weights (N, M, 1, 1) into one.
Combine = Callable[[Tensor, Tensor], Tensor]


def factorwise(pool: Pool, combine: Combine, prepare: Prepare | None = None) -> Merged:
    """Apply a rule to the sources' A and, apart from them, to their B.

    The weight of a source is sqrt(|w s|) on each half with the sign on A, as PEFT has it. Sources of lower rank are padded with
    zero units after they were prepared.
    """
    downs, ups, weights = [], [], []
    for source in pool.present:
        own = pool.owner == source
        weight = pool.coefficient[:, own][:, :1, None]  # w_j s_j, (M, 1, 1)
        down, up = pool.down[:, own] / weight.abs().sqrt(), pool.up[:, :, own] / (weight.abs().sqrt() * weight.sign())
        if prepare:
            down, up = prepare(down, "A", source), prepare(up, "B", source)
        missing = max(pool.ranks) - down.shape[1]
        downs.append(pad(down, (0, 0, 0, missing)))
        ups.append(pad(up, (0, missing)))
        weights.append(weight)
    weight = torch.stack(weights)
    root = weight.abs().sqrt()
    return combine(torch.stack(downs), root * weight.sign()), combine(torch.stack(ups), root)
