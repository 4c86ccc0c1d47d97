"""KnOTS: merge the right singular vectors of the concatenated updates. arXiv 2410.19735."""

from __future__ import annotations

import torch

from lego.corespace import basis, unweighted
from lego.lowrank import NUMERICAL_RANK, even
from lego.registry import Merged
from lego.rules import Rule, source_weights
from lego.units import Pool


def knots(pool: Pool, rule: Rule, scaled: bool) -> Merged:
    """Write [ΔW_1 … ΔW_N] = U Σ [V_1ᵀ … V_Nᵀ], apply a rule to the V parts, and multiply out.

    With A_j = L_j Q_jᵀ the SVD of the wide matrix is that of [B_1 L_1 … B_N L_N], whose right vectors the Q_j then turn: nothing
    larger than the factors is ever built.

    Args:
        pool: the updates.
        rule: of the V parts.
        scaled: whether the rule sees Σ V_j, as in the authors' code, or V_j.
    """
    down, up = unweighted(pool)
    sources = [pool.owner == source for source in pool.present]
    inputs = [basis(down[:, own].mT) for own in sources]  # Q_j and L_jᵀ
    turned = [up[:, :, own] @ lower.mT.to(up.dtype) for own, (_, lower) in zip(sources, inputs, strict=True)]
    left, coordinates = basis(torch.cat(turned, 2))  # U and Σ Wᵀ
    values = coordinates.norm(dim=2)
    live = values > NUMERICAL_RANK * values[:, :1]
    values, coordinates = values * live, coordinates * live[:, :, None]
    if not scaled:
        coordinates = coordinates / values.clamp_min(torch.finfo(values.dtype).tiny)[:, :, None]
        left = left * values[:, None].to(left.dtype)
    blocks = coordinates.to(up.dtype).split([q.shape[2] for q, _ in inputs], 2)
    parts = [block @ q.mT for block, (q, _) in zip(blocks, inputs, strict=True)]

    merged, weights = torch.zeros_like(parts[0]), source_weights(pool)
    ranks = (values > 0).sum(1).tolist()
    for rank in set(ranks):  # directions that are not there do not count among the entries that are trimmed
        rows = [row for row, found in enumerate(ranks) if found == rank]
        merged[rows, :rank] = rule.merge(pool.rows(rows), [part[rows, :rank] for part in parts], weights[:, rows])
    return even(merged, left)
