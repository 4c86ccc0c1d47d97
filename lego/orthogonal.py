"""Singular vectors of several updates made orthogonal across them: what Task Singular Vectors are merged by."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lego.lowrank import exact_gram

# Concatenated unit vectors of less norm than this, once the others are taken out, are copies of them.
COPY = 1e-5

Orthogonal = Literal["both", "outputs", "inputs"]
# U, S and Vᵀ of one source's update: (M, d_out, q), (M, q), (M, q, d_in). S may be negative; vectors of S = 0 are 0.
Singular = tuple[Tensor, Tensor, Tensor]


def polar(columns: Float[Tensor, "modules d k"]) -> Float[Tensor, "modules d k"]:
    """The nearest matrix of orthonormal columns, X (XᵀX)^{-1/2}; of dependent columns, the partial isometry on their span."""
    values, vectors = torch.linalg.eigh(exact_gram(columns.mT))
    inverse = torch.where(values > COPY**2, values.clamp_min(COPY**2).rsqrt(), 0)
    return columns @ ((vectors * inverse[:, None]) @ vectors.mT).to(columns.dtype)


def orthogonal_sum(
    parts: list[Singular], count: int, orthogonal: Orthogonal = "both"
) -> tuple[Float[Tensor, "modules k d_in"], Float[Tensor, "modules d_out k"]]:
    """Add updates after making their singular vectors orthogonal across them (arXiv 2412.00081).

    Args:
        parts: the updates' SVDs, each in descending order.
        count: k, singular directions kept in all: the first of every update, then the second of every update, and so on, the
            stronger ones where the last round does not suffice for all.
        orthogonal: which side is made so.

    Returns:
        The factors (down, up).
    """
    left, values, right = (torch.cat([part[i] for part in parts], dim) for i, dim in ((0, 2), (1, 1), (2, 1)))
    place = torch.cat([torch.arange(part[1].shape[1], device=values.device) for part in parts])
    size = values.abs()
    turn = torch.where(size > 0, place - size / (2 * size.amax(1, keepdim=True)), torch.inf)
    kept = turn.argsort(dim=1, stable=True)[:, :count]
    left, values, right = (
        left.take_along_dim(kept[:, None], 2),
        values.gather(1, kept),
        right.take_along_dim(kept[:, :, None], 1),
    )

    if orthogonal != "inputs":
        left = polar(left)
    if orthogonal != "outputs":
        right = polar(right.mT).mT
    root = values.abs().sqrt()
    return root[:, :, None] * right, left * (root * values.sign())[:, None]
