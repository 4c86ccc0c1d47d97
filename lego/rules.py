"""The rules that TIES and DARE are made of."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

Majority = Literal["total", "frequency"]
Rows = Float[Tensor, "modules rows columns"]
Stack = Float[Tensor, "sources modules rows columns"]


def trim(tensor: Rows, density: float) -> Rows:
    """Keep the share ``density`` of largest magnitude in each module, zero the rest (TIES, step 1)."""
    if density >= 1:
        return tensor
    flat = tensor.flatten(1)
    top = flat.abs().topk(int(density * flat.shape[1]), dim=1).indices
    return torch.zeros_like(flat).scatter_(1, top, flat.gather(1, top)).view_as(tensor)


def drop_and_rescale(tensor: Rows, density: float, uniform: Rows) -> Rows:
    """Keep each entry with probability ``density`` and divide it by that (DARE, arXiv 2311.03099, section 3.2)."""
    return torch.where(uniform < density, tensor / density, torch.zeros_like(tensor))


def weighted_sum(tensors: Stack, weights: Float[Tensor, "sources modules 1 1"]) -> Rows:
    """Σ_j w_j T_j (task arithmetic)."""
    return (tensors * weights).sum(0)


def disjoint_mean(tensors: Stack, weights: Float[Tensor, "sources modules 1 1"], majority: Majority) -> Rows:
    """Elect a sign for each entry and average the sources that have it (TIES, arXiv 2306.01708, steps 2 and 3).

    Args:
        tensors: one for each source.
        weights: multiplied in after the election, as PEFT does.
        majority: elect by the summed values (``total``) or by the count of signs (``frequency``).
    """
    votes = tensors if majority == "total" else tensors.sign()
    elected = torch.where(votes.sum(0) >= 0, 1.0, -1.0)
    agrees = tensors.sign() == elected
    return (tensors * weights * agrees).sum(0) / agrees.sum(0).clamp_min(1)
