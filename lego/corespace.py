"""The small space that all sources' updates lie in, and its orthonormal bases (Core Space, arXiv 2509.17786)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lego.lowrank import NUMERICAL_RANK, even, exact_gram
from lego.units import Pool


def unweighted(pool: Pool) -> tuple[Float[Tensor, "modules units d_in"], Float[Tensor, "modules d_out units"]]:
    """The factors of the sources before their weights, sqrt(s_j) in both halves: (down, up)."""
    root = pool.weight.abs().sqrt()
    return pool.down / root[:, :, None], pool.up / (root * pool.weight.sign())[:, None]


def basis(
    columns: Float[Tensor, "modules d units"],
) -> tuple[Float[Tensor, "modules d q"], Float[Tensor, "modules q units"]]:
    """Left singular vectors, and the columns in their coordinates (fp64): ``left @ coordinates`` gives the columns again.

    q = min(d, units); vectors of singular value 0 are 0. From inner products alone: of the columns at length 1, so that short ones
    are not taken for the rounding of long ones, and a small SVD that gives the lengths back.
    """
    gram = exact_gram(columns.mT)
    lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
    inverse = torch.where(lengths > 0, 1 / lengths, 0)
    squares, vectors = torch.linalg.eigh(gram * inverse[:, :, None] * inverse[:, None])
    live = squares > NUMERICAL_RANK**2 * squares[:, -1:]
    root, inverse_root = torch.where(live, squares.sqrt(), 0), torch.where(live, squares.rsqrt(), 0)
    turn, values, right = torch.linalg.svd(root[:, :, None] * vectors.mT * lengths[:, None])
    q = min(columns.shape[1:])
    there = torch.arange(q, device=values.device) < live.sum(1, keepdim=True)
    left = inverse[:, :, None] * vectors * inverse_root[:, None] @ (turn[:, :, :q] * there[:, None])
    return columns @ left.to(columns.dtype), (values[:, :q] * there)[:, :, None] * right[:, :q]


def out_of_core(
    left: Float[Tensor, "modules d_out p"],
    merged: Float[Tensor, "modules p q"],
    right: Float[Tensor, "modules q d_in"],
) -> tuple[Float[Tensor, "modules k d_in"], Float[Tensor, "modules d_out k"]]:
    """``left @ merged @ right`` as factors (down, up) of rank k = min(p, q), each unit's halves equally long."""
    return even(merged @ right, left) if left.shape[2] < right.shape[1] else even(right, left @ merged)


def core_space(
    pool: Pool,
) -> tuple[Float[Tensor, "modules d_out p"], list[Float[Tensor, "modules p q"]], Float[Tensor, "modules q d_in"]]:
    """U_B, the cores M_j = U_Bᵀ s_j B_j A_j V_A (fp64), and V_Aᵀ: ``U_B @ M_j @ V_Aᵀ`` is source j's update without its weight.

    U_B are the left singular vectors of the stacked B, V_A the right ones of the stacked A (arXiv 2509.17786).
    """
    down, up = unweighted(pool)
    left, of_up = basis(up)
    right, of_down = basis(down.mT)
    sources = [pool.owner == source for source in pool.present]
    return left, [of_up[:, :, own] @ of_down[:, :, own].mT for own in sources], right.mT
