"""Exact truncation of B·A without ever building the d_out × d_in matrix."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

# Singular values below this share of the largest are rounding of fp32 factors.
NUMERICAL_RANK = 1e-6


def core_svd(
    down: Float[Tensor, "modules units d_in"], up: Float[Tensor, "modules d_out units"]
) -> tuple[Float[Tensor, "modules d_out q"], Float[Tensor, "modules q"], Float[Tensor, "modules q d_in"]]:
    """The SVD of ``up @ down`` from QR factors of both and the SVD of the small core between them."""
    q_up, r_up = torch.linalg.qr(up)
    q_down, r_down = torch.linalg.qr(down.mT)
    left, values, right = torch.linalg.svd(r_up @ r_down.mT, full_matrices=False)
    return q_up @ left, values, right @ q_down.mT


def truncate(
    down: Float[Tensor, "modules units d_in"], up: Float[Tensor, "modules d_out units"], rank: int | None = None
) -> tuple[Float[Tensor, "modules k d_in"], Float[Tensor, "modules d_out k"]]:
    """The best approximation of ``up @ down`` of a rank, its singular values split evenly between the halves.

    Args:
        down, up: the factors.
        rank: k; the numerical rank of the largest module when not given, so that nothing is lost.
    """
    left, values, right = core_svd(down, up)
    if rank is None:
        rank = max(1, int((values > NUMERICAL_RANK * values[:, :1]).sum(1).max()))
    root = values[:, :rank].sqrt()
    return root[:, :, None] * right[:, :rank], left[:, :, :rank] * root[:, None]
