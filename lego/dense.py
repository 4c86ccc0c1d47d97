"""Merging whole updates, entry by entry, and cutting the result to a rank: the one place where d_out × d_in matrices are built."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import hardshrink

from lego.corespace import unweighted
from lego.registry import Merged
from lego.rules import Rule, largest, source_weights
from lego.units import Pool

# Entries of one source's update at a time while the sources are combined: what stays in a core's cache.
BLOCK = 2**17
# Matrices with a side up to this, or cut to more than a quarter of it, go to LAPACK's full SVD.
SMALL = 512
# Columns of a Krylov block beyond the rank asked for.
EXTRA = 8
# Krylov blocks are added until the squared error can fall by no more than this share of itself.
PRECISION = 1e-7
# Squared errors below this share of the squared norm count as this: fp32 knows no better.
FLOOR = 1e-3
# What is left of the overlap of Krylov blocks.
ORTHOGONAL = 1e-5


def merge_dense(pool: Pool, rule: Rule, rank: int) -> Merged:
    """Apply a rule to the sources' updates s_j B_j A_j, then cut each module's result to a rank; one module at a time."""
    cut = [truncated_svd(merged_update(pool.rows([row]), rule), rank) for row in range(len(pool.modules))]
    return torch.stack([down for down, _ in cut]), torch.stack([up for _, up in cut])


def merged_update(pool: Pool, rule: Rule) -> Float[Tensor, "d_out d_in"]:
    """The rule's result for one module. No second matrix of its size is in memory."""
    down, up = unweighted(pool)
    parts = [(source, up[0][:, pool.owner == source], down[0][pool.owner == source]) for source in pool.present]
    weights, merged = source_weights(pool), up.new_empty(up.shape[1], down.shape[2])
    step = max(1, BLOCK // merged.shape[1])
    rows = [slice(start, start + step) for start in range(0, len(merged), step)]
    limits: dict[int, float] = {}
    if rule.sparsity == "magnitude":
        for source, b, a in parts:
            if (common := rule.limit(pool, source, updates_of)) is not None:
                limits[source] = below(common)
                continue
            for some in rows:  # in the same blocks as below, so that they round alike
                torch.mm(b[some], a, out=merged[some])
            magnitudes = merged.abs_().flatten()[None]
            limits[source] = below(float(largest(magnitudes, int(rule.density * magnitudes.shape[1]))))

    for some in rows:
        blocks = []
        for source, b, a in parts:
            block = torch.mm(b[some], a)[None]
            draw = partial(pool.uniform, stream=f"{source}/{some.start}")
            blocks.append(hardshrink(block, limits[source]) if limits else rule.sparse(block, draw))
        merged[some] = rule.combine(torch.stack(blocks), weights)[0]
    return merged


def below(limit: float) -> float:
    """The next smaller fp32 number, since hardshrink drops what equals its limit."""
    return float(np.nextafter(np.float32(limit), np.float32(-np.inf)))


def updates_of(pool: Pool, source: int) -> Iterator[Tensor]:
    """A source's updates s_j B_j A_j in the blocks that `merged_update` makes, so that they round alike."""
    down, up = unweighted(pool)
    own = pool.owner == source
    for b, a in zip(up[:, :, own], down[:, own], strict=True):
        for block in b.split(max(1, BLOCK // a.shape[1])):
            yield block @ a


def truncated_svd(
    matrix: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "d_out k"]]:
    """The best approximation of a rank as factors (down, up), singular values split evenly between them.

    Large matrices by a block Krylov space (Musco and Musco, arXiv 1504.05477) that grows until the error is the least one, also
    where the spectrum is flat.
    """
    side = min(matrix.shape)
    rank = min(rank, side)
    if side <= SMALL or 4 * rank > side:
        return full_svd(matrix, rank)
    start = torch.randn(matrix.shape[1], rank + EXTRA, generator=torch.Generator().manual_seed(0)).to(matrix)
    total = torch.linalg.vector_norm(matrix, dim=1).double().square().sum()
    energy, images = 0.0, []
    space = new = torch.linalg.qr(matrix @ start).Q
    gram = matrix.new_zeros(0, 0, dtype=torch.float64)
    while True:
        images.append(matrix.T @ new)  # Xᵀ Q, so that X ≈ Q (XᵀQ)ᵀ
        gram = grown(gram, images)
        squares, vectors = torch.linalg.eigh(gram)
        found = squares[-rank:].sum()
        gain, energy = found - energy, found
        if gain * len(images) <= PRECISION * max(total - energy, FLOOR * total):
            break
        if space.shape[1] + rank + EXTRA > side:
            return full_svd(matrix, rank)
        new = torch.linalg.qr(matrix @ images[-1]).Q
        while (overlap := space.T @ new).abs().max() > ORTHOGONAL:  # again, as directions that are no more are rounding
            new = torch.linalg.qr(new - space @ overlap).Q
        space = torch.cat([space, new], 1)
    vectors, root = vectors[:, -rank:].to(matrix), squares[-rank:].clamp_min(0).to(matrix) ** 0.25
    inverse = torch.where(root > 0, 1 / root, 0)
    return inverse[:, None] * (vectors.T @ torch.cat(images, 1).T), space @ (vectors * root)


def full_svd(
    matrix: Float[Tensor, "d_out d_in"], rank: int
) -> tuple[Float[Tensor, "k d_in"], Float[Tensor, "d_out k"]]:
    """The same from all singular values, in fp64."""
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()
    return (root[:, None] * right[:rank]).to(matrix), (left[:, :rank] * root).to(matrix)


def grown(gram: Float[Tensor, "q q"], images: list[Tensor]) -> Float[Tensor, "q_new q_new"]:
    """The inner products of all columns of the images, from those of all but the last; fp64."""
    last = images[-1].double()
    strip = torch.cat([image.double().T @ last for image in images])
    return torch.cat([torch.cat([gram, strip[: len(gram)].T]), strip], 1)
